"HyperCLIP: its loss against references, its shortcuts against the plain forms, its training on known families."

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from torch import nn

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.guidance.hyperclip import (
    ContrastConfig,
    HyperCLIP,
    HyperCLIPConfig,
    LinearEnded,
    TaskClassification,
    classify_tasks,
    contrastive_loss,
    linear_readout,
    train_hyperclip,
)
from hyperclip_nb.hypernet.hvae import HVAE, HVAEConfig
from hyperclip_nb.hypernet.hypernetworks import HNet

NET, Z, E = AdapterNet(6, 3), 4, 5
SMALL = HyperCLIPConfig(components=Z, size=8, hidden=(32,), text_hidden=(32,), max_scale=30.0)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed, "draw", *shape))


def unit(*shape, seed=0):
    return F.normalize(draw(*shape, seed=seed).double(), dim=-1)


class Affine(nn.Module):
    "The simplest generator, of no type that HyperCLIP knows."

    def __init__(self, size=Z, net=NET):
        super().__init__()
        self.net, self.latent_size = net, size
        self.register_buffer("w0", draw(net.size, seed=1))
        self.register_buffer("matrix", draw(size, net.size, seed=2) / net.size**0.5)

    def forward(self, z):
        return self.w0 + z @ self.matrix


def family(tasks, size=Z, seed=0):
    "Questions, and the latents that are right for them: a linear function."
    e = draw(tasks, E, seed=seed + 10)
    return e, e @ draw(E, size, seed=3) / E**0.5


def hvae(**options):
    weights = draw(30, NET.size) * torch.linspace(0.1, 2, NET.size) + 1
    return HVAE.make(NET, weights, weights.mean(0), HVAEConfig(latent_size=Z, hidden=(7,), **options))


# The loss


@pytest.mark.parametrize("batch, size, scale", [(2, 3, 1.0), (5, 4, 14.3), (9, 2, 100.0)])
def test_loss_equals_a_loop_and_open_clip(batch, size, scale):
    a, b = unit(batch, size), unit(batch, size, seed=1)
    logits = [[scale * (a[i] @ b[j]) for j in range(batch)] for i in range(batch)]
    rows = [F.cross_entropy(torch.stack(logits[i])[None], torch.tensor([i])) for i in range(batch)]
    columns = [F.cross_entropy(torch.stack([row[j] for row in logits])[None], torch.tensor([j])) for j in range(batch)]
    torch.testing.assert_close(contrastive_loss(a, b, scale), (sum(rows) + sum(columns)) / (2 * batch))
    torch.testing.assert_close(contrastive_loss(a, b, scale), ClipLoss()(a, b, torch.tensor(scale, dtype=a.dtype)))
    torch.testing.assert_close(contrastive_loss(a, b, scale), contrastive_loss(b, a, scale))


def test_loss_of_vectors_that_say_nothing_is_log_batch():
    same = unit(1, 6).expand(8, -1)
    assert contrastive_loss(same, same, 5.0).item() == pytest.approx(math.log(8))
    assert contrastive_loss(torch.eye(8), torch.eye(8), 50.0) < 1e-6


@pytest.mark.parametrize("a, b", [((3, 4), (4, 4)), ((3, 4), (3, 5)), ((1, 4), (1, 4)), ((2, 3, 4), (2, 3, 4))])
def test_loss_refuses_rows_without_partners(a, b):
    with pytest.raises(ValueError, match="at least 2 rows"):
        contrastive_loss(draw(*a), draw(*b), 1.0)


# The encoders


def test_whitened_components_are_white():
    generate = HNet(NET, Z, (16,), output_gain=1.0)
    weights = generate(draw(500, Z)).detach()
    seen = HyperCLIP.make(NET, weights, E, HyperCLIPConfig(components=6)).read(weights)
    torch.testing.assert_close(seen.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.T @ seen / 500, torch.eye(6), atol=1e-3, rtol=0)
    u, *_ = torch.linalg.svd((weights - weights.mean(0)).double(), full_matrices=False)  # the same six, up to the sign
    torch.testing.assert_close((u[:, :6].T @ seen.double()).abs() / 500**0.5, torch.eye(6).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("config", [HyperCLIPConfig(), HyperCLIPConfig(components=3), HyperCLIPConfig(size=7), SMALL])
def test_everything_lies_on_one_sphere(config):
    model = HyperCLIP.make(NET, Affine()(draw(40, Z)), E, config)
    a, b = model.encode_weights(draw(2, 3, NET.size)), model.encode_text(draw(2, 3, E))
    assert a.shape == b.shape == (2, 3, config.size or E)
    for side in a, b:
        torch.testing.assert_close(side.norm(dim=-1), torch.ones(2, 3))


def test_the_papers_text_encoder_stays_as_it_is():
    model = HyperCLIP.make(NET, None, E)
    e = draw(9, E)
    torch.testing.assert_close(model.encode_text(e), F.normalize(e, dim=-1))
    assert not list(model.text_head.parameters())
    w = draw(2, NET.size)
    torch.testing.assert_close(model.encode_weights(w), F.normalize(model.encoder(w * NET.size**-0.5), dim=-1))


@pytest.mark.parametrize("cap", [0.5, 3.0, 100.0])
def test_the_scale_stays_below_its_cap_and_can_come_back(cap):
    model = HyperCLIP(NET, E, HyperCLIPConfig(max_scale=cap))
    assert model.scale.item() == pytest.approx(min(1 / 0.07, cap / 2), rel=1e-5)
    with torch.no_grad():
        model.free_scale.fill_(8.0)
    model.scale.backward()
    assert 0.99 * cap < model.scale < cap and model.free_scale.grad > 0


def test_parameters_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    a, b, other = (HyperCLIP(NET, E, SMALL, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.encoder[0].weight, other.encoder[0].weight)


def test_a_state_dict_is_all_there_is():
    model, again = HyperCLIP.make(NET, Affine()(draw(40, Z)), E, SMALL), HyperCLIP(NET, E, SMALL, seed=5)
    again.load_state_dict(model.state_dict())
    w = draw(3, NET.size)
    assert torch.equal(model.encode_weights(w), again.encode_weights(w))


# Shortcuts

GENERATORS = {
    "hnet": lambda: HNet(NET, Z, (7, 8)),
    "hnet without layers": lambda: HNet(NET, Z, ()),
    "unknown": Affine,
    "hvae": hvae,
    "hvae with one scale": lambda: hvae(scale="global", activation="silu", components=5),
    "hvae of components": lambda: hvae(scale="global", activation="silu", components=5, decodes="components"),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_readout_of_weights_that_are_never_made(name):
    generate, matrix, offset, z = GENERATORS[name]().eval(), draw(3, NET.size), draw(3), draw(6, Z).requires_grad_()
    short, long = linear_readout(generate, matrix, offset)(z), generate(z) @ matrix.T + offset
    torch.testing.assert_close(short, long, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        *(torch.autograd.grad(value.square().sum(), z)[0] for value in (short, long)), atol=1e-3, rtol=1e-3
    )
    assert isinstance(generate, LinearEnded) == (name != "unknown")


# Training


def trained(tasks=200, contrast=ContrastConfig(batch=64, latent_noise=0.3), steps=200, seed=0, lr=3e-3):
    generate, (e, z) = Affine(), family(tasks)
    model = HyperCLIP.make(NET, generate(z), E, SMALL, seed)
    losses = run(
        train_hyperclip(model, generate, z, e, TrainConfig(steps=steps, lr=lr, schedule="linear", seed=seed), contrast)
    )
    return model, generate, losses


def test_training_tells_new_networks_apart():
    model, generate, losses = trained()
    e, z = family(100, seed=1)
    deals = [torch.randperm(100, generator=seeded(i)) for i in range(20)]
    untrained = HyperCLIP.make(NET, generate(z), E, SMALL)
    assert losses[0] > 0.8 * math.log(64) > 2 * losses[-1]
    assert classify_tasks(model, generate(z), e, 10).accuracy > 80
    assert 4 < classify_tasks(untrained, generate(z), e, 10).accuracy < 20
    shuffled = sum(classify_tasks(model, generate(z), e[deal], 10).accuracy for deal in deals) / 20
    assert shuffled == pytest.approx(10, abs=2)


def test_training_is_seeded_and_leaves_the_generator_alone():
    (a, generate, losses), (b, _, again), (other, *_) = trained(steps=5), trained(steps=5), trained(steps=5, seed=1)
    assert losses == again and all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    assert not torch.equal(a.encoder[0].weight, other.encoder[0].weight)
    assert torch.equal(generate.matrix, Affine().matrix)


def test_a_training_cut_off_goes_on_where_it_was():
    generate, (e, z), config = Affine(), family(40), TrainConfig(steps=8, lr=1e-2)
    whole, first, second = (HyperCLIP.make(NET, generate(z), E, SMALL) for _ in range(3))
    run(train_hyperclip(whole, generate, z, e, config))
    steps = train_hyperclip(first, generate, z, e, config)
    for _ in range(5):
        next(steps)
    rest = train_hyperclip(second, generate, z, e, config)
    rest.load_state_dict(copy.deepcopy(steps.state_dict()))
    run(rest)
    assert all(torch.equal(p, q) for p, q in zip(whole.state_dict().values(), second.state_dict().values()))


def test_the_model_given_is_the_average():
    generate, (e, z) = Affine(), family(40)
    model = HyperCLIP.make(NET, generate(z), E, SMALL)
    steps = train_hyperclip(
        model, generate, z, e, TrainConfig(steps=6, lr=1e-2), ContrastConfig(ema_decay=1.0, ema_from=0.5)
    )
    student, seen = steps.model, []
    for update in steps:
        if update.step > 3:
            seen.append(student.encoder[0].weight.detach().clone())
    torch.testing.assert_close(model.encoder[0].weight, torch.stack(seen).mean(0))
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_batch_never_holds_a_task_twice():
    "A task must not be its own negative: with 3 tasks, 5 views and batches of 64 the loss must still go to 0."
    generate = Affine()
    e, z = torch.eye(3, E), 3 * torch.eye(3, Z)
    model = HyperCLIP.make(NET, generate(draw(20, Z)), E, SMALL)
    losses = run(train_hyperclip(model, generate, z.expand(5, 3, Z), e, TrainConfig(steps=150, lr=1e-2)))
    assert losses[-1] < 0.01


@pytest.mark.parametrize("std", [None, 1.0, "per task"])
def test_noise_has_the_standard_deviation_that_was_given(std):
    generate, (e, z) = Affine(), family(50)
    seen = []
    generate.forward = lambda z, original=generate.forward: (seen.append(z), original(z))[1]
    given = (
        None
        if std is None
        else torch.full((Z,), 2.0)
        if std == 1.0
        else torch.linspace(0, 1, 50)[:, None].expand(50, Z)
    )
    model = HyperCLIP.make(NET, generate(draw(20, Z)), E, HyperCLIPConfig())
    seen.clear()
    run(
        train_hyperclip(
            model,
            generate,
            torch.zeros(4, 50, Z) + (z if std is None else 0),
            e,
            TrainConfig(steps=60),
            ContrastConfig(batch=50, latent_noise=0.5),
            given,
        )
    )
    total = torch.stack(seen).flatten(0, 1).var(0)
    expected = {
        None: 1.25 * z.var(0),
        1.0: torch.ones(Z),
        "per task": 0.25 * torch.linspace(0, 1, 50).square().mean().expand(Z),
    }[std]
    torch.testing.assert_close(total, expected, rtol=0.1, atol=0)


def test_posteriors_are_drawn_from_anew_at_every_step():
    "Algorithm 10 encodes at every step: with means, their standard deviations, and a noise of 1."
    generate, mean, std = Affine(), 100.0 * torch.arange(50)[:, None].expand(1, 50, Z), draw(1, 50, Z).abs() + 0.5
    model = HyperCLIP.make(NET, generate(draw(20, Z)), E, HyperCLIPConfig())
    seen, original = [], generate.forward
    generate.forward = lambda z: (seen.append(z), original(z))[1]
    config = ContrastConfig(batch=50, latent_noise=1.0)
    run(train_hyperclip(model, generate, mean, draw(50, E), TrainConfig(steps=200), config, std))
    steps = torch.stack([z[z[:, 0].argsort()] for z in seen])  # [S, 50, Z]: means are far apart, so they tell the task
    drawn = (steps - mean) / std
    torch.testing.assert_close(drawn.var(0).mean(), torch.tensor(1.0), rtol=0.05, atol=0)
    assert drawn.mean(0).abs().max() < 0.4  # 200 draws around the mean, for every task and dimension
    assert (drawn[1:] * drawn[:-1]).mean().abs() < 0.02  # no step repeats the last one


@pytest.mark.parametrize(
    "change, word",
    [
        ({"e": (20, E + 1)}, "embeddings"),
        ({"e": (1, E), "z": (1, Z)}, "at least 2 tasks"),
        ({"z": (19, Z)}, "latents"),
        ({"z": (20, Z + 1)}, "latents"),
        ({"z": (2, 2, 20, Z)}, "latents"),
        ({"std": (3, Z)}, "std"),
        ({"nan": "z"}, "finite"),
        ({"nan": "e"}, "finite"),
        ({"net": AdapterNet(6, 4)}, "generator of weights"),
    ],
)
def test_pairs_that_do_not_fit(change, word):
    e, z = draw(*change.get("e", (20, E))), draw(*change.get("z", (20, Z)))
    if "nan" in change:
        {"e": e, "z": z}[change["nan"]][1] = torch.nan
    model = HyperCLIP.make(NET, Affine()(draw(20, Z)), E, SMALL)
    with pytest.raises(ValueError, match=word):
        train_hyperclip(
            model,
            Affine(net=change.get("net", NET)),
            z,
            e,
            TrainConfig(steps=1),
            std=draw(*change["std"]) if "std" in change else None,
        )


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: HyperCLIPConfig(components=0), "components"),
        (lambda: HyperCLIPConfig(size=1), "size"),
        (lambda: HyperCLIPConfig(hidden=(0,)), "hidden"),
        (lambda: HyperCLIPConfig(dropout=1.0), "dropout"),
        (lambda: HyperCLIPConfig(max_scale=0.0), "max_scale"),
        (lambda: ContrastConfig(batch=1), "batch"),
        (lambda: ContrastConfig(latent_noise=-1.0), "latent_noise"),
        (lambda: ContrastConfig(ema_from=1.0), "ema_from"),
        (lambda: HyperCLIP.make(NET, None, E, SMALL), "weights"),
        (lambda: HyperCLIP.make(NET, draw(20, 5), E, SMALL), "weights"),
        (lambda: HyperCLIP.make(NET, Affine()(draw(20, Z)), E, HyperCLIPConfig(components=9)), "9 directions"),
        (lambda: HyperCLIP(NET, E).encode_weights(draw(2, 5)), "weights"),
        (lambda: HyperCLIP(NET, E).encode_text(draw(2, 6)), "embeddings"),
    ],
)
def test_bad_settings(make, word):
    with pytest.raises(ValueError, match=word):
        make()


# Task classification


class Scored(nn.Module):
    "A HyperCLIP with given similarities [T, T]: rows are 'weights', columns 'questions'."

    def encode_weights(self, w):
        return w

    def encode_text(self, e):
        return e


@settings(deadline=None, max_examples=25)
@given(tasks=st.integers(2, 7), seed=st.integers(0, 1000), data=st.data())
def test_classification_is_the_average_over_all_draws(tasks, seed, data):
    choices = data.draw(st.integers(2, tasks))
    similarity = draw(tasks, tasks, seed=seed)
    result = classify_tasks(Scored(), similarity, torch.eye(tasks), choices)
    counts = torch.zeros(tasks, tasks, dtype=torch.float64)
    for i in range(tasks):
        others = [j for j in range(tasks) if j != i]
        for wrong in itertools.combinations(others, choices - 1):
            counts[i, max((i, *wrong), key=lambda j: similarity[i, j].item())] += 1
    torch.testing.assert_close(result.chosen, counts / math.comb(tasks - 1, choices - 1))


def test_a_model_that_says_nothing_classifies_by_chance():
    result = classify_tasks(Scored(), torch.zeros(40, 40), torch.eye(40), 10)
    assert result.accuracy == pytest.approx(10.0)
    assert classify_tasks(Scored(), torch.eye(40), torch.eye(40), 10).accuracy == pytest.approx(100.0)


def test_confusion_counts_by_family():
    chosen = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    counts, names = TaskClassification(chosen).confusion(["b", "a", "b"])
    assert names == ["a", "b"]
    torch.testing.assert_close(counts, torch.tensor([[1.0, 0.0], [0.25, 1.75]], dtype=torch.float64))
    with pytest.raises(ValueError, match="3 families"):
        TaskClassification(chosen).confusion(["a"])


@pytest.mark.parametrize("networks, questions, choices", [(5, 4, 2), (5, 5, 1), (5, 5, 6)])
def test_classification_refuses_what_cannot_be_asked(networks, questions, choices):
    with pytest.raises(ValueError, match="choices"):
        classify_tasks(Scored(), torch.zeros(networks, 5), torch.zeros(questions, 5), choices)
