"Scores, ensembles, the bootstrap by cells and calibration against enumeration, by-hand sums and the textbook."

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.dataset.tasks import cells_of
from hyperclip_nb.evaluation.calibration import (
    BOUNDS,
    Predictions,
    calibration_error,
    confidence_bins,
    fit_temperature,
    judge,
    tempered,
)
from hyperclip_nb.evaluation.statistics import (
    Bootstrap,
    best_on,
    by_group,
    ensemble,
    holm,
    intraclass,
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


def clustered(sizes, correlation, tables, seed=0):
    "Invented scores [tables, T] with a true mean of 0 and variance 1, and the cell of each task."
    cell = torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)])
    g = torch.Generator().manual_seed(seed)
    normal = lambda n: torch.randn(tables, n, generator=g, dtype=torch.float64)
    scores = correlation**0.5 * normal(len(sizes))[:, cell] + (1 - correlation) ** 0.5 * normal(len(cell))
    return scores, [f"cell {i}" for i in cell.tolist()]


def test_intervals_by_cells_hold_the_truth_where_those_by_questions_do_not():
    scores, cells = clustered([1, 2, 3, 4, 8] * 20, 0.5, tables=1000)

    def covered(groups):
        draws = Bootstrap(len(cells), resamples=1000, groups=groups)
        means = scores @ draws.task_weights.T
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1)
        return ((low <= 0) & (high >= 0)).double().mean().item()

    assert 0.92 < covered(cells) < 0.98 and covered(None) < 0.85


@given(shapes)
@settings(max_examples=20, deadline=None)
def test_cells_of_one_question_are_the_bootstrap_of_questions(shape):
    seeds, tasks, seed = shape
    scores = table(*shape)
    alone = Bootstrap(tasks, seeds, resamples=200, seed=seed)
    cells = Bootstrap(tasks, seeds, resamples=200, seed=seed, groups=[f"q{i}" for i in range(tasks)])
    assert torch.equal(alone.means(scores), cells.means(scores)) and cells.cells == tasks


def test_a_cell_is_drawn_as_a_whole_and_every_question_drawn_counts_the_same():
    cells = list("aabccc")
    draws = Bootstrap(6, resamples=500, groups=cells)
    assert draws.cells == 3
    torch.testing.assert_close(draws.task_weights.sum(1), torch.ones(500, dtype=torch.float64))
    assert (draws.task_weights[:, 0] == draws.task_weights[:, 1]).all()
    for row in draws.task_weights:
        times = {c: row[cells.index(c)] for c in "abc"}
        present = [w for w in times.values() if w > 0]
        assert len(present) <= 2 and all(
            max(present) / w == pytest.approx(round((max(present) / w).item())) for w in present
        )


def test_intraclass_correlation_is_found_and_is_the_textbook_one():
    for correlation in (0.0, 0.3, 0.8):
        scores, cells = clustered([1, 2, 3, 5] * 25, correlation, tables=300, seed=1)
        found = torch.tensor([intraclass(row, cells) for row in scores])
        assert found.mean().item() == pytest.approx(correlation, abs=0.03)
    balanced = torch.tensor([9.0, 7, 2, 4, 5, 6])  # cells of two: mean squares by hand
    between, within = 2 * ((8 - 5.5) ** 2 + (3 - 5.5) ** 2) / 2, (2 * 1 + 2 * 1 + 2 * 0.25) / 3
    assert intraclass(balanced, list("aabbcc")) == pytest.approx((between - within) / (between + within))
    assert intraclass(torch.ones(2, 3), ["a", "b", "c"]) is None and intraclass(torch.ones(4), list("aabb")) is None
    assert intraclass(torch.stack([balanced, balanced]), list("aabbcc")) == intraclass(balanced, list("aabbcc"))


def test_p_values_agree_with_intervals_and_holm_with_its_textbook():
    scores, draws = table(2, 30, 4) - 45, Bootstrap(30, 2, resamples=2000)
    for level in (0.5, 0.9, 0.99):
        low, high = draws.interval(scores, level)
        step = 0.05 * (high - low)
        for bound, inside in ((low - step, False), (low + step, True), (high - step, True), (high + step, False)):
            assert (draws.p_value(scores, bound) > 1 - level) == inside
    assert draws.p_value(torch.zeros(30)) == 1 and draws.p_value(torch.ones(30)) == pytest.approx(2 / 2001)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def test_cells_of_tasks_without_one_are_their_questions():
    task = lambda question, cell: type("Task", (), {"question": question, "cell": cell})()
    assert cells_of([task("What?", ""), task("Who?", "a/b"), task("Why?", "a/b")]) == ["What?", "a/b", "a/b"]


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


def test_probabilities_are_averaged_unless_asked_otherwise():
    logits = 50 * torch.randn(10, 4, 6, generator=torch.Generator().manual_seed(0))
    logits[..., 5] = -torch.inf
    plain = torch.stack([network.softmax(-1) for network in logits]).mean(0)
    torch.testing.assert_close(ensemble(logits).exp(), plain)
    assert torch.equal(ensemble(logits).argmax(-1), plain.argmax(-1))


def predicted(tasks=40, images=25, answers=5, sure=1.0, seed=0):
    "Networks whose answers are right as often as they say, if `sure` is 1; above it they say too much."
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(tasks, images, answers, generator=g)
    labels = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=g).view(tasks, images)
    mask = torch.arange(images) < torch.randint(5, images + 1, (tasks, 1), generator=g)
    return Predictions((sure * logits).log_softmax(-1), labels * mask, mask, torch.arange(tasks))


def test_nll_and_bins_are_those_of_a_loop():
    some, sums = predicted(7), torch.zeros(15, 3, dtype=torch.float64)
    nll = []
    for log_probs, labels, mask in zip(tempered(some.log_probs, 1.7), some.labels, some.mask):
        nll.append(-sum(log_probs[n, labels[n]].item() for n in range(25) if mask[n]) / mask.sum().item())
        for n in mask.nonzero()[:, 0]:
            p = log_probs[n].exp().max().item()
            which = next(b for b in range(15) if p <= (b + 1) / 15)
            sums[which] += torch.tensor([1, p, float(log_probs[n].argmax() == labels[n])])
    parts = [Predictions(*(getattr(some, f)[rows] for f in vars(some))) for rows in (slice(3, 7), slice(0, 3))]
    found = judge(parts, 7, 1.7)
    torch.testing.assert_close(found.nll, torch.tensor(nll, dtype=torch.float64))
    torch.testing.assert_close(found.bins, sums, atol=1e-5, rtol=0)
    error = sum(n / sums[:, 0].sum() * abs(c / n - r / n) for n, c, r in sums if n)
    assert calibration_error(found.bins).item() == pytest.approx(100 * error.item())


def test_edges_of_bins():
    bins = confidence_bins(
        torch.tensor([0.0, 1 / 15, 0.0667, 1.0], dtype=torch.float64), torch.tensor([True, False, True, True])
    )
    assert bins[:, 0].tolist() == [2, 1, *[0] * 11, 0, 1] and bins[:, 2].sum() == 3


@pytest.mark.parametrize("sure", [0.4, 1.0, 4.0])
def test_the_temperature_is_found_and_is_the_minimum(sure):
    some = predicted(300, sure=sure)
    some.log_probs[:, :, -1] = -torch.inf  # a padded answer
    some = Predictions(some.log_probs.log_softmax(-1), some.labels.clamp(max=3), some.mask, some.index)
    t = fit_temperature([some])
    nll = lambda t: judge([some], 300, t).nll.mean().item()
    assert nll(t) < min(nll(0.99 * t), nll(1.01 * t)) and BOUNDS[0] < t < BOUNDS[1]
    honest = predicted(300, sure=sure)
    assert fit_temperature([honest]) == pytest.approx(sure, rel=0.08)


def test_a_row_that_is_never_wrong_gets_the_bound():
    some = predicted()
    always = Predictions(some.log_probs, some.log_probs.argmax(-1), some.mask, some.index)
    assert fit_temperature([always]) == pytest.approx(BOUNDS[0])


def test_best_on():
    assert best_on([({"a": 1}, 3.0), ({"a": 2}, 3.0)]) == {"a": 1}
    assert best_on(({"a": a}, torch.tensor([float(a), -a / 2])) for a in (1, 5, 2)) == {"a": 5}
    settings = {"a": 1}
    assert best_on([(settings, 0.0)]) is not settings  # recorded values must not change later
    for nothing in ([], [({"a": 1}, math.nan)]):
        with pytest.raises(ValueError, match="finite"):
            best_on(nothing)
