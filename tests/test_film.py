import pytest
import torch
import torch.nn.functional as F
from conftest import EMBED
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyperclip_nb.basenet.adapter import AdapterNet, adapter_logits
from hyperclip_nb.basenet.network import task_loss
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.hypernet.film import FiLM, FiLMNet, modulate
from hyperclip_nb.hypernet.hypernetworks import HNet, MNet, WeightGenerator
from hyperclip_nb.hypernet.metatrain import Episodes, fit_meta

net = AdapterNet(EMBED, 5)
PLACES = ("pre_activation", "post_activation")


class FiLMNetwork(nn.Module):
    "FiLM as in the literature: a network with a modulation layer, all tasks' embeddings going in beside the images."

    def __init__(self, w0, g, where):
        super().__init__()
        self.inward, self.outward, self.g, self.where = (
            nn.Linear(EMBED, 5).double(),
            nn.Linear(5, EMBED).double(),
            g,
            where,
        )
        m = {name: matrix[0] for name, matrix in net.split(w0[None]).items()}
        self.inward.weight.data, self.inward.bias.data = m["W1"] / EMBED**0.5, m["b1"].clone()
        self.outward.weight.data, self.outward.bias.data = m["W2"] / 5**0.5, m["b2"].clone()

    def forward(self, images, answers, e):
        scale, shift = self.g(e)[:, None].chunk(2, dim=-1)
        hidden = self.inward(images)
        hidden = F.relu(scale * hidden + shift) if self.where == "pre_activation" else scale * F.relu(hidden) + shift
        return 100 * F.cosine_similarity((images + self.outward(hidden))[:, :, None], answers[:, None], dim=-1)


def film(where, seed=0, **kw):
    return FiLM(net, 6, (9,), where, output_gain=1.0, generator=torch.Generator().manual_seed(seed), **kw).double()


@pytest.mark.parametrize("where", PLACES)
@given(tasks=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_equals_the_network_with_a_modulation_layer(where, tasks, seed):
    normal = lambda *shape: torch.randn(
        shape, generator=torch.Generator().manual_seed(seed + len(shape)), dtype=torch.float64
    )
    start = normal(net.size)
    model = film(where, seed, start=start)
    images, answers, e = normal(tasks, 7, EMBED), normal(tasks, 3, EMBED).abs(), normal(tasks, 6)
    reference = FiLMNetwork(start, model.g, where)(images, answers, e)
    torch.testing.assert_close(adapter_logits(model(e), images, answers, net), reference)


@pytest.mark.parametrize("where", PLACES)
def test_gradients_are_those_of_the_network_with_a_modulation_layer(where):
    normal = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)
    model, (images, answers, e) = (
        film(where, start=normal(net.size)),
        (normal(3, 7, EMBED), normal(3, 3, EMBED).abs(), normal(3, 6)),
    )
    network = FiLMNetwork(model.w0.detach(), film(where, start=model.w0).g, where)
    for logits in (adapter_logits(model(e), images, answers, net), network(images, answers, e)):
        logits.log_softmax(-1)[..., 0].sum().backward()
    torch.testing.assert_close(model.g.head.columns.grad, network.g.head.columns.grad)
    ours = {name: grad[0] for name, grad in net.split(model.w0.grad[None]).items()}
    torch.testing.assert_close(
        ours["W1"], network.inward.weight.grad / EMBED**0.5
    )  # the stored weights are larger by this
    torch.testing.assert_close(ours["W2"], network.outward.weight.grad / 5**0.5)
    torch.testing.assert_close(ours["b2"], network.outward.bias.grad)


@pytest.mark.parametrize("where", PLACES)
def test_at_the_identity_it_is_the_base_network_to_the_last_bit(ragged, where):
    shared = MNet(net).z0.detach()
    model = FiLM(net, EMBED, (9,), where, output_gain=0.0, start=shared)
    batch = ragged.batch(ragged.all_ids)
    assert torch.equal(model(ragged.embeddings()), shared.expand(len(ragged), -1))
    assert torch.equal(
        task_loss(model(ragged.embeddings()), batch, net), task_loss(shared.expand(len(ragged), -1), batch, net)
    )


@given(seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_positive_scale_passes_through_the_relu(seed):
    normal = lambda *shape: torch.randn(
        shape, generator=torch.Generator().manual_seed(seed + len(shape)), dtype=torch.float64
    )
    w0, images, answers = normal(net.size), normal(3, 7, EMBED), normal(3, 3, EMBED)
    logits = lambda where, scale, shift: adapter_logits(modulate(w0, scale, shift, net, where), images, answers, net)
    same, zero = [logits(where, normal(3, 5).exp(), torch.zeros(3, 5).double()) for where in PLACES], normal(3, 5)
    torch.testing.assert_close(*same)
    assert not torch.allclose(*[logits(where, normal(3, 5), zero) for where in PLACES])


@pytest.mark.parametrize("where", PLACES)
def test_it_learns_what_the_shared_network_cannot(ragged, where):
    config, episodes = TrainConfig(steps=80, lr=1e-2, seed=1), Episodes(tasks=5, support=4, query=4)
    shared = MNet(net)
    run(fit_meta(shared, ragged, config, episodes=episodes))
    model = FiLM(net, EMBED, (16,), where, start=shared.z0)
    losses = run(fit_meta(model, ragged, config, embeddings=ragged.embeddings(), episodes=episodes))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not torch.equal(model.w0, shared.z0)  # the base network goes on training


def test_it_is_a_weight_generator_of_few_numbers():
    model = film("pre_activation")
    assert isinstance(model, WeightGenerator) and FiLMNet(net, model.w0).size == 10
    assert model.g.head.weight.shape == (10, 9) and isinstance(model.g, HNet)
    parts = model.modulation(torch.zeros(3, 6).double())
    assert {name: part.shape for name, part in parts.items()} == {"scale": (3, 5), "shift": (3, 5)}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="pre_activation"):
        FiLM(net, 6, where="both")
    with pytest.raises(ValueError, match="pre_activation"):
        modulate(torch.zeros(net.size), torch.ones(1, 5), torch.zeros(1, 5), net, "both")
    with pytest.raises(ValueError, match="latents"):
        film("pre_activation")(torch.zeros(2, 7).double())
    with pytest.raises(ValueError, match=str(net.size)):
        modulate(torch.zeros(3), torch.ones(1, 5), torch.zeros(1, 5), net)
