"The training loop against hand-written ones, and its state against a run that was not interrupted."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyperclip_nb.core.seeds import seeded, step_seed
from hyperclip_nb.core.training import EMA, TrainConfig, Update, fit, keep_best, last, lr_at, progress, run, track_ema


def net(seed=0, dropout=0.2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def batches(generator):
    x = torch.randn(16, 3, generator=generator)
    return x, 3 * x.sum(1, keepdim=True)


def loss_of(model):
    return lambda batch, generator: (
        (model(batch[0]) + 0.1 * torch.randn(16, 1, generator=generator) - batch[1]).square().mean()
    )


def wrapped(config, seed=0):
    "A loop with every layer that remembers something."
    model = net(seed)
    ema = EMA(model, decay=0.9, after=3)
    loop = track_ema(fit(model, loss_of(model), batches, config), model, ema)
    return model, ema, keep_best(loop, ema.module, lambda: -ema.module[0].weight.norm().item(), every=7)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- seeds


@given(st.integers(-(2**63), 2**63), st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=3))
def test_seeds_fit_torch_and_differ_by_every_name(seed, names):
    value = step_seed(seed, *names)
    assert 0 <= value < 2**63
    assert value == step_seed(seed, *names)
    assert value != step_seed(seed, *names, 0) and value != step_seed(seed + 1, *names)
    torch.Generator().manual_seed(value)


def test_seeds_are_the_same_everywhere():
    assert step_seed(0, "noise") == 7247063429170846740


def test_seed_names_are_words_and_whole_numbers():
    assert step_seed(0, torch.tensor(3)) == step_seed(0, 3)
    with pytest.raises(TypeError):
        step_seed(0, 0.5)


# --- configuration


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"clip": 0.0},
        {"clip": math.nan},
        {"weight_decay": -1.0},
        {"schedule": "step"},
        {"warmup": 2000},
        {"warmup": -1},
        {"seed": "0"},
    ],
)
def test_wrong_configurations_are_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=name) as error:
        TrainConfig(**wrong)
    assert repr(value) in str(error.value)


@given(st.integers(1, 50), st.data(), st.sampled_from(["constant", "linear", "cosine"]))
def test_the_schedule_rises_then_falls_and_is_never_zero(steps, data, schedule):
    warmup = data.draw(st.integers(0, steps - 1))
    config = TrainConfig(steps=steps, warmup=warmup, schedule=schedule)
    factors = [lr_at(k, config) for k in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[warmup] == 1
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1]) and len(set(factors[: warmup + 1])) == warmup + 1
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


# --- the loop


@pytest.mark.parametrize("weight_decay, optimizer", [(0.0, torch.optim.Adam), (0.1, torch.optim.AdamW)])
def test_fit_is_the_loop_one_would_write(weight_decay, optimizer):
    config = TrainConfig(steps=30, lr=1e-2, clip=1.0, weight_decay=weight_decay, schedule="cosine", warmup=5, seed=4)
    ours, reference = (net(dropout=0) for _ in range(2))
    for model in (ours, reference):
        model[1] = nn.Identity()  # before a batch norm, the gradient of a bias is rounding noise, which Adam blows up
    updates = list(fit(ours, loss_of(ours), batches, config))

    adam = optimizer(reference.parameters(), weight_decay=weight_decay)
    for k, update in enumerate(updates):
        generator = seeded(4, "step", k)
        loss = loss_of(reference)(batches(generator), generator)
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adam.param_groups[0]["lr"] = 1e-2 * lr_at(k, config)
        adam.step()
        assert update.step == k + 1
        assert (update.loss, update.grad_norm, update.lr) == pytest.approx(
            (loss.item(), norm.item(), adam.param_groups[0]["lr"]), rel=1e-4
        )
    assert any(u.grad_norm > 1 for u in updates)
    for a, b in zip(ours.parameters(), reference.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_update_is_yielded_after_the_step():
    w = nn.Parameter(torch.zeros(2))
    loop = fit(w, lambda batch, generator: w.sum(), lambda generator: None, TrainConfig(steps=2, lr=0.5))
    assert w.tolist() == [0, 0]
    assert next(loop).loss == 0
    torch.testing.assert_close(w.detach(), torch.full((2,), -0.5))


def test_groups_have_their_own_rates_and_a_tensor_is_a_group():
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    config = TrainConfig(steps=10, lr=1e-3, schedule="linear")
    groups = [{"params": slow}, {"params": iter([fast]), "lr": 1e-1}]
    run(fit(groups, lambda batch, generator: (slow + fast).sum(), lambda generator: None, config))
    torch.testing.assert_close(fast.detach(), 100 * slow.detach())


def test_frozen_parameters_stay():
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    run(fit(model, loss_of(model), batches, TrainConfig(steps=3)))
    assert torch.equal(model[0].weight, before)


def test_the_global_generator_is_untouched_and_unheard():
    torch.manual_seed(1)
    expected = torch.rand(3)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = net()
        losses.append(run(fit(model, loss_of(model), batches, TrainConfig(steps=5))))
        if seed == 1:
            assert torch.equal(torch.rand(3), expected)
    assert losses[0] == losses[1]


def test_dropout_and_noise_do_not_share_a_stream():
    seen = {}

    def loss(batch, generator):
        seen["own"], seen["global"] = torch.rand(1000, generator=generator), torch.rand(1000)
        return w.sum()

    w = nn.Parameter(torch.zeros(1))
    next(fit(w, loss, lambda generator: None, TrainConfig()))
    assert abs(torch.corrcoef(torch.stack([seen["own"], seen["global"]]))[0, 1]) < 0.2


def test_another_seed_gives_other_batches():
    a, b = (run(fit(m, loss_of(m), batches, TrainConfig(steps=3, seed=seed))) for seed, m in ((0, net()), (1, net())))
    assert a != b


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(bad):
    w = nn.Parameter(torch.ones(2))
    batches = lambda generator: torch.tensor([1.0, bad if loop.step == 3 else 1.0])
    loop = fit(w, lambda batch, generator: (w * batch).sum(), batches, TrainConfig())
    for _ in range(3):
        next(loop)
    before = w.detach().clone()
    with pytest.raises(FloatingPointError, match="step 4"):
        next(loop)
    assert torch.equal(w.detach(), before)


# --- state


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 40), st.sampled_from([0.0, 0.1]))
def test_resumed_at_any_step_it_ends_in_the_same_bits(kill, weight_decay):
    config = TrainConfig(steps=40, lr=1e-2, clip=1.0, weight_decay=weight_decay, schedule="cosine", warmup=4)
    model, ema, loop = wrapped(config)
    expected = list(loop)
    _, _, first = wrapped(config)
    before = [next(first) for _ in range(kill)]
    state = {k: v.clone() for k, v in first.state_dict().items()}
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    model2, ema2, second = wrapped(config, seed=9)
    second.load_state_dict(state)
    assert before + list(second) == expected
    assert same(model.state_dict(), model2.state_dict()) and same(ema.module.state_dict(), ema2.module.state_dict())
    assert (loop.best_step, loop.best_score) == (second.best_step, second.best_score)


def test_parameters_without_a_module_are_resumed_too():
    def make():
        w = nn.Parameter(torch.ones(3))
        draw = lambda generator: torch.randn(3, generator=generator)
        return w, fit([w], lambda batch, generator: (w - batch).square().sum(), draw, TrainConfig(steps=20))

    w, loop = make()
    expected = list(loop)
    _, loop = make()
    before = [next(loop) for _ in range(8)]
    state = {k: v.clone() for k, v in loop.state_dict().items()}
    w2, loop = make()
    loop.load_state_dict(state)
    assert before + list(loop) == expected and torch.equal(w, w2)


def test_two_layers_that_would_overwrite_each_other_are_refused():
    model = net()
    loop = fit(model, loss_of(model), batches, TrainConfig(steps=2))
    twice = track_ema(track_ema(loop, model, EMA(model)), model, EMA(model))
    with pytest.raises(ValueError, match="overwrite"):
        twice.state_dict()
    with pytest.raises(ValueError, match="no state_dict"):
        track_ema((u for u in loop), model, EMA(model)).state_dict()


# --- wrappers


@given(st.floats(0, 1), st.integers(0, 5), st.integers(1, 12))
def test_ema_is_its_formula(decay, after, steps):
    model = nn.Linear(1, 1, bias=False)
    ema, mean, n = EMA(model, decay, after), None, 0
    for step in range(1, steps + 1):
        value = math.sin(3 * step)
        nn.init.constant_(model.weight, value)
        ema.update(model, step)
        d = min(decay, n / (n + 1))
        mean = value if mean is None else d * mean + (1 - d) * value
        n += step > after
        assert ema.module.weight.item() == pytest.approx(mean, abs=1e-5)


def test_ema_copies_buffers_and_does_not_train():
    model = net()
    ema = EMA(model)
    last(track_ema(fit(model, loss_of(model), batches, TrainConfig(steps=3)), model, ema))
    assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
    assert not any(p.requires_grad for p in ema.module.parameters())
    with pytest.raises(ValueError, match="decay"):
        EMA(model, decay=1.5)


def test_keep_best_scores_the_last_step_and_puts_the_best_back():
    w = nn.ParameterList([nn.Parameter(torch.zeros(1))])
    scores = iter([1.0, 5.0, 5.0, 2.0])
    loop = fit(w, lambda batch, generator: w[0].sum(), lambda generator: None, TrainConfig(steps=10, lr=1.0))
    loop = keep_best(loop, w, lambda: next(scores), every=3)
    seen = [w[0].item() for _ in loop]
    assert (loop.best_step, loop.best_score) == (6, 5.0)  # the first of two equals
    assert w[0].item() == seen[5]
    assert next(scores, None) is None


def test_a_score_that_is_no_number_is_refused():
    model = net()
    with pytest.raises(ValueError, match="step 1, got nan"):
        last(keep_best(fit(model, loss_of(model), batches, TrainConfig(steps=1)), model, lambda: math.nan))


def test_progress_hands_everything_on_and_knows_the_length(capsys):
    model = net()
    loop = fit(model, loss_of(model), batches, TrainConfig(steps=4))
    assert len(loop) == 4 and len(track_ema(loop, model, EMA(model))) == 4
    assert [u.step for u in progress(loop, desc="x")] == [1, 2, 3, 4]
    assert capsys.readouterr().err == ""  # nobody watches a captured stream
    assert list(progress(iter("ab"))) == ["a", "b"]


def test_run_and_last():
    updates = [Update(1, 2.0, 0.0, 0.1, 0.0), Update(2, 1.0, 0.0, 0.1, 9.9)]
    assert run(updates) == [2.0, 1.0] and last(updates).step == 2
    assert Update(1, 2.0, 0.0, 0.1, 0.0) == Update(1, 2.0, 0.0, 0.1, 7.0)  # seconds don't count
    with pytest.raises(ValueError, match="at least one"):
        last([])
