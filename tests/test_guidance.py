"Guidance against known answers: energies by finite differences, optima by formula, noise of known variance."

# ruff: noqa: F811 (fixtures are arguments)

import pytest
import torch
import torch.nn.functional as F
from test_hyperclip import GENERATORS, NET, SMALL, Affine, E, Z, draw, family
from test_synthetic import LATENT, QUESTION, TOLERANCE, best, shuffled, train, unseen  # noqa: F401 (fixtures)
from test_synthetic import known as truth

from hyperclip_nb.core.energy import energy_and_grad
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import TrainConfig, last, run
from hyperclip_nb.guidance.guide import Guidance, guide, hyperclip_energy, latent_encoder, latent_unit
from hyperclip_nb.guidance.hyperclip import ContrastConfig, HyperCLIP, HyperCLIPConfig, train_hyperclip


def trained(generate, z, e, noise, steps=400):
    config = HyperCLIPConfig(components=z.shape[-1], size=16, hidden=(64,), text_hidden=(64,))
    model = HyperCLIP.make(generate.net, generate(z), e.shape[1], config)
    train = TrainConfig(steps=steps, lr=5e-3, schedule="linear")
    run(train_hyperclip(model, generate, z, e, train, ContrastConfig(batch=128, latent_noise=noise)))
    return model


@pytest.fixture(scope="module")
def known():
    "HyperCLIP of latents [T, 2] that are a linear function of the question, plus noise of half their std."
    generate, (e, z) = Affine(2), family(500, 2)
    return trained(generate, z, e, 0.5), generate, latent_unit(z, 0.5), *family(100, 2, seed=1)


def excess(generate, z, best, start):
    "Squared error of weights, as a share of what it is at the start."
    error = lambda z: (generate(z) - generate(best)).square().sum()
    return (error(z) / error(start.expand_as(best))).item()


# The energy


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("config", [HyperCLIPConfig(hidden=(16,)), SMALL])
def test_energy_is_one_minus_the_cosine(name, config):
    generate = GENERATORS[name]().eval()
    model = HyperCLIP.make(NET, generate(draw(40, Z)).detach(), E, config)
    z, e = draw(7, Z, seed=4), draw(7, E)
    value = hyperclip_energy(model, generate, e)(z)
    cosine = F.cosine_similarity(model.encode_weights(generate(z)), model.encode_text(e))
    torch.testing.assert_close(value, 1 - cosine, atol=1e-4, rtol=1e-4)
    assert value.shape == (7,) and (value >= 0).all() and (value <= 2).all()
    torch.testing.assert_close(
        latent_encoder(model, generate)(z), model.encode_weights(generate(z)), atol=1e-4, rtol=1e-4
    )


def test_the_gradient_equals_finite_differences():
    generate = Affine().double()
    model = HyperCLIP.make(NET, generate(draw(40, Z).double()), E, SMALL).double()
    e, z, step = draw(5, E).double(), draw(5, Z).double(), 1e-6
    energy = hyperclip_energy(model, generate, e)
    _, grad = energy_and_grad(energy, z)
    with torch.no_grad():
        numeric = torch.stack(
            [(energy(z + step * d) - energy(z - step * d)) / (2 * step) for d in torch.eye(Z).double()], 1
        )
    torch.testing.assert_close(grad, numeric, atol=1e-7, rtol=1e-5)


def test_several_latents_per_question_are_stacked_outside():
    generate = Affine()
    model, e, z = HyperCLIP.make(NET, generate(draw(40, Z)), E, SMALL), draw(3, E), draw(4, 3, Z)
    energy = hyperclip_energy(model, generate, e)
    torch.testing.assert_close(energy(z.flatten(0, 1)).unflatten(0, (4, 3)), torch.stack([energy(each) for each in z]))
    with pytest.raises(ValueError, match="T = 3"):
        energy(draw(4, Z))


def test_dropout_is_off_in_guidance():
    generate = Affine()
    model = HyperCLIP.make(NET, generate(draw(40, Z)), E, HyperCLIPConfig(components=Z, size=8, dropout=0.5)).train()
    energy, z = hyperclip_energy(model, generate, draw(3, E)), draw(3, Z)
    assert torch.equal(energy(z), energy(z))


# Guidance


def test_the_noise_moves_the_minimum_and_bayes_prior_puts_it_back(known):
    "Algorithm 11 from z0. Theory: at λ = 0 it ends at (1 + σ²) z*, an excess of σ⁴ = 0.0625; with the prior at z*."
    model, generate, unit, e, best = known
    z0 = torch.zeros(2)
    end = lambda **options: last(guide(model, generate, z0, e, Guidance(schedule="cosine", **options), unit=unit))
    assert 0.03 < excess(generate, end(steps=100), best, z0) < 0.1
    assert excess(generate, end(steps=100, prior="bayes"), best, z0) < 0.03
    assert excess(generate, end(steps=300, lr=0.5, optimizer="sgd", prior="bayes"), best, z0) < 0.03


def test_guidance_finds_networks_as_good_as_the_best(train, unseen, best):
    "Algorithms 1 and 11 on the family of test_synthetic.py, with questions and images that nobody has seen."
    model = trained(truth, train.z, train.e, 0.3, steps=800)
    walk, z0, unit = (
        Guidance(steps=100, schedule="cosine", prior="bayes"),
        torch.zeros(LATENT),
        latent_unit(train.z, 0.3),
    )
    found = lambda e: unseen.accuracy(truth(last(guide(model, truth, z0, e, walk, unit=unit))))
    assert unseen.accuracy(truth(z0[None])) < best - 8
    assert found(unseen.e) > best - TOLERANCE
    assert found(shuffled(unseen)) < best - 8


def test_bayes_prior_is_one_over_the_scale(known):
    model, generate, unit, e, _ = known
    paths = [
        torch.stack([*guide(model, generate, torch.zeros(2), e, Guidance(steps=4, prior=prior))])
        for prior in ("bayes", 1 / model.scale.item(), 0.0)
    ]
    assert torch.equal(paths[0], paths[1]) and not torch.equal(paths[0], paths[2])


def test_a_strong_prior_stays_at_the_start(known):
    model, generate, _, e, _ = known
    start = draw(len(e), 2, seed=7)
    for weight, reach in (10.0, 0.3), (1000.0, 0.003):
        z = last(guide(model, generate, start, e, Guidance(steps=300, lr=0.5 / weight, optimizer="sgd", prior=weight)))
        _, slope = energy_and_grad(hyperclip_energy(model, generate, e), z)
        assert (
            weight * (z - start) + slope
        ).abs().median() < 1e-3  # both forces in balance, but for walks that end at a kink of a ReLU
        assert (z - start).abs().max() < reach


def test_the_path_begins_at_the_start_and_walks_downhill(known):
    model, generate, unit, e, _ = known
    for start in torch.zeros(2), draw(len(e), 2):
        path = torch.stack([*guide(model, generate, start, e, Guidance(steps=20, lr=0.05))])
        assert path.shape == (21, len(e), 2) and torch.equal(path[0], start.expand(len(e), 2))
        energy = hyperclip_energy(model, generate, e)
        assert energy(path[-1]).mean() < 0.5 * energy(path[0]).mean()
    assert len([*guide(model, generate, start, e, Guidance(steps=0))]) == 1


def test_the_unit_scales_steps_and_prior_alike(known):
    "The same walk in another unit: stretch the generator's latents by 4, and say so."
    model, generate, _, e, _ = known

    class Stretched(Affine):
        def forward(self, z):
            return super().forward(z / 4)

    walk, start = Guidance(steps=15, prior=0.3), draw(2)
    plain, stretched = (
        last(guide(model, generate, start, e, walk)),
        last(guide(model, Stretched(2), 4 * start, e, walk, unit=4.0)),
    )
    torch.testing.assert_close(stretched / 4, plain, atol=1e-4, rtol=1e-4)


def test_extra_energies_are_added(known):
    model, generate, _, e, best = known
    pull = lambda z: 50 * (z - best).square().sum(-1)
    z = last(guide(model, generate, torch.zeros(2), e, Guidance(steps=100, lr=0.01, optimizer="sgd"), extra=pull))
    assert (z - best).abs().max() < 0.05


def test_langevin_at_one_over_the_scale_samples_the_latents_of_a_question(known):
    "With Bayes' prior exp(−κ·energy) is the density of latents given the question: here N(z*, σ²)."
    model, generate, unit, e, best = known
    walk = Guidance(steps=300, lr=0.2, optimizer="sgd", prior="bayes", langevin=1 / model.scale.item())
    z = last(guide(model, generate, torch.zeros(2), e.repeat(20, 1), walk, seeded(0, "langevin"), unit=unit))
    away = (z.unflatten(0, (20, 100)) - best) / (
        unit / 1.25**0.5
    )  # in standard deviations of the latents without noise
    assert away.mean((0, 1)).abs().max() < 0.1
    assert (away - away.mean(0)).std().item() == pytest.approx(0.5, rel=0.15)


def test_noise_is_seeded(known):
    model, generate, _, e, _ = known
    for walk in Guidance(steps=3, langevin=0.1, optimizer="sgd"), Guidance(steps=3, gradient_noise=0.1):
        a, b, c = (last(guide(model, generate, torch.zeros(2), e, walk, seeded(seed))) for seed in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)
        with pytest.raises(ValueError, match="generator"):
            guide(model, generate, torch.zeros(2), e, walk)


def test_the_unit_counts_the_noise():
    z, std = draw(3, 200, Z), draw(200, Z, seed=1).abs()
    torch.testing.assert_close(latent_unit(z), z.flatten(0, 1).std(0, unbiased=False))
    torch.testing.assert_close(latent_unit(z, 0.5), 1.25**0.5 * latent_unit(z))
    noised = z + 0.5 * std * draw(2000, 3, 200, Z)
    torch.testing.assert_close(latent_unit(z, 0.5, std), noised.flatten(0, 2).std(0), rtol=2e-3, atol=0)
    torch.testing.assert_close(latent_unit(z, 0.5, std), latent_unit(z, 0.5, std.expand_as(z)))


@pytest.mark.parametrize(
    "options, word",
    [
        ({"steps": -1}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"schedule": "linear"}, "schedule"),
        ({"prior": -1.0}, "prior"),
        ({"prior": "flat"}, "prior"),
        ({"langevin": 0.1}, "langevin"),
        ({"gradient_noise": -1.0}, "gradient_noise"),
    ],
)
def test_bad_settings(options, word):
    with pytest.raises(ValueError, match=word):
        Guidance(**options)


def test_bad_starts():
    model = HyperCLIP.make(NET, Affine()(draw(20, Z)), E, SMALL)
    for start in draw(Z + 1), draw(4, Z), draw(1, 3, Z):
        with pytest.raises(ValueError, match="start"):
            guide(model, Affine(), start, draw(3, E))
    with pytest.raises(ValueError, match="embeddings"):
        guide(model, Affine(), draw(Z), draw(3, E + 1))
