"One's own picture in the explorer: what the networks answer about it is what they answer about any, whatever comes in."

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hyperclip_nb.dataset.questions import draw_images, image_id, questions, scene_of
from hyperclip_nb.dataset.scenes import BACKGROUNDS, COLORS, GLYPHS, LAYOUTS, PATTERNS
from hyperclip_nb.evaluation.shipped import Shipped
from hyperclip_nb.explorer.choice import Choice
from hyperclip_nb.explorer.compose import menus, read_scene, right_answer, scene_text
from hyperclip_nb.explorer.explore import Explorer
from hyperclip_nb.explorer.own import PHOTO_BYTES, answer_about, composed, own_photo, read_photo
from hyperclip_nb.explorer.widgets import ExplorerBox


@pytest.fixture(scope="module")
def explorer():
    return Explorer(Shipped())


@pytest.fixture
def box():
    return ExplorerBox(Path("no-such-run"), usual=True)


def told(box, **change):
    box.choice = {**box.world["usual"], **box.shown["choice"], **change, "turn": box.turn + 1}
    return box.own


def encoded(image, kind="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


# Scenes


@st.composite
def scenes(draw):
    layout = draw(st.sampled_from(LAYOUTS))
    places = draw(st.lists(st.sampled_from(layout), min_size=1, max_size=4, unique=True))
    things = []
    for place in places:
        name = draw(st.sampled_from([*GLYPHS]))
        count = "one" if " " in place else draw(st.sampled_from(menus()["counts"]))
        pose = draw(st.sampled_from(menus()["poses"])) if GLYPHS[name].poses else "upright"
        size = draw(st.sampled_from(menus()["sizes"]))
        things.append("/".join([name, draw(st.sampled_from([*COLORS])), place, size, count, pose]))
    return ";".join([f"{draw(st.sampled_from([*BACKGROUNDS]))}/{draw(st.sampled_from(PATTERNS))}", *things])


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_whatever_the_menus_offer_is_drawn_and_has_an_address(text):
    scene = read_scene(text)
    assert read_scene(scene_text(scene)) == scene
    choice = Choice(question="What color is the cat?", picture=scene_text(scene))
    assert Choice.read(choice.address()) == choice


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.text(max_size=250), st.lists(st.sampled_from(["cat", "red", "left", "/", ";", "green"])).map("".join))
)
def test_any_other_text_is_refused_in_a_sentence(text):
    try:
        read_scene(text)
    except ValueError as error:
        assert str(error).startswith("picture: expected") and "\n" not in str(error) and len(str(error)) < 250


def test_a_picture_of_a_question_has_the_same_right_answer_and_the_same_answers(explorer):
    asked = explorer.experiment.sets["test"].tasks[::40]
    for task in asked:
        shown = explorer.show(Choice(question=task.question))
        for place, image in list(enumerate(shown.asked.images))[:4]:
            _, scene, answer, _ = scene_of(image)
            assert task.answers[right_answer(task.question, task.answers, scene)] == answer
            picture = composed("white/plain;cat/red/left", explorer.encoder)
            features = explorer.encoder.encode_images(draw_images([image]))
            found = answer_about(explorer, shown, replace(picture, features=features))
            assert (found.given, found.alone["clip"]) == (shown.given[place], shown.before[place])
            assert found.each == [one[place] for one in shown.each] and 0 < found.sure <= 1


def test_a_question_that_does_not_fit_has_no_right_answer():
    scene = read_scene("green/plain;cat/red/left;mouse/blue/right")
    known = {question.text: question for question in questions()}
    ask = lambda text: right_answer(text, known[text].answers, scene)
    assert ask("What color is the creature?") is None  # two are there
    assert ask("What color is the moon?") is None and right_answer("Why?", ("a", "b"), scene) is None
    assert known["What is next to the cat?"].answers[ask("What is next to the cat?")] == "mouse"
    assert right_answer("What color is the cat?", ("blue", "green"), scene) is None  # no answer is right


def test_every_drawn_picture_of_some_worlds_is_understood():
    for world in (0, 3):
        for question in questions()[world::23]:
            _, scene, answer, _ = scene_of(image_id(world, question, 11))
            assert question.answers[right_answer(question.text, question.answers, scene)] == answer


# Files


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int) -> bytes:
    "A PNG of a few bytes that says it is huge."
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


PLAIN = Image.new("RGB", (40, 30), (200, 30, 30))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "got an empty file"),
        (b"<svg/>", "got another kind of file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "got another kind of file"),  # starts a program
        (encoded(PLAIN)[:50], "got a damaged one"),
        (encoded(PLAIN, "JPEG")[:200], "got a damaged one"),
        (encoded(Image.new("RGB", (1, 1000))), "got 1 × 1,000"),
        (bomb(6_000), "got 6,000 × 6,000"),
        (bomb(60_000), "got a damaged one"),
        (bytes(PHOTO_BYTES + 1), "at most 8 MB, got 8.0 MB"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(content, said):
    with pytest.raises(ValueError, match="^photograph: expected") as error:
        read_photo(content)
    assert said in str(error.value) and len(str(error.value)) < 200


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_files_end_in_a_sentence(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    content = bytearray(encoded(PLAIN, kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert read_photo(content).mode == "RGB"
    except ValueError as error:
        assert str(error).startswith("photograph: expected") and "\n" not in str(error)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "LA"])
def test_every_kind_of_picture_becomes_rgb(mode, explorer):
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    picture = own_photo(encoded(Image.new(mode, (70, 50)), kind), f"a\u202e\n{mode}" + "x" * 100, explorer.encoder)
    assert picture.pixels.shape == (192, 192, 3) and picture.pixels.dtype == np.uint8
    assert len(picture.name) <= 60 and picture.name.isprintable() and torch.isfinite(picture.features).all()


# On the page


def test_a_composed_picture_goes_along_with_every_choice(box):
    assert box.own == {}
    found = told(box, question="What color is the cat?", answers="", picture="green/plain;cat/blue/left")
    assert box.shown["answers"][found["right"]] == "blue" and found["turn"] == box.turn
    assert [row["who"] for row in found["rows"]][0] == "zero-shot CLIP" and sum(found["rows"][-1]["votes"]) == 10
    assert box.shown["choice"]["picture"] == "green/plain;cat/blue/left" and "picture=" in box.shown["address"]
    sprite = box.own_sprite
    assert Image.open(io.BytesIO(sprite)).size == (64, 64)
    other = told(box, gamma=4.0)
    assert other["name"] == found["name"] and box.own_sprite is sprite and other["turn"] == box.turn  # not sent again
    told(box, picture="green/plain;dog/blue/left")
    assert "Picture: expected a name out of" in box.said["error"] and box.own["turn"] < box.turn
    assert told(box, picture="") == {}


def test_a_photograph_is_asked_about_until_another_one_comes(box, explorer):
    sent = []
    box.send = lambda content, buffers=None: sent.append(content)
    bring = lambda *buffers, name="x.png": box._heard(box, {"kind": "photograph", "name": name}, [*buffers])
    assert told(box, picture="photograph") == {}  # nobody brought one
    bring(b"nothing")
    assert "another kind of file" in sent[-1]["error"] and box.photo is None
    bring()
    assert "empty file" in sent[-1]["error"]
    bring(memoryview(encoded(PLAIN)))
    assert sent[-1] == {"kind": "photograph", "error": ""}
    found = told(box, picture="photograph")
    assert found["photo"] and found["right"] is None and "drawn scenes only" in found["notes"][0]
    assert "picture" not in box.shown["address"]  # a link cannot hold it
    sprite = box.own_sprite
    bring(memoryview(encoded(Image.new("RGB", (20, 20), "blue"))))  # under the same name
    told(box, picture="photograph")
    assert box.own_sprite != sprite
    box._heard(box, {"kind": "photograph", "name": None}, [b"x"])
    assert sent[-1]["error"] and told(box, gamma=2.0)["photo"]  # the last good one stays
