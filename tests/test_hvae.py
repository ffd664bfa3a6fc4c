from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMBED, ToyBank, toy_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from hyperclip_nb.basenet.adapter import AdapterNet, adapter_logits
from hyperclip_nb.basenet.fast.layers import WideLinear
from hyperclip_nb.basenet.network import task_loss
from hyperclip_nb.core.runs import checkpointed
from hyperclip_nb.core.seeds import own_randomness
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.hypernet.finetune import draw_views, examples_under, finetune
from hyperclip_nb.hypernet.hvae import (
    HVAE,
    HVAEConfig,
    HVAELoss,
    hvae_latents,
    hvae_loss,
    kl_to_prior,
    sample_posterior,
    train_hvae,
)
from hyperclip_nb.hypernet.hypernetworks import MNet, WeightGenerator
from hyperclip_nb.hypernet.metatrain import Adaptation
from hyperclip_nb.hypernet.store import store_adaptations

NET = AdapterNet(EMBED, 5)
P = NET.size
SMALL = HVAEConfig(latent_size=3, hidden=(16,), activation="silu", scale="global")
SPANNED = replace(SMALL, components=5, decodes="components")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def toy_weights(views=3, tasks=40, rank=3, noise=0.0, seed=0):
    "Weights [V, T, P] around w0 [P] in a subspace of known rank."
    g = rng(seed)
    w0, basis = torch.randn(P, generator=g), torch.randn(rank, P, generator=g) / P**0.5
    return w0, w0 + torch.randn(views, tasks, rank, generator=g) @ basis * 3 + noise * torch.randn(
        views, tasks, P, generator=g
    )


@pytest.fixture(scope="module")
def toy():
    "Forty tasks of twelve examples, of which each of three views holds four out."
    tasks = TaskSet(listed := toy_tasks([(8, 4, 3)] * 40), ToyBank(listed))
    w0, weights = toy_weights()
    return tasks, draw_views(tasks, views=3), w0, weights


# views and fine-tuning


def test_views_take_the_wanted_share_of_each_task_and_nothing_beyond_it(ragged):
    seen, counts = draw_views(ragged, views=200), ragged.sizes("all")
    assert seen.dtype == torch.bool and list(seen.shape) == [200, 5, 20]
    assert torch.equal(seen.sum(-1), (counts * 2 / 3).round().long().expand(200, -1))
    beyond = torch.arange(20) >= counts[:, None]
    assert not (seen & beyond).any()
    assert (seen.float().mean(0)[~beyond] - 2 / 3).abs().max() < 0.2  # 200 draws: no example is preferred
    assert not torch.equal(seen, draw_views(ragged, views=200, seed=1))
    shares = draw_views(ragged, views=200, fraction=(0.5, 1.0)).sum(-1) / counts
    assert 0.4 < shares.min() < 0.6 and shares.max() == 1.0


def test_views_are_the_same_for_the_same_seed(ragged):
    assert torch.equal(draw_views(ragged, seed=3), draw_views(ragged, seed=3))


@pytest.mark.parametrize(
    "wrong", [dict(views=0), dict(fraction=(0.0, 1.0)), dict(fraction=(0.9, 0.5)), dict(fraction=(0.5, 1.1))]
)
def test_views_refuse(ragged, wrong):
    with pytest.raises(ValueError, match="expected at least 1 view"):
        draw_views(ragged, **wrong)


@given(st.integers(0, 10_000), st.integers(1, 25))
@settings(deadline=None, max_examples=25)
def test_examples_under_a_mask_are_exactly_those(seed, limit):
    tasks = toy_tasks([(9, 4, 3), (3, 2, 2), (14, 6, 5)])
    tasks = TaskSet(tasks, ToyBank(tasks))
    whole = tasks.batch(torch.tensor([2, 0, 2, 1]), "all")
    keep = torch.rand(whole.mask.shape, generator=rng(seed)) < 0.5
    part = examples_under(whole, keep, limit, rng(seed))
    for row in range(4):
        rows = lambda b, m: sorted(
            (tuple(image.tolist()), label)
            for image, label in zip(b.images[row][m[row]], b.labels[row][m[row]].tolist())
        )
        wanted, got = rows(whole, keep & whole.mask), rows(part, part.mask)
        assert len(got) == min(limit, len(wanted)) and all(got.count(one) <= wanted.count(one) for one in got)
    assert (part.labels[~part.mask] == 0).all() and part.images.isfinite().all()


def test_fine_tuning_equals_gradient_descent_on_the_seen_examples(ragged):
    model, seen = MNet(NET), draw_views(ragged, views=2, fraction=(0.4, 0.9))
    together = finetune(model, ragged, Adaptation(steps=4, lr=0.3), seen)
    assert list(together.shape) == [2, 5, P]
    for view in range(2):
        for t in range(5):
            batch, w = ragged.batch(torch.tensor([t]), "all"), model.z0.detach().clone().requires_grad_()
            mine = seen[view, t, : batch.mask.shape[1]]
            for _ in range(4):
                logits = adapter_logits(w[None], batch.images[:, mine], batch.answers, NET)[0]
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch.labels[0, mine]), w)
                w = (w - 0.3 * gradient).detach().requires_grad_()
            torch.testing.assert_close(together[view, t], w.detach(), atol=1e-4, rtol=1e-4)


def test_fine_tuning_into_a_mapped_file_in_pieces_gives_the_same(ragged, tmp_path):
    model, seen, how = MNet(NET), draw_views(ragged, views=2), Adaptation(steps=3, lr=0.3)
    mapped = torch.from_file(str(tmp_path / "weights"), shared=True, size=2 * 5 * P).view(2, 5, P)
    finetune(model, ragged, how, seen, out=mapped, numbers=2 * P)
    torch.testing.assert_close(mapped, finetune(model, ragged, how, seen), atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.from_file(str(tmp_path / "weights"), size=2 * 5 * P).view(2, 5, P), mapped)


def test_fine_tuning_refuses_other_views_and_other_places(ragged):
    model, seen, how = MNet(NET), draw_views(ragged, views=2), Adaptation(steps=1)
    with pytest.raises(ValueError, match=r"seen: expected bool \[V, T, N\] with T, N = \[5, 20\]"):
        finetune(model, ragged, how, seen[:, :4])
    with pytest.raises(ValueError, match="float32"):
        finetune(model, ragged, how, seen.float())
    with pytest.raises(ValueError, match=rf"out: expected \[2, 5, {P}\]"):
        finetune(model, ragged, how, seen, out=torch.empty(1, 5, P))


# principal components


def test_reading_all_components_loses_nothing():
    w0, weights = toy_weights(rank=4)
    model = HVAE.make(NET, weights, w0, HVAEConfig(latent_size=3, hidden=(16,), components=4, scale="global"))
    u = model.scaler.encode(weights)
    back = u @ model.project @ torch.linalg.pinv(model.project)
    torch.testing.assert_close(back, u, atol=1e-4, rtol=0)
    assert (
        abs((u @ model.project).square().mean().item() - 1) < 1e-4
    )  # unit variance on average, as the weights themselves
    whole = HVAE.make(NET, weights, w0, HVAEConfig(latent_size=3, hidden=(16,), scale="global"))
    with torch.no_grad():
        whole.encoder[0].weight.copy_(model.encoder[0].weight @ model.project.T * (P / 4) ** 0.5)
        whole.encoder[0].bias.copy_(model.encoder[0].bias)
        whole.encoder[2].load_state_dict(model.encoder[2].state_dict())
    for a, b in zip(whole.encode(weights), model.encode(weights)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_components_refuse_more_than_there_are():
    w0, weights = toy_weights(views=1, tasks=5)
    with pytest.raises(ValueError, match="expected 1 to 5 components"):
        HVAE.make(NET, weights, w0, HVAEConfig(components=6))


# the model


def test_it_is_a_weight_generator_that_adaptation_knows(ragged):
    w0, weights = toy_weights()
    model = HVAE.make(NET, weights, w0, SMALL).requires_grad_(False)
    assert isinstance(model, WeightGenerator) and model.z0.shape == (3,)
    latents = store_adaptations(model, ragged, Adaptation(steps=5, lr=0.1), views=2)
    batch = ragged.batch(ragged.all_ids, "all")
    assert task_loss(model(latents[0]), batch, NET).mean() < task_loss(model(model.z0[None]), batch, NET).mean()


def test_the_shape_follows_the_config():
    model = HVAE(NET, HVAEConfig(latent_size=7, hidden=(20, 10)))
    linear = lambda net: [
        tuple(layer.weight.shape[::-1]) for layer in net if isinstance(layer, (torch.nn.Linear, WideLinear))
    ]
    assert linear(model.encoder) == [(P, 20), (20, 10), (10, 14)] and linear(model.decoder) == [
        (7, 10),
        (10, 20),
        (20, P),
    ]
    assert linear(HVAE(NET, HVAEConfig(latent_size=7, hidden=(), decoder_hidden=(5,), components=9)).decoder) == [
        (7, 5),
        (5, P),
    ]
    plain, shifted = (HVAE(NET, HVAEConfig(log_var_offset=offset)).encode(torch.ones(2, P)) for offset in (0.0, -1.0))
    torch.testing.assert_close(shifted[1], plain[1] - 1)
    torch.testing.assert_close(shifted[0], plain[0])


@pytest.mark.parametrize("config", [SMALL, HVAEConfig(latent_size=2, hidden=(4,), components=3), SPANNED])
def test_a_saved_model_is_whole_without_the_weights_it_was_made_from(config):
    w0, weights = toy_weights()
    made, loaded = HVAE.make(NET, weights, w0, config, seed=1), HVAE(NET, config)
    loaded.load_state_dict(made.state_dict())
    assert torch.equal(loaded.z0, made.z0) and torch.equal(loaded(loaded.z0[None]), made(made.z0[None]))
    double = loaded.double()
    torch.testing.assert_close(
        double.encode(weights.double())[0].float(), made.encode(weights)[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "wrong",
    [
        dict(latent_size=0),
        dict(hidden=(0,)),
        dict(decoder_hidden=(3, -1)),
        dict(components=0),
        dict(decodes="components"),
        dict(decodes="answers", components=3),
        dict(scale="none"),
        dict(activation="tanh"),
    ],
)
def test_a_config_names_what_is_wrong(wrong):
    with pytest.raises(ValueError, match=f"HVAEConfig.{next(iter(wrong))}: expected"):
        HVAEConfig(**wrong)


@pytest.mark.parametrize("wrong", [dict(loss="both"), dict(beta=-1.0), dict(mix=-0.1), dict(batch=0), dict(examples=0)])
def test_a_loss_names_what_is_wrong(wrong):
    with pytest.raises(ValueError, match="expected"):
        HVAELoss(**wrong)


def test_wrong_sizes_are_refused():
    w0, weights = toy_weights()
    with pytest.raises(ValueError, match="w0: expected"):
        HVAE.make(NET, weights, w0[:-1])
    with pytest.raises(ValueError, match="weights: expected"):
        HVAE.make(NET, weights[..., 1:], w0)
    model = HVAE.make(NET, weights, w0, SMALL)
    with pytest.raises(ValueError, match=r"expected latents \[T, 3\], got \[3\]"):
        model(torch.zeros(3))
    with pytest.raises(ValueError, match="expected weights"):
        model.encode(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "config",
    [SMALL, HVAEConfig(latent_size=3, hidden=(16,)), SPANNED, replace(SPANNED, scale="dimension", decoder_hidden=())],
)
def test_the_squared_error_is_that_of_the_decoded_weights(config):
    w0, weights = toy_weights(noise=0.3)
    model = HVAE.make(NET, weights, w0, config).double()
    w, z = weights[0].double(), torch.randn(40, 3, generator=rng(1), dtype=torch.float64).requires_grad_()
    given = [z, *model.decoder.parameters()]
    fast = model.squared_error(z, model.read(w))
    plain = ((model(z) - w) / model.scaler.std).square().sum(1)
    exact = {} if model.unit is None else dict(rtol=1e-5, atol=1e-5)  # directions have the precision of float32
    torch.testing.assert_close(fast, plain, **exact)
    for pair in zip(*(torch.autograd.grad(found @ torch.arange(40.0).double(), given) for found in (fast, plain))):
        torch.testing.assert_close(*pair, **exact)


# a decoder of components


def spanned(frozen=False, **changes):
    w0, weights = toy_weights(noise=0.3)
    model = HVAE.make(NET, weights, w0, replace(SPANNED, **changes)).double().requires_grad_(not frozen)
    with torch.no_grad():  # biases begin at 0; so nothing that forgets them is found out
        for layer in model.encoder[0], model.decoder[0], model.decoder[-1]:
            layer.bias.normal_(generator=rng(3))
    return model, weights.double()


SPANS = pytest.mark.parametrize(
    "changes", [{}, dict(activation="relu"), dict(decoder_hidden=(), scale="dimension"), dict(components=30)]
)


@SPANS
def test_decoded_components_are_weights_in_the_span_of_the_directions(changes):
    "Plainly: project back, undo the scale. The way for training and the way for a frozen model agree."
    z = torch.randn(7, 3, generator=rng(1), dtype=torch.float64)
    (model, weights), (frozen, _) = spanned(**changes), spanned(frozen=True, **changes)
    directions = torch.linalg.qr(model.project).Q
    y = model.decoder(z)
    u = (y * model.unit) @ (model.project * model.unit).T
    expected = u * model.scaler.std + model.scaler.mean
    for some in model, frozen:
        torch.testing.assert_close(some(z), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(u @ directions @ directions.T, u, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.read(model(z))[:, :-1], y, rtol=1e-4, atol=1e-5)  # read again: the same components
    assert model.read(model(z))[:, -1].abs().max() < 1e-5  # and nothing outside
    assert model.posterior(model.read(weights[0]))[0].shape == (40, 3)


@SPANS
def test_the_last_layer_of_a_decoder_of_components_makes_its_weights(changes):
    model, _ = spanned(**changes)
    z = torch.randn(7, 3, generator=rng(1), dtype=torch.float64)
    features, matrix, offset = model.last_layer()
    torch.testing.assert_close(features(z) @ matrix.T + offset, model(z), rtol=1e-6, atol=1e-6)


def test_the_product_of_the_last_two_layers_is_made_once_and_again_after_every_change():
    model, _ = spanned()
    z, same = torch.randn(7, 3, generator=rng(1), dtype=torch.float64), lambda: model.requires_grad_(False)(z)
    first = model.head
    assert model.head is first and "head" not in "".join(model.state_dict())
    adam = torch.optim.Adam(model.requires_grad_(True).parameters(), lr=0.1)
    model(z).square().sum().backward()
    adam.step()
    changed = model(z).detach()
    torch.testing.assert_close(same(), changed, rtol=1e-6, atol=1e-6)
    other, _ = spanned()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(same(), other(z).detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.float()(z.float()), other(z).float(), rtol=1e-4, atol=1e-4)


def test_reading_weights_keeps_their_length():
    model, weights = spanned()
    x, u = model.read(weights), model.scaler.encode(weights)
    assert list(x.shape) == [3, 40, 6]
    whole = model.unit**2 * (x[..., :-1].square().sum(-1) + x[..., -1])
    torch.testing.assert_close(whole, u.square().sum(-1), rtol=1e-5, atol=1e-5)


def test_what_is_read_once_trains_as_what_is_read_at_every_step(toy):
    "Training keeps components instead of weights; its losses are those of `hvae_loss` on the weights themselves."
    tasks, seen, w0, weights = toy
    config = HVAELoss(beta=0.1, batch=8)
    model, plain = (HVAE.make(NET, weights, w0, SPANNED) for _ in range(2))
    steps = train_hvae(model, weights, tasks, seen, TrainConfig(steps=5), config)
    adam, losses = torch.optim.Adam(plain.parameters(), lr=1e-3), []
    for step in range(5):
        with own_randomness(0, step, [*plain.parameters()]) as generator:
            view, task = (torch.randint(n, (8,), generator=generator) for n in (3, 40))
            loss = hvae_loss(plain, weights[view, task], None, config, generator)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
        adam.step()
        losses.append(loss.item())
    assert run(steps) == pytest.approx(losses, rel=1e-4)
    assert not any("project" in name for name in steps.state_dict())  # a checkpoint holds what changes


# the loss


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_kl_equals_that_of_torch(seed):
    mean, log_var = 3 * torch.randn(2, 4, 5, generator=rng(seed)).double()
    q, p = Normal(mean, (log_var / 2).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl_to_prior(mean, log_var), kl_divergence(Independent(q, 1), Independent(p, 1)))


def test_posterior_draws_have_the_moments_and_pass_gradients():
    mean, std = torch.tensor([1.0, -2.0]).requires_grad_(), torch.tensor([0.5, 2.0]).requires_grad_()
    z = sample_posterior(mean.expand(50_000, -1), std.expand(50_000, -1), rng(), temperature=0.5)
    torch.testing.assert_close(z.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(z.std(0), std / 2, atol=0.02, rtol=0)
    to_mean, to_std = torch.autograd.grad(z.square().mean(0).sum(), (mean, std))  # of m² + s²/4: 2m and s/2
    torch.testing.assert_close(to_mean, 2 * mean.detach(), atol=0.05, rtol=0)
    torch.testing.assert_close(to_std, std.detach() / 2, atol=0.05, rtol=0)
    assert torch.equal(sample_posterior(mean, std, rng(), 0.0), mean)


@pytest.mark.parametrize("config", [SMALL, SPANNED])
@pytest.mark.parametrize("kind, mix", [("weights", 0.0), ("weights", 0.3), ("task", 0.0), ("task", 0.2)])
def test_the_loss_equals_a_loop_over_networks(toy, kind, mix, config):
    tasks, seen, w0, weights = toy
    model = HVAE.make(NET, weights, w0, config).double()
    ids, w = torch.tensor([4, 0, 17]), weights[1, [4, 0, 17]].double()
    whole = TaskSet(tasks.tasks, tasks.bank, dtype=torch.float64).batch(ids, "all")
    held_out = examples_under(whole, ~seen[1, ids], 25, rng())
    got = hvae_loss(model, w, held_out, HVAELoss(loss=kind, beta=0.7, mix=mix), rng(5))
    noise, total = torch.randn(3, 3, generator=rng(5), dtype=torch.float64), 0.0
    for row in range(3):
        mean, log_var = model.encode(w[row])
        decoded = model((mean + (log_var / 2).exp() * noise[row])[None])
        kl = sum((m**2 + s.exp() - 1 - s) / 2 for m, s in zip(mean, log_var))
        in_weights = sum(((a - b) / s) ** 2 for a, b, s in zip(decoded[0], w[row], model.scaler.std)) / P**0.5
        nats = task_loss(decoded, held_out.select(torch.tensor([row])), NET)[0]
        total += (
            in_weights + 0.7 * kl / P**0.5 + mix * nats if kind == "weights" else nats + 0.7 * kl + mix * in_weights
        )
    torch.testing.assert_close(got, total / 3, rtol=1e-7 if config is SMALL else 1e-5, atol=1e-7)


def test_the_published_loss_is_a_negative_elbo_up_to_a_constant(toy):
    _, _, w0, weights = toy
    model, config = HVAE.make(NET, weights, w0, HVAEConfig(latent_size=3, hidden=(16,))).double(), HVAELoss(beta=1.0)
    w, differences = weights[0, :6].double(), []
    for scale in (1.0, 2.0):  # two different models: the constant must be the same
        with torch.no_grad():
            model.decoder[-1].weight.mul_(scale)
        mean, log_var = model.encode(w)
        decoded = model(sample_posterior(mean, (log_var / 2).exp(), rng(1)))
        log_likelihood = Normal(decoded, model.scaler.std / 2**0.5).log_prob(w).sum(1)
        elbo = (log_likelihood - kl_to_prior(mean, log_var)).mean()
        differences.append(P**0.5 * hvae_loss(model, w, None, config, rng(1)) + elbo)
    torch.testing.assert_close(*differences)


# training

CONFIG = TrainConfig(steps=300, lr=5e-3, schedule="linear")


@pytest.fixture(scope="module")
def trained(toy):
    tasks, seen, w0, weights = toy
    model = HVAE.make(NET, weights, w0, SMALL)
    fixed = lambda: hvae_loss(model, weights.flatten(0, 1), None, HVAELoss(beta=0.1), rng(9)).item()
    bounds = [fixed()]
    for update in train_hvae(model, weights, tasks, seen, CONFIG, HVAELoss(beta=0.1)):
        if update.step % 100 == 0:
            bounds.append(fixed())
    return model.requires_grad_(False), bounds


def test_the_elbo_improves_and_weights_come_back(toy, trained):
    _, _, w0, weights = toy
    model, bounds = trained
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < bounds[0] / 10
    flat = weights.flatten(0, 1)
    error = (model(model.encode(flat)[0]) - flat).square().sum() / (flat - flat.mean(0)).square().sum()
    assert error < 0.05  # three latent dimensions for weights of rank three
    assert (model(model.z0[None])[0] - w0).norm() < 0.2 * (flat - w0).norm(dim=1).mean()


def test_latents_are_the_posteriors_in_pieces(toy, trained):
    _, _, _, weights = toy
    mean, std = hvae_latents(trained[0], weights, chunk=7)
    whole_mean, log_var = trained[0].encode(weights)
    torch.testing.assert_close(mean, whole_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std.square().log(), log_var, atol=1e-4, rtol=1e-4)


def test_the_tasks_loss_trains_the_decoder_on_examples_outside_the_view(toy):
    tasks, seen, w0, weights = toy
    weights = w0 + 0.1 * (weights - w0)
    model, held_out = HVAE.make(NET, weights, w0, SMALL), tasks.batch(tasks.all_ids, "all")
    held_out = examples_under(held_out, ~seen[0], 25, rng())
    loss = lambda: task_loss(model(model.encode(weights[0])[0]), held_out, NET).mean().item()
    before, drawn = loss(), []
    steps = train_hvae(
        model,
        weights,
        tasks,
        seen,
        TrainConfig(steps=60, lr=3e-3),
        HVAELoss(loss="task", beta=0.01, batch=16, examples=3),
    )
    draw = steps.batches
    steps.batches = lambda generator: drawn.append(draw(generator)) or drawn[-1]
    run(steps)
    assert loss() < before - 0.1
    assert len(drawn) == 60
    for w, batch in drawn[:5]:
        assert batch.mask.sum(1).tolist() == [3] * 16
        for row, task in enumerate(batch.index.tolist()):
            (view,) = [
                v for v in range(3) if torch.equal(weights[v, task], w[row])
            ]  # rows of weights and of examples agree
            whole = tasks.batch(torch.tensor([task]), "all").images[0]
            is_seen = {tuple(image.tolist()) for image in whole[seen[view, task]]} - {
                tuple(i.tolist()) for i in whole[~seen[view, task]]
            }
            assert not any(tuple(image.tolist()) in is_seen for image in batch.images[row])


@pytest.mark.parametrize("decodes", ["weights", "components"])
@pytest.mark.parametrize("kind", ["weights", "task"])
def test_the_same_seeds_give_the_same_model_also_after_a_kill(toy, tmp_path, kind, decodes):
    tasks, seen, w0, weights = toy

    def start(seed=0):
        model = HVAE.make(NET, weights, w0, replace(SPANNED, activation="relu", decodes=decodes), seed)
        return model, train_hvae(model, weights, tasks, seen, TrainConfig(steps=20, seed=seed), HVAELoss(loss=kind))

    (model, steps), (_, half), (resumed, rest), (_, others) = start(), start(), start(), start(1)
    whole = run(steps)
    half = checkpointed(half, tmp_path / "state", {"x": 1}, every=10)
    for _ in range(10):
        next(half)
    assert run(checkpointed(rest, tmp_path / "state", {"x": 1})) == whole != run(others)
    for (name, a), b in zip(model.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


def test_training_reads_batches_from_a_mapped_file(toy, tmp_path):
    tasks, seen, w0, weights = toy
    mapped = (
        torch.from_file(str(tmp_path / "weights"), shared=True, size=weights.numel()).view(weights.shape).copy_(weights)
    )
    losses = []
    for source in (weights, mapped):
        model = HVAE.make(NET, source, w0, SMALL)
        losses.append(run(train_hvae(model, source, tasks, seen, TrainConfig(steps=5))))
    assert losses[0] == losses[1]


def test_training_refuses_what_does_not_fit(toy):
    tasks, seen, w0, weights = toy
    model = HVAE.make(NET, weights, w0, SMALL)
    with pytest.raises(ValueError, match=rf"weights: expected \[3, 40, {P}\]"):
        train_hvae(model, weights[:2], tasks, seen)
    with pytest.raises(ValueError, match=rf"weights: expected \[V, T, {P}\]"):
        train_hvae(model, weights[0])
    train_hvae(model, weights)
    with pytest.raises(ValueError, match="tasks, seen: expected both for the task's loss"):
        train_hvae(model, weights, config=HVAELoss(loss="task"))
    with pytest.raises(ValueError, match="seen: expected bool"):
        train_hvae(model, weights, tasks, seen[..., :-1])
    everything = draw_views(tasks, views=3, fraction=(1.0, 1.0))
    train_hvae(model, weights, tasks, everything)  # the weights' loss needs no examples
    with pytest.raises(ValueError, match="got 120 views without any"):
        train_hvae(model, weights, tasks, everything, config=HVAELoss(loss="task"))
    with pytest.raises(ValueError, match="held-out"):
        train_hvae(model, weights, tasks, everything, config=HVAELoss(mix=0.5))
