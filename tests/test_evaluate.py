"Scores, ensembles and the bootstrap against enumeration, by-hand sums and the textbook."

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.evaluation.statistics import (
    Bootstrap,
    best_on,
    by_group,
    ensemble,
    percent,
    resample_weights,
    sample_pooled,
    task_averaged,
)


def table(seeds, tasks, seed):
    return 100 * torch.rand(seeds, tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


shapes = st.tuples(st.integers(1, 4), st.integers(2, 12), st.integers(0, 10_000))


@given(shapes, st.floats(-50, 50), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_interval_is_equivariant_and_inside_the_data(shape, shift, factor):
    scores, draws = table(*shape), Bootstrap(shape[1], shape[0], resamples=500, seed=1)
    low, high = draws.interval(scores)
    assert scores.min() - 1e-9 <= low <= high <= scores.max() + 1e-9
    moved = draws.interval(factor * scores + shift)
    expected = sorted((factor * low + shift, factor * high + shift))
    assert moved == pytest.approx(tuple(expected), abs=1e-6)


@given(shapes)
@settings(max_examples=30, deadline=None)
def test_differences_are_paired(shape):
    seeds, tasks, seed = shape
    a, b, draws = table(seeds, tasks, seed), table(seeds, tasks, seed + 1), Bootstrap(tasks, seeds, resamples=300)
    torch.testing.assert_close(draws.means(a - b), draws.means(a) - draws.means(b))
    assert draws.interval(a - a) == (0, 0)
    assert draws.interval(a + 7 - a) == pytest.approx((7, 7))


@given(shapes)
@settings(max_examples=20, deadline=None)
def test_wider_level_wider_interval_and_same_seed_same_interval(shape):
    scores = table(*shape)
    draws = Bootstrap(shape[1], shape[0], resamples=300, seed=5)
    (low, high), (lower, higher) = draws.interval(scores, 0.8), draws.interval(scores, 0.99)
    assert lower <= low and high <= higher
    assert Bootstrap(shape[1], shape[0], resamples=300, seed=5).interval(scores, 0.8) == (low, high)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_weights_are_shares_of_n_minus_one_draws(n):
    weights = resample_weights(n, 1000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.sum(1), torch.ones(1000, dtype=torch.float64))
    counts = weights * max(1, n - 1)
    torch.testing.assert_close(counts, counts.round())
    torch.testing.assert_close(weights.mean(0), torch.full((n,), 1 / n, dtype=torch.float64), atol=0.03, rtol=0)


@pytest.mark.parametrize("seeds, tasks", [(1, 4), (2, 3), (3, 3)])
def test_agrees_with_all_draws(seeds, tasks):
    scores = table(seeds, tasks, 3)
    over = lambda n: list(itertools.product(range(n), repeat=n - 1)) if n > 1 else [(0,)]
    exact = torch.stack([scores[list(s)][:, list(t)].mean() for s in over(seeds) for t in over(tasks)])
    drawn = Bootstrap(tasks, seeds, resamples=200_000, seed=2).means(scores)
    spread = exact.std(correction=0)
    assert abs(drawn.mean() - exact.mean()) < 4 * spread / math.sqrt(200_000)
    assert drawn.std() / spread == pytest.approx(1, abs=0.01)
    for share in (0.1, 0.5, 0.9):  # the whole distribution, between its atoms
        exact_share = lambda x: (exact <= x + 1e-9).double().mean()
        x = exact.quantile(share)
        assert (drawn <= x + 1e-9).double().mean() == pytest.approx(exact_share(x).item(), abs=0.01)


def test_standard_error_of_many_tasks_is_the_textbook_one():
    scores = table(1, 225, 0)
    draws = Bootstrap(225).means(scores)
    assert draws.std() == pytest.approx((scores.std() / 15).item(), rel=0.03)
    low, high = Bootstrap(225).interval(scores)
    assert high - low == pytest.approx(2 * 1.96 * scores.std().item() / 15, rel=0.05)


def test_seeds_widen_the_interval_only_if_they_differ():
    tasks = table(1, 50, 0)
    same, apart = tasks.expand(3, -1), tasks + torch.tensor([[-10.0], [0.0], [10.0]], dtype=torch.float64)
    width = lambda scores, seeds: (lambda ends: ends[1] - ends[0])(Bootstrap(50, seeds).interval(scores))
    assert width(same, 3) == pytest.approx(width(tasks, 1), rel=0.05)
    assert width(apart, 3) > 1.5 * width(same, 3)
    draws = Bootstrap(50, 3)
    assert draws.interval(tasks) == pytest.approx(draws.interval(same))  # [1, T] stands for all seeds


def test_pairing_is_tighter_when_tasks_are_shared():
    difficulty, g = table(1, 100, 0), torch.Generator().manual_seed(1)
    a, b = (difficulty + torch.randn(3, 100, generator=g) for _ in range(2))
    paired, unpaired = Bootstrap(100, 3).means(a - b), Bootstrap(100, 3).means(a) - Bootstrap(100, 3, seed=1).means(b)
    assert paired.std() < 0.1 * unpaired.std()


def test_bootstrap_refuses():
    with pytest.raises(ValueError, match="at least 2 tasks"):
        Bootstrap(1)
    with pytest.raises(ValueError, match=r"expected scores \[3, 5\] or \[1, 5\], got \[2, 5\]"):
        Bootstrap(5, 3, 10).means(torch.zeros(2, 5))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_averages_by_hand(counts):
    n = torch.tensor([n for n, _ in counts])
    correct = torch.tensor([min(n, c) for n, c in counts])
    scores = percent(correct, n)
    assert scores.shape == (1, len(counts)) and scores.dtype == torch.float64
    assert task_averaged(scores).item() == pytest.approx(
        100 * sum(c / m for c, m in zip(correct.tolist(), n.tolist())) / len(counts)
    )
    assert sample_pooled(scores, n).item() == pytest.approx(100 * correct.sum().item() / n.sum().item())


@pytest.mark.parametrize("correct, n", [([5], [4]), ([-1], [4]), ([0], [0]), ([math.nan], [4])])
def test_percent_refuses_impossible_counts(correct, n):
    with pytest.raises(ValueError, match=r"tasks \[0\]"):
        percent(torch.tensor(correct), torch.tensor(n))


def test_percent_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"got \[1, 3\] and \[2\]"):
        percent(torch.ones(3), torch.ones(2))


def test_groups_partition_the_tasks():
    scores = table(2, 6, 0)
    groups = by_group(scores, list("abcabc"))
    assert list(groups) == ["a", "b", "c"]
    torch.testing.assert_close(groups["b"], scores[:, [1, 4]])
    with pytest.raises(ValueError, match="6 groups"):
        by_group(scores, ["a"])


@pytest.mark.parametrize("how", ["log_probs", "probs"])
def test_ensemble_by_hand(how):
    logits = 4 * torch.randn(5, 3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probs = logits.softmax(-1)
    mean = probs.mean(0) if how == "probs" else probs.prod(0) ** (1 / 5)
    torch.testing.assert_close(ensemble(logits, how).exp(), mean / mean.sum(-1, keepdim=True))
    torch.testing.assert_close(ensemble(logits[:1], how), logits[0].log_softmax(-1))  # one network is itself
    torch.testing.assert_close(ensemble(logits.flip(0), how), ensemble(logits, how))  # order is nothing
    shifted = logits + 9 * torch.rand(5, 3, 7, 1, dtype=torch.float64)  # nor is a constant
    torch.testing.assert_close(ensemble(shifted, how), ensemble(logits, how))


def test_best_on():
    assert best_on([({"a": 1}, 3.0), ({"a": 2}, 3.0)]) == {"a": 1}
    assert best_on(({"a": a}, torch.tensor([float(a), -a / 2])) for a in (1, 5, 2)) == {"a": 5}
    settings = {"a": 1}
    assert best_on([(settings, 0.0)]) is not settings  # recorded values must not change later
    for nothing in ([], [({"a": 1}, math.nan)]):
        with pytest.raises(ValueError, match="finite"):
            best_on(nothing)
