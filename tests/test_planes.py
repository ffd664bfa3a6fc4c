"Planes lie nearest to their points, landscapes draw the path, and an animation is small and repeatable."

import io

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from hyperclip_nb.plots import planes

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


@pytest.mark.parametrize(
    "points",
    [np.ones((5, 3)), np.zeros((4, 2)), np.outer(np.arange(5.0), np.ones(3)), np.random.default_rng(0).random((9, 1))],
)
def test_points_that_span_no_plane_are_refused(points):
    with pytest.raises(ValueError, match="one line"):
        planes.plane_through(points)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e200])
def test_a_plane_does_not_depend_on_the_unit(scale):
    points = np.random.default_rng(0).normal(size=(6, 4))
    directions = planes.plane_through(scale * points).directions
    np.testing.assert_allclose(directions, planes.plane_through(points).directions, atol=1e-7)
