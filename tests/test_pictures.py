"Pictures: labels, artists, refusals, and the same bytes for the same arrays."

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from hyperclip_nb.plots.pictures import (
    before_after,
    confusion,
    curves,
    difference_plot,
    few_shot_curve,
    forest_plot,
    gallery,
    heatmap,
    loss_curve,
    save,
)
from hyperclip_nb.plots.style import COLORS, MARKERS, PAPER, group_style


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


rng = np.random.default_rng(0)
images = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
PLOTS = {
    "forest": lambda ax: forest_plot(["a", "b"], [1, 2], [[0, 2], [1, 3]], ax=ax),
    "difference": lambda ax: difference_plot(["a", "b"], [1, 2], [[0, 2], [1, 3]], "c", ax=ax),
    "curves": lambda ax: curves([0, 1], {"a": [1, 2]}, xlabel="x", ylabel="y", title="t", ax=ax),
    "few_shot": lambda ax: few_shot_curve([0, "all"], {"a": [1, 2]}, {"a": [[0, 2], [1, 3]]}, ax=ax),
    "loss": lambda ax: loss_curve(rng.random(100), ax=ax),
    "heatmap": lambda ax: heatmap(np.eye(2), ["a", "b"], ["c", "d"], xlabel="x", ylabel="y", title="t", ax=ax),
    "confusion": lambda ax: confusion(np.eye(2), ["a", "b"], ax=ax),
}


@pytest.mark.parametrize("name", PLOTS)
def test_draws_where_it_is_told_and_labels(name):
    fig, ax = plt.subplots()
    assert PLOTS[name](ax) is ax
    assert ax.get_title(loc="left") and ax.get_xlabel()
    assert ax.get_ylabel() or [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    alone = PLOTS[name](None)
    assert alone is not ax and alone.figure.get_facecolor() == matplotlib.colors.to_rgba(PAPER)


def test_groups_look_different():
    looks = [tuple(group_style(i).values()) for i in range(144)]
    assert len(set(looks)) == 144
    assert len({c for c, _ in looks[:12]}) == len({m for _, m in looks[:12]}) == 12 == len(COLORS) == len(MARKERS)


def test_forest_shows_values_intervals_and_order():
    ax = forest_plot(["top", "bottom"], [10.0, 20.0], [[8, 13], [15, 21]], line=12)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # first row at the top
    bars = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert (8, 13) in bars and (15, 21) in bars and (12, 12) in bars
    assert {t.get_text() for t in ax.texts} == {"10.0", "20.0"}


def test_difference_is_solid_only_away_from_zero():
    ax = difference_plot(list("abcd"), [1, 1, -1, 0], [[0.5, 2], [-0.5, 2], [-2, -0.5], [0, 0]], "base")
    dots = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert [dot.get_markerfacecolor() != PAPER for dot in dots] == [True, False, True, False]
    assert [t.get_text() for t in ax.texts] == ["+1.0", "+1.0", "−1.0", "+0.0"]
    assert "base" in ax.get_xlabel()


def test_loss_curve_looks_back_only():
    losses = rng.random(30)
    raw, smooth = loss_curve(losses, window=10).lines
    np.testing.assert_allclose(raw.get_ydata(), losses)
    np.testing.assert_allclose(smooth.get_ydata()[0], losses[:10].mean())
    assert smooth.get_xdata()[0] == 10 and smooth.get_xdata()[-1] == 30
    assert len(loss_curve([1.0, 2.0], window=50).lines) == 2  # fewer updates than the window


def test_confusion_is_percent_of_rows():
    ax = confusion([[3, 1], [0, 0]], ["a", "b"])
    assert [t.get_text() for t in ax.texts] == ["75", "25"]  # the empty row stays empty


def test_tensors_are_arrays():
    ax = curves(torch.arange(3), {"a": torch.rand(3)}, {"a": torch.rand(3, 2)}, xlabel="x", ylabel="y", title="t")
    assert len(ax.lines) == 1 and len(ax.collections) == 1


def test_gallery_marks_right_and_wrong_without_colour():
    axes = gallery(images, list("abcde"), [True, False, True, True, False], columns=3)
    assert axes.shape == (2, 3) and not axes[1, 2].axison
    assert [ax.get_xlabel() for ax in axes.flat][:5] == ["✓ a", "✗ b", "✓ c", "✓ d", "✗ e"]
    assert [ax.get_xlabel() for ax in gallery(images, list("abcde")).flat][:2] == ["a", "b"]


def test_before_after_says_the_truth_when_wrong():
    axes = before_after(images[:3], ["x", "y", "z"], ["y", "y", "z"], ["x", "y", "x"])
    assert [ax.get_xlabel() for ax in axes.flat][:3] == ["✓ y → x", "✓ still y", "✗ z → x\n(it is z)"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: forest_plot(["a"], [1, 2], [[0, 1]]), r"values of shape \[1\]"),
        (lambda: forest_plot(["a"], [1], [[0, np.nan]]), "finite intervals"),
        (lambda: curves([0, 1], {"a": [1, 2, 3]}, xlabel="x", ylabel="y", title="t"), "a of shape"),
        (lambda: curves([0, 1], {"a": [1, 2]}, {"b": [[0, 1], [0, 1]]}, xlabel="x", ylabel="y", title="t"), r"\['b'\]"),
        (lambda: confusion(np.eye(3), ["a", "b"]), r"counts of shape \[2, 2\]"),
        (lambda: heatmap(np.eye(3), ["a"], ["b"], xlabel="x", ylabel="y", title="t"), "1 rows and 1 columns"),
        (lambda: gallery(images, ["a"]), "5, 8, 8, 3"),
        (lambda: gallery(images[:0], []), "images"),
        (lambda: before_after(images[:2], ["a", "b"], ["a"], ["a", "b"]), "shorter"),
        (lambda: save(plt.figure(), "a.pdf"), ".png"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_same_arrays_same_bytes(tmp_path):
    draw = lambda name: save(few_shot_curve([0, 1], {"a": [1, 2]}), tmp_path / name).read_bytes()
    assert draw("a.png") == draw("b.png")
    assert (
        draw("a.png")[:4] == b"\x89PNG" and b"matplotlib" not in draw("a.png").lower()
    )  # its version is no part of the picture
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
