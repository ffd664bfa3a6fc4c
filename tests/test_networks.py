"Networks as pictures: every unit and every picture is drawn once, in its place and in its colour."

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from hyperclip_nb.plots.networks import answers_sheet, filters_plot, tiled
from hyperclip_nb.plots.style import WRONG

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 9), height=st.integers(1, 4), width=st.integers(1, 4), columns=st.integers(1, 5))
def test_a_sheet_has_every_picture_in_its_place(count, height, width, columns):
    pictures = 1.0 + np.arange(count * height * width).reshape(count, height, width)
    sheet = tiled(pictures, columns, 0.0)
    for i in range(count):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        np.testing.assert_array_equal(sheet[top : top + height, left : left + width], pictures[i])
    assert sheet.sum() == pictures.sum() and sheet.shape[1] == columns * (width + 1) - 1


def test_units_are_sorted_by_their_votes_and_bars_are_as_long():
    votes = np.array([0.5, -2.0, 1.0])
    ax = filters_plot(np.ones((3, 2, 2)) * [[[1]], [[2]], [[3]]], votes, columns=3)
    drawn = np.asarray(ax.images[0].get_array().filled(0))
    assert [drawn[0, 0], drawn[0, 3], drawn[0, 6]] == [3, 1, 2]
    lengths = [np.ptp(line.get_xdata()) for line in ax.lines]
    np.testing.assert_allclose(lengths, [1.0, 0.5, 2.0])
    colors = [to_rgb(line.get_color()) for line in ax.lines]
    assert colors[0] == colors[1] != colors[2] == to_rgb(WRONG)


def test_units_without_votes_or_without_weights_are_drawn_as_they_come():
    ax = filters_plot(np.zeros((5, 2, 3)), columns=2)
    assert not ax.lines and len(ax.patches) == 5 and ax.images[0].get_clim() == (-1.0, 1.0)
    assert not filters_plot(np.zeros((2, 2, 2)), [0.0, 0.0]).lines


def test_every_picture_is_under_its_answer_the_surest_first_and_wrong_ones_are_marked():
    ink = np.arange(1, 5)[:, None, None] * np.full((4, 2, 2), 0.2)
    shares = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    axes = answers_sheet(ink, shares, ["a", "b"], [0, 0, 0, -1], columns=2, title="Which?")
    first, second = (np.asarray(ax.images[0].get_array()) for ax in axes)
    np.testing.assert_allclose([first[0, 0, 0], first[3, 0, 0]], [0.6, 0.8])  # 90 %, then (70 %, wrong), then 60 %
    np.testing.assert_allclose(first[0, 3], 1 - 0.8 * (1 - np.array(to_rgb(WRONG))))
    np.testing.assert_allclose(second[0, 0], 1 - 0.6 * (1 - np.array(to_rgb(WRONG))))
    assert [ax.get_title("left") for ax in axes] == ["a: 3 pictures, 1 of them wrong", "b: 1 picture, 1 of them wrong"]
    assert [len(ax.lines) for ax in axes] == [1, 1]


def test_an_answer_that_nothing_got_has_an_empty_row_and_truth_may_be_unknown():
    axes = answers_sheet(np.ones((3, 2, 2)), [[1, 0], [1, 0], [1, 0]], ["a", "b"])
    assert (np.asarray(axes[1].images[0].get_array()) == 1).all()
    assert axes[1].get_title("left") == "b: 0 pictures" and not axes[0].lines


def test_what_does_not_fit_is_refused():
    for bad, message in [
        (lambda: filters_plot(np.zeros((3, 4))), "expected filters of shape"),
        (lambda: filters_plot(np.zeros((0, 2, 2))), "at least one filter"),
        (lambda: filters_plot(np.zeros((3, 2, 2)), [1.0]), "expected votes of shape"),
        (lambda: answers_sheet(np.zeros((3, 2, 2)), np.zeros((3, 2)), ["a"]), "expected shares of shape"),
        (lambda: answers_sheet(np.zeros((3, 2, 2)), np.zeros((4, 1)), ["a"]), "got 3, 4"),
        (lambda: answers_sheet(np.zeros((3, 2, 2)), np.zeros((3, 1)), ["a"], [0]), "got 3, 3 and 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            bad()
