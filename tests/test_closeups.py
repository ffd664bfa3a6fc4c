"Counts, sectors and curves against what can be computed by hand."

import matplotlib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.plots import closeups
from hyperclip_nb.plots.style import group_style

matplotlib.use("agg")
seeds = st.integers(0, 2**16)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, size=st.integers(1, 6), count=st.integers(0, 50))
def test_counts_are_those_of_a_loop(seed, size, count):
    truth, answers = np.random.default_rng(seed).integers(0, size, (2, count))
    counts = np.zeros((size, size), dtype=int)
    for true, answer in zip(truth, answers):
        counts[true, answer] += 1
    np.testing.assert_array_equal(closeups.counts_of(truth, answers, size), counts)


def test_sectors_have_the_colour_of_the_nearest_prompt():
    anchors = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])
    ax = closeups.feature_shift([[-1, -1], [1, 1]], [[-1, 1], [1, -1]], [0, 1], anchors, ["a", "b", "c"])
    (image,) = ax.images
    low, high, bottom, top = image.get_extent()
    pixels = np.asarray(image.get_array())
    for point in [(0.9, 0.0), (-0.8, 0.9), (-0.8, -0.9)]:
        column, row = int((point[0] - low) / (high - low) * 300), int((point[1] - bottom) / (top - bottom) * 300)
        color = matplotlib.colors.to_rgb(group_style(int((anchors @ point).argmax()))["color"])
        np.testing.assert_allclose(pixels[row, column], 1 - 0.22 * (1 - np.array(color)))


def test_accuracy_along_path_keeps_both_ends():
    ax = closeups.accuracy_along_path({"a": np.linspace(10, 60, 101)}, points=6, lines={"CLIP": 46})
    np.testing.assert_allclose(ax.lines[0].get_xydata()[[0, -1]], [[0, 10], [100, 60]])
    assert len(ax.lines[0].get_xdata()) == 6


def test_training_curves_ring_the_best():
    axes = closeups.training_curves(np.linspace(2, 1, 30), [10, 20, 30], {"validation": [50, 60, 55]}, window=5)
    ring = axes[1].collections[-1].get_offsets()
    np.testing.assert_allclose(ring, [[20, 60]])
