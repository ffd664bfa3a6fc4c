"Projections keep shapes and pool, purity is right by brute force, trajectories are drawn in their places."

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
        (lambda: knn_purity(np.zeros((4, 2)), list("aabb"), 1, reference=np.zeros((4, 2))), "together"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
