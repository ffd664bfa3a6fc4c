"What several components share: checks, perceptrons, a scale, principal components against numpy and scikit-learn."

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

from hyperclip_nb.core.blocks import (
    Standardizer,
    check_choice,
    check_fields,
    hidden_layers,
    perceptron,
    principal_directions,
)
from hyperclip_nb.core.files import load_tensors, save_tensors


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# checks


@dataclass(frozen=True)
class Oven:
    degrees: float = 180.0
    fan: str = "on"

    def __post_init__(self):
        check_fields(self, ("degrees", 0 < self.degrees <= 300, "at most 300"), ("fan", self.fan == "on", "'on'"))


def test_a_check_names_the_first_field_that_is_wrong():
    Oven()
    with pytest.raises(ValueError, match=r"^Oven\.degrees: expected at most 300, got 301$"):
        Oven(301, "off")
    with pytest.raises(ValueError, match=r"^Oven\.fan: expected 'on', got 'off'$"):
        Oven(fan="off")


def test_a_choice_names_what_there_is():
    check_choice("heat", "low", ("low", "high"))
    with pytest.raises(ValueError, match=r"^heat: expected 'low' or 'high', got None$"):
        check_choice("heat", None, ("low", "high"))


# perceptrons


@given(
    sizes=st.lists(st.integers(1, 300), min_size=2, max_size=5),
    activation=st.sampled_from(["relu", "silu"]),
    gain=st.sampled_from([1.0, 2.0]),
    dropout=st.sampled_from([None, 0.0, 0.5]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_a_perceptron_draws_what_torchs_own_initialisation_draws(sizes, activation, gain, dropout, seed):
    "Kaiming's, for a ReLU or (the first layer, by default) for no activation, same generator, to the last bit."
    net, draws = perceptron(sizes, activation, dropout=dropout, generator=rng(seed), gain=gain), rng(seed)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [*zip(sizes, sizes[1:])]
    for i, layer in enumerate(linear):
        kind = "relu" if i or gain == 2 else "linear"
        weight = torch.empty_like(layer.weight)
        nn.init.kaiming_normal_(weight, nonlinearity=kind, generator=draws)
        assert torch.equal(layer.weight, weight) and not layer.bias.any()
    kind = {"relu": nn.ReLU, "silu": nn.SiLU}[activation]
    hidden = [nn.Linear, kind] + ([] if dropout is None else [nn.Dropout])
    assert [type(layer) for layer in net] == hidden * (len(sizes) - 2) + [nn.Linear]


def test_without_a_generator_layers_begin_as_torchs_do():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ours = perceptron((4, 6, 2), dropout=0.1)
        torch.manual_seed(3)
        plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 2))
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_hidden_layers_are_a_perceptron_without_its_output():
    body, net = hidden_layers((5, 7, 6), generator=rng(), gain=2.0), perceptron((5, 7, 6, 3), generator=rng(), gain=2.0)
    x = torch.randn(4, 5, generator=rng(1))
    assert torch.equal(body(x), net[:-1](x)) and len(hidden_layers((5,))) == 0


# a scale


@pytest.mark.parametrize("scale", ["dimension", "global"])
def test_standardizer_goes_there_and_back(scale):
    z = torch.randn(4, 50, 3, generator=rng()) * torch.tensor([1.0, 5.0, 0.1]) + 2
    s = Standardizer(z, scale)
    u = s.encode(z)
    torch.testing.assert_close(s.decode(u), z)
    torch.testing.assert_close(u.mean((0, 1)), torch.zeros(3), atol=1e-5, rtol=0)
    std = u.std((0, 1), unbiased=False)
    if scale == "dimension":
        torch.testing.assert_close(std, torch.ones(3))
    else:
        assert std[1] / std[2] > 30 and u.square().mean() == pytest.approx(1)


def test_a_scale_per_dimension_is_scikit_learns():
    z = torch.randn(60, 5, generator=rng()).double() * torch.tensor([1.0, 5.0, 0.1, 30.0, 2.0]) - 3
    np.testing.assert_allclose(Standardizer(z).encode(z), StandardScaler().fit_transform(z.numpy()), atol=1e-12)


def test_a_dimension_that_never_varies_stays_finite():
    z = torch.randn(60, 3, generator=rng())
    z[:, 1] = 7.0
    for scale in "dimension", "global":
        u = Standardizer(z, scale).encode(z)
        assert u.isfinite().all() and u[:, 1].abs().max() < 1e-2
    with pytest.raises(ValueError, match="'dimension' or 'global', got 'none'"):
        Standardizer(z, "none")


# principal components


def samples(rank, noise=0.0, count=(3, 40), size=133, seed=0):
    "Samples [V, T, P] in a subspace of known rank, and noise around it."
    g = rng(seed)
    basis = torch.randn(rank, size, generator=g) / size**0.5
    found = 1 + torch.randn(*count, rank, generator=g) @ basis * 3
    return found + noise * torch.randn(*count, size, generator=g)


@pytest.mark.parametrize("scale", ["global", "dimension"])
@pytest.mark.parametrize("size", [1, 4, 6])
def test_directions_are_those_of_the_singular_value_decomposition(scale, size):
    weights = samples(rank=6)
    scaler = Standardizer(weights, scale)
    directions, std = principal_directions(weights, scaler, size, rng(), chunk=50)
    u = scaler.encode(weights).flatten(0, 1).double().numpy()
    _, singular, exact = np.linalg.svd(u, full_matrices=False)
    np.testing.assert_allclose(std, singular[:size] / len(u) ** 0.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(directions.T @ directions, torch.eye(size), atol=1e-5, rtol=0)
    found, wanted = directions.double().numpy(), exact[:size].T
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-4)


def test_directions_are_scikit_learns_where_there_is_noise():
    weights = samples(rank=4, noise=0.02, count=(1, 200))[0]
    scaler = Standardizer(weights, "global")
    directions, std = principal_directions(weights, scaler, 4, rng())
    exact = PCA(4).fit(scaler.encode(weights).numpy())
    np.testing.assert_allclose(np.abs((exact.components_ @ directions.numpy()).diagonal()), 1, atol=1e-4)
    np.testing.assert_allclose(std, exact.singular_values_ / 200**0.5, rtol=1e-4)


def test_directions_do_not_depend_on_the_pieces_or_the_file(tmp_path):
    weights = samples(rank=5)
    save_tensors(tmp_path / "w.safetensors", {"w": weights}, {})
    scaler, mapped = Standardizer(weights), load_tensors(tmp_path / "w.safetensors")[0]["w"]
    one = principal_directions(weights, scaler, 5, rng(), chunk=7)
    for mine, theirs in zip(one, principal_directions(mapped, scaler, 5, rng())):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_more_directions_than_there_are_samples_are_refused():
    weights = samples(rank=3, count=(1, 5))
    with pytest.raises(ValueError, match="expected 1 to 5 components"):
        principal_directions(weights, Standardizer(weights), 6, rng())
