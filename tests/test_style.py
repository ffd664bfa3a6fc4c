"Stored pictures stay white and small; numbers that cannot be drawn are refused by name."

import base64
import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from hyperclip_nb.plots import style

matplotlib.use("agg")


@pytest.fixture
def noise():
    with plt.rc_context(style.LOOK):
        fig, ax = plt.subplots(figsize=(2, 2))
        ax.imshow(np.random.default_rng(0).random((5, 5)), interpolation="bicubic")
        yield fig
        plt.close(fig)


def test_palette_png_keeps_white(noise):
    with Image.open(io.BytesIO(style.palette_png(noise, 32))) as picture:
        assert picture.mode == "P" and picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_notebook_keeps_twice_the_pixels_that_it_shows(noise):
    png, shown = style.for_notebook(noise)
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        assert (picture.width // 2, picture.height // 2) == (shown["width"], shown["height"])
        assert abs(shown["width"] - 160) < 10  # two inches of 80 dots


def test_groups_look_different():
    assert len({tuple(style.group_style(index).values()) for index in range(144)}) == 144


@pytest.mark.parametrize("values", [[[1.0]], [1.0, np.nan], [1.0, np.inf], [1e400, 0.0], 3.0])
def test_what_cannot_be_drawn_is_refused_by_name(values):
    with pytest.raises(ValueError, match="accuracies"):
        style.finite("accuracies", values, -1)
