"Projections keep shapes and pool, purity is right by brute force, trajectories are drawn in their places."

import subprocess
import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection

from hyperclip_nb.plots.maps import (
    group_maps,
    knn_correlation,
    knn_purity,
    pool,
    project_pca,
    project_tsne,
    trajectory_grid,
    trajectory_plot,
    tsne_map,
    unpool,
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_pool_and_unpool_are_inverse(shapes):
    arrays = [np.random.default_rng(i).normal(size=(*shape, 2)) for i, shape in enumerate(shapes)]
    points, sizes = pool(*arrays)
    for array, back in zip(arrays, unpool(points, sizes), strict=True):
        np.testing.assert_array_equal(array, back)


def test_pca_is_the_first_two_directions():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 5)) * [9, 4, 1, 1, 1]
    first, path = project_pca(points[:40], torch.from_numpy(points[40:]).reshape(5, 4, 5))
    assert first.shape == (40, 2) and path.shape == (5, 4, 2)
    flat, centred = np.concatenate([first, path.reshape(-1, 2)]), points - points.mean(0)
    np.testing.assert_allclose(flat.var(0), np.linalg.eigvalsh(centred.T @ centred / 60)[:-3:-1], rtol=1e-6)


def test_tsne_is_seeded_and_keeps_neighbours():
    rng = np.random.default_rng(0)
    centres = 20 * rng.normal(size=(3, 60))
    points = np.repeat(centres, 20, 0) + rng.normal(size=(60, 60))  # wider than 50: reduced first
    flat, more = project_tsne(points, centres, perplexity=5)
    again, _ = project_tsne(points, centres, perplexity=5)
    np.testing.assert_array_equal(flat, again)
    groups = np.repeat(list("abc"), 20)
    assert knn_purity(flat, groups, 5)[0] > 0.95
    assert knn_purity(more, ["a", "b", "c"], 5, reference=flat, reference_groups=groups)[0] == 1


@given(st.integers(0, 100), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_purity_equals_brute_force(seed, k):
    rng = np.random.default_rng(seed)
    points, groups, owners = rng.normal(size=(20, 3)), rng.integers(0, 3, 20), np.repeat(np.arange(10), 2)
    allowed = owners[:, None] != owners
    pure, level = [], []
    for i in range(20):
        others = sorted(
            (j for j in range(20) if owners[j] != owners[i]), key=lambda j: np.linalg.norm(points[i] - points[j])
        )
        pure.append(np.mean([groups[j] == groups[i] for j in others[:k]]))
        level.append(np.mean([groups[j] == groups[i] for j in others]))
    assert knn_purity(points, groups, k, allowed=allowed) == pytest.approx((np.mean(pure), np.mean(level)))


def test_purity_of_labels_that_mean_nothing_is_chance():
    rng = np.random.default_rng(0)
    purity, chance = knn_purity(rng.normal(size=(1000, 4)), rng.integers(0, 4, 1000))
    assert purity == pytest.approx(chance, abs=0.02) and chance == pytest.approx(0.25, abs=0.01)


def test_map_draws_each_group_once_and_others_on_top():
    points = np.random.default_rng(0).normal(size=(6, 2))
    ax = tsne_map(points, list("aabbcc"), over=points[:2], over_groups=["c", "a"], order=["c", "b", "a"])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["c", "b", "a"]
    assert [len(c.get_offsets()) for c in ax.collections] == [2, 1, 2, 0, 2, 1]
    assert ax.get_xlabel() == "t-SNE 1" and ax.get_title(loc="left")
    values = tsne_map(points, values=np.arange(6), axes="PC")
    np.testing.assert_array_equal(values.collections[0].get_array(), np.arange(6))


def test_small_maps_show_each_group_once_over_all_others():
    rng = np.random.default_rng(0)
    points, groups = rng.normal(size=(30, 2)), np.array(list("abc") * 10)
    grid = group_maps(points, groups, over=points[:2], over_groups=["c", "a"], order=["c", "a", "b"], columns=2)
    assert grid.shape == (2, 2) and not grid[1, 1].axison
    for ax, name, on_top in zip(grid.flat, "cab", (1, 1, 0)):
        others, mine, over = ax.collections
        assert (len(others.get_offsets()), len(mine.get_offsets()), len(over.get_offsets())) == (20, 10, on_top)
        np.testing.assert_allclose(mine.get_offsets(), points[groups == name])
        assert ax.get_title(loc="left") == f"{name} (10)"
    with pytest.raises(ValueError, match=r"\['c'\]"):
        group_maps(points, groups, order=["a", "b"])


# Degenerate points: a sentence or a finite map, never the end of the process

DEGENERATE = {
    "all equal": "np.full((40, 8), 0.1)",
    "all zero": "np.zeros((40, 8))",
    "equal but for rounding": "np.ones((40, 8)) + 1e-16 * rng.normal(size=(40, 8))",
    "one dimension": "rng.normal(size=(40, 1))",
    "on a line": "np.outer(np.arange(40), np.ones(8))",
    "two places": "np.repeat(np.eye(2, 8), 20, 0)",
    "one outlier": "np.eye(40)[:, :8] * np.eye(40, 8)[0]",
    "differ by 1e-9": "np.ones((40, 8)) + 1e-9 * rng.normal(size=(40, 8))",
    "float32, huge": "(rng.normal(size=(40, 8)) * 1e30).astype(np.float32)",
    "float64, huge": "rng.normal(size=(40, 8)) * 1e300",
    "tiny": "rng.normal(size=(40, 8)) * 1e-300",
    "whole numbers": "rng.integers(0, 2, (40, 3))",
    "three points": "np.eye(3)",
    "two points": "np.eye(2)",
    "one point": "np.ones((1, 8))",
    "no point": "np.ones((0, 8))",
    "no column": "np.ones((8, 0))",
    "not a number": "np.full((40, 8), np.nan)",
    "infinite": "np.full((40, 8), np.inf)",
    "wide": "np.repeat(np.eye(2, 90), 40, 0)",
}
REFUSED = {"one point", "no point", "no column", "not a number", "infinite", "all equal", "all zero"}


def test_degenerate_points_never_end_the_process():
    code = f"""
import sys, numpy as np, warnings
from hyperclip_nb.plots.maps import project_pca, project_tsne
warnings.simplefilter("ignore")
for name, made in {DEGENERATE!r}.items():
    for project, more in (project_tsne, {{"perplexity": 1.5}}), (project_tsne, {{}}), (project_pca, {{}}):
        rng = np.random.default_rng(0)
        try:
            (points,) = project(eval(made), **more)
            said = "finite" if np.isfinite(points).all() else "NOT FINITE"
        except ValueError as error:
            said = "refused" if str(error).startswith("expected ") else repr(error)
        print(name, project.__name__, *more, said, sep="|", flush=True)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [line.split("|") for line in run.stdout.splitlines()]
    assert len(lines) == 3 * len(DEGENERATE) and {line[-1] for line in lines} == {"finite", "refused"}, run.stdout
    tsne = {name for name, project, *more, said in lines if project == "project_tsne" and more and said == "refused"}
    assert tsne == REFUSED | {"equal but for rounding"}
    pca = {name for name, project, *_, said in lines if project == "project_pca" and said == "refused"}
    assert pca == {"no point", "no column", "not a number", "infinite"}


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e30, 1e300])
def test_neighbours_do_not_depend_on_the_unit(scale):
    rng = np.random.default_rng(0)
    points, groups, values = rng.normal(size=(40, 3)), rng.integers(0, 3, 40), rng.normal(size=40)
    assert knn_purity(scale * points, groups, 5) == knn_purity(points, groups, 5)
    assert knn_correlation(scale * points, values, 5) == pytest.approx(knn_correlation(points, values, 5))


@given(st.integers(0, 100), st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_equal_points_have_the_purity_of_chance(seed, k):
    groups = np.sort(np.random.default_rng(seed).integers(0, 3, 12))  # sorted, so that an order among ties would show
    purity, chance = knn_purity(np.ones((12, 4)), groups, k)
    assert purity == pytest.approx(chance)


def test_ties_share_the_places_that_are_left():
    points, groups = np.array([[0.0], [1.0], [-1.0], [1.0], [5.0]]), list("abaac")
    purity, _ = knn_purity(points[:1], ["a"], 2, reference=points[1:], reference_groups=groups[1:])
    assert purity == pytest.approx(2 / 3)  # three neighbours at distance 1, two of them of its group


def test_trajectories_start_and_end_where_they_should():
    paths = np.random.default_rng(0).normal(size=(7, 3, 2))
    fig, ax = plt.subplots()
    assert trajectory_plot(paths, np.zeros((4, 2)), ["a", "b", "a"], targets=paths[-1], ax=ax) is ax
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert len(lines) == 3
    segments = np.array(lines[1].get_segments())
    np.testing.assert_allclose(segments[0, 0], paths[0, 1])
    np.testing.assert_allclose(segments[-1, 1], paths[-1, 1])
    solid = {
        tuple(np.asarray(c.get_offsets()[0]).round(6))
        for c in ax.collections
        if getattr(c, "get_sizes", lambda: [0])()[:1] == [60]
    }
    assert solid == {tuple(end.round(6)) for end in paths[-1]}  # the filled marker is where a path ends
    alpha = lines[0].get_colors()[:, 3]
    assert (np.diff(alpha) > 0).all() and alpha[-1] == 1
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    np.testing.assert_array_equal(lines[0].get_colors()[-1], lines[2].get_colors()[-1])


def test_grid_shares_axes_and_hides_the_rest():
    paths = {f"γ = {g}": g * np.random.default_rng(g).normal(size=(5, 2, 2)) for g in (1, 2, 9)}
    grid = trajectory_grid(paths, np.zeros((3, 2)))
    assert grid.shape == (2, 2) and not grid[1, 1].axison
    assert grid[0, 0].get_xlim() == grid[1, 0].get_xlim() and [ax.get_title(loc="left") for ax in grid.flat][
        :3
    ] == list(paths)
    assert trajectory_grid(paths, wrap=3).shape == (1, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: project_pca(np.zeros((3, 4)), np.zeros((3, 5))), "one D"),
        (lambda: project_pca(np.zeros(3)), "one D"),
        (lambda: project_pca(), "one D"),
        (lambda: project_pca(np.full((3, 4), np.nan)), "3 rows"),
        (lambda: project_tsne(np.zeros((10, 4))), "perplexity below the number of points, 10, got 30"),
        (lambda: tsne_map(np.zeros((3, 2))), "either groups or values"),
        (lambda: tsne_map(np.zeros((3, 2)), ["a"]), "3 groups"),
        (lambda: tsne_map(np.zeros((3, 2)), ["a"] * 3, over=np.zeros((1, 2))), "1 over_groups"),
        (lambda: tsne_map(np.zeros((3, 2)), ["a", "b", "c"], order=["a", "b"]), r"\['c'\]"),
        (lambda: trajectory_plot(np.zeros((3, 2, 3))), "paths of shape"),
        (lambda: trajectory_plot(np.zeros((3, 2, 2)), groups=["a"]), "each of 2 paths"),
        (lambda: knn_purity(np.zeros((4, 2)), list("aabb"), 4), "at least 4 allowed"),
        (lambda: knn_purity(np.zeros((4, 2)), list("aabb"), 0), "k = 0"),
        (lambda: knn_purity(np.zeros((0, 2)), [], 1), "0 points"),
        (lambda: knn_purity(np.full((4, 2), np.nan), list("aabb"), 1), "finite points, got 8"),
        (lambda: knn_correlation(np.zeros((4, 2)), np.arange(4), 1), "that differ"),
        (lambda: knn_correlation(np.eye(4), np.ones(4), 1), "that differ"),
        (lambda: knn_correlation(np.eye(4), [0, 1, 2, np.inf], 1), "finite values"),
        (lambda: knn_purity(np.zeros((4, 2)), list("aabb"), 1, reference=np.zeros((4, 2))), "together"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
