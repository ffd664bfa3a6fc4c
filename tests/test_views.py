"Planes, counts and pictures against what can be computed by hand."

import io

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from hyperclip_nb.plots import closeups, pictures, planes, style

matplotlib.use("agg")
seeds = st.integers(0, 2**16)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, count=st.integers(3, 20), size=st.integers(3, 8))
def test_no_plane_lies_nearer_to_the_points(seed, count, size):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, size))
    plane = planes.plane_through(points)
    np.testing.assert_allclose(plane.directions @ plane.directions.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(plane.coordinates(plane.points([[1.0, -2.0]])), [[1.0, -2.0]], atol=1e-9)
    other = planes.Plane(points.mean(0), np.linalg.qr(rng.normal(size=(size, 2)))[0].T)
    assert (plane.distance(points) ** 2).sum() <= (other.distance(points) ** 2).sum() + 1e-9
    first, last = plane.coordinates(points[[0, -1]])
    assert (last >= first - 1e-9).all()


def test_grid_covers_the_points_and_is_ordered_row_by_row():
    points = np.random.default_rng(0).normal(size=(10, 6))
    plane = planes.plane_through(points)
    first, second, latents = planes.grid_on_plane(plane, points.reshape(5, 2, 6), size=7, margin=0.2)
    at = plane.coordinates(points)
    assert (
        first[0] < at[:, 0].min()
        and first[-1] > at[:, 0].max()
        and second[0] < at[:, 1].min()
        and second[-1] > at[:, 1].max()
    )
    np.testing.assert_allclose(np.diff(first), np.diff(second)[0])
    np.testing.assert_allclose(plane.coordinates(latents.reshape(7, 7, 6))[3, 5], [first[5], second[3]])


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
        color = matplotlib.colors.to_rgb(pictures.group_style(int((anchors @ point).argmax()))["color"])
        np.testing.assert_allclose(pixels[row, column], 1 - 0.22 * (1 - np.array(color)))


def test_energy_surface_draws_the_path_on_both_and_refuses_a_transposed_grid():
    first, second, values = np.arange(4.0), np.arange(3.0), np.random.default_rng(0).random((3, 4))
    axes = planes.energy_surface(first, second, values, values, [[0, 0], [1, 1], [2, 1]])
    for ax in axes:
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1], [2, 1]])
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        planes.energy_surface(first, second, values.T, values.T)


def test_animation_is_small_repeatable_and_ends_with_the_whole_path():
    rng = np.random.default_rng(0)
    paths, background = rng.normal(size=(11, 3, 2)).cumsum(0), rng.normal(size=(50, 2))
    gif = planes.animate_trajectory(paths, background, ["a", "b", "a"], frames=5, seconds=2.0)
    assert gif == planes.animate_trajectory(paths, background, ["a", "b", "a"], frames=5, seconds=2.0)
    with Image.open(io.BytesIO(gif)) as film:
        frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(film)]
        film.seek(0)
        assert film.info["duration"] == 400 and film.info["loop"] == 0
    assert len(frames) == 5
    assert (frames[0][0, 0] == 255).all()
    inked = [(frame.min(-1) < 200).sum() for frame in frames]
    assert inked[0] < inked[-1]
    assert planes.animate_trajectory(paths[:2]).startswith(b"GIF89a")
    with pytest.raises(ValueError, match="a step"):
        planes.animate_trajectory(paths[:1])


def test_accuracy_along_path_keeps_both_ends():
    ax = closeups.accuracy_along_path({"a": np.linspace(10, 60, 101)}, points=6, lines={"CLIP": 46})
    np.testing.assert_allclose(ax.lines[0].get_xydata()[[0, -1]], [[0, 10], [100, 60]])
    assert len(ax.lines[0].get_xdata()) == 6


def test_training_curves_ring_the_best():
    axes = closeups.training_curves(np.linspace(2, 1, 30), [10, 20, 30], {"validation": [50, 60, 55]}, window=5)
    ring = axes[1].collections[-1].get_offsets()
    np.testing.assert_allclose(ring, [[20, 60]])


def test_palette_png_keeps_white():
    fig, ax = matplotlib.pyplot.subplots(figsize=(2, 2))
    ax.imshow(np.random.default_rng(0).random((5, 5)), interpolation="bicubic")
    with Image.open(io.BytesIO(style.palette_png(fig, 32))) as picture:
        assert picture.mode == "P" and picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    matplotlib.pyplot.close("all")
