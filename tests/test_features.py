"The bank of features under bad luck: kills, damage, mismatches, odd files; and the encoder against its references."

import io
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file
from toy_bank import TASKS, Toy, load, task

from hyperclip_nb.core import files
from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.encoders import (
    ClipEncoder,
    ImageFolder,
    Preprocessing,
    load_encoder,
    read_image,
    weights_hash,
)
from hyperclip_nb.dataset.features import BankIndex, FeatureBank, build_bank
from hyperclip_nb.dataset.tasks import Task, leave_out

FILES = "manifest.json", "index.json", "images.safetensors", "texts.safetensors"


def same(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_belong_to_their_ids(tmp_path, dtype, workers):
    bank = build_bank(tmp_path / "bank", Toy(), TASKS, load, dtype=dtype, shard=32, batch_size=5, workers=workers)
    for t in TASKS:
        want = Toy().encode_images(load(t.images)).to(getattr(torch, dtype))
        assert torch.equal(bank.images[bank.image_rows(t.images)], want)
        assert torch.equal(bank.prompts[bank.prompt_rows(t.prompts)], Toy().encode_texts(t.prompts, "clip"))
        for name in "clip", "tokens":
            assert torch.equal(
                bank.questions[name][bank.question_rows([t.question])], Toy().encode_texts([t.question], name)
            )
    assert load_file(tmp_path / "bank" / "images.safetensors")["images"].shape == (120, 48)
    assert not (tmp_path / "bank" / "shards").exists()


def test_order_of_tasks_and_batches_does_not_matter(tmp_path):
    build_bank(tmp_path / "a", Toy(), TASKS, load, shard=32, batch_size=5, workers=0)
    build_bank(tmp_path / "b", Toy(), TASKS[::-1], load, shard=32, batch_size=7, workers=2)
    assert same(tmp_path / "a", tmp_path / "b")


def toy_again(source, device):
    "As `reopen_encoder`, in a worker."
    return Toy()


class Another(Toy):
    fingerprint = {"model": "toy", "weights": "2"}


def test_workers_elsewhere_make_the_same_bank(tmp_path):
    options = {"shard": 32, "batch_size": 5, "workers": 0}
    build_bank(tmp_path / "here", Toy(), TASKS, load, **options)
    with ThreadPoolExecutor(2) as executor:
        build_bank(tmp_path / "there", Toy(), TASKS, load, elsewhere=(executor, toy_again), **options)
        assert same(tmp_path / "here", tmp_path / "there") and not (tmp_path / "there" / "shards").exists()
        other = lambda source, device: Another()
        with pytest.raises(FileError, match="expected the encoder of this bank"):
            build_bank(tmp_path / "third", Toy(), TASKS, load, elsewhere=(executor, other), **options)


def test_a_second_builder_helps_and_nothing_is_encoded_twice(tmp_path):
    loaded: list[tuple[int, str]] = []
    both = threading.Event()

    def meeting(ids):  # whoever comes first waits for the other
        loaded.extend((threading.get_ident(), image) for image in ids)
        if len({who for who, _ in loaded}) == 2:
            both.set()
        both.wait(60)
        return load(ids)

    build = lambda _: build_bank(tmp_path / "bank", Toy(), TASKS, meeting, shard=16, batch_size=8, workers=0)
    with ThreadPoolExecutor(2) as pool:
        banks = list(pool.map(build, range(2)))
    assert both.is_set() and len({who for who, _ in loaded}) == 2
    assert sorted(image for _, image in loaded) == banks[0].index.images == banks[1].index.images
    build_bank(tmp_path / "alone", Toy(), TASKS, load, shard=16, batch_size=8, workers=0)
    assert same(tmp_path / "bank", tmp_path / "alone") and not (tmp_path / "bank" / "shards").exists()


@settings(max_examples=8, deadline=None)
@given(calls=st.lists(st.integers(0, 8), min_size=1, max_size=4), shard=st.sampled_from([16, 40, 200]))
def test_any_interruptions_end_in_the_same_bytes(tmp_path_factory, calls, shard):
    tmp_path = tmp_path_factory.mktemp("bank")
    build_bank(tmp_path / "whole", Toy(), TASKS, load, shard=shard, batch_size=8, workers=0)
    loaded = []
    for limit in [*calls, 10**9]:
        left = [limit]

        def stopping(ids):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            loaded.extend(ids)
            return load(ids)

        finished = {
            image
            for path in (tmp_path / "parts").glob("shards/*.safetensors")
            for image in BankIndex.of(TASKS).images[int(path.stem) : int(path.stem) + shard]
        }
        seen = len(loaded)
        try:
            build_bank(tmp_path / "parts", Toy(), TASKS, stopping, shard=shard, batch_size=8, workers=0)
        except KeyboardInterrupt:
            pass
        assert not finished.intersection(loaded[seen:])  # nothing finished is done again
    assert same(tmp_path / "whole", tmp_path / "parts")


_SLOW = """
import sys, time
sys.path.insert(0, {here!r})
from toy_bank import TASKS, Toy, load
from hyperclip_nb.dataset.features import build_bank
def slow(ids):
    time.sleep(0.02)
    return load(ids)
build_bank({folder!r}, Toy(), TASKS, slow, shard=16, batch_size=4, workers=1)
"""


def test_killed_process(tmp_path):
    "SIGKILL while shards are written; then two processes at once finish the same bank."
    script = _SLOW.format(here=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.time() + 120
    while (
        len(list((tmp_path / "killed").glob("shards/*.safetensors"))) < 2
        and time.time() < deadline
        and process.poll() is None
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(FileError, match="unfinished"):
        FeatureBank.open(tmp_path / "killed")
    (tmp_path / "killed" / "shards" / f".00000064.safetensors.{process.pid}-1.tmp").write_bytes(b"half")
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    build_bank(tmp_path / "whole", Toy(), TASKS, load, shard=16, batch_size=4, workers=0)
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == sorted((*FILES, ".lock"))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(encoder={"model": "toy", "weights": "2"}), "weights: it has 1, asked for 2"),
        (dict(encoder={"model": "toy"}), "weights: it has 1, asked for None"),
        (dict(dtype="float32"), "dtype: it has float16, asked for float32"),
        (dict(tasks=TASKS[1:]), "images: it has, but the tasks don't need, 20, such as '00/000'"),
        (dict(tasks=[*TASKS, task(9)]), "questions: it has not 1, such as 'what is 9\\?'"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_bank_is_refused(tmp_path, change, words, finished):
    def stop(ids):
        raise KeyboardInterrupt

    try:
        build_bank(tmp_path, Toy(), TASKS, load if finished else stop, workers=0)
    except KeyboardInterrupt:
        pass
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    encoder = Toy()
    encoder.fingerprint, change = (
        change.get("encoder", Toy.fingerprint),
        {k: v for k, v in change.items() if k != "encoder"},
    )
    with pytest.raises(FileError, match=words):
        build_bank(tmp_path, encoder, load_images=load, workers=0, **{"tasks": TASKS, **change})
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path_factory, name, place, bit):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    build_bank(folder, Toy(), TASKS, load, workers=0)
    path = folder / name
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[int(place * len(good))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        bank = FeatureBank.open(folder).verify()
    except FileError as error:
        assert str(folder) in str(error) and (name in str(error) or name == "manifest.json")
    else:  # the manifest is not hashed, but nothing in it can change what the rows are
        assert name == "manifest.json" and torch.equal(
            bank.images[:1].float(), Toy().encode_images(load(["00/000"])).half().float()
        )
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [0, 5, None])
def test_truncated_or_missing_files(tmp_path, name, cut):
    build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    path = tmp_path / name
    path.unlink() if cut is None else path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileError, match=name.split(".")[0]):
        FeatureBank.open(tmp_path).verify()


def test_damaged_shard_of_an_unfinished_bank(tmp_path):
    def stop(ids):
        if ids[0] >= "03":
            raise KeyboardInterrupt
        return load(ids)

    with pytest.raises(KeyboardInterrupt):
        build_bank(tmp_path, Toy(), TASKS, stop, shard=16, batch_size=16, workers=0)
    shard = sorted((tmp_path / "shards").iterdir())[0]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FileError, match=shard.name):
        build_bank(tmp_path, Toy(), TASKS, load, shard=16, batch_size=16, workers=0)
    shard.unlink()
    build_bank(tmp_path, Toy(), TASKS, load, shard=16, batch_size=16, workers=0)


def test_opening_reads_no_image_data(tmp_path):
    "Two rows of a gigabyte each, all holes: opening and taking a few numbers must not read them into memory."
    bank = build_bank(tmp_path, Toy(), [task(0, 1)], load, workers=0)
    width = 2**29
    header = json.dumps({"images": {"dtype": "F16", "shape": [2, width], "data_offsets": [0, 4 * width]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(tmp_path / "images.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bank = FeatureBank.open(tmp_path)
    assert bank.images[1, -3:].tolist() == [0, 0, 0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_features_that_overflow(tmp_path):
    class Loud(Toy):
        def encode_images(self, images):
            return super().encode_images(images) * 1e6

    with pytest.raises(ValueError, match="not finite; torch.float16 is too narrow"):
        build_bank(tmp_path, Loud(), TASKS, load, workers=0)
    assert build_bank(tmp_path / "wide", Loud(), TASKS, load, dtype="float32", workers=0).images.dtype == torch.float32


def test_a_text_that_does_not_fit_is_found_before_any_image(tmp_path):
    class Short(Toy):
        def encode_texts(self, texts, pooling):
            raise ValueError("too long")

    with pytest.raises(ValueError, match="too long"):
        build_bank(tmp_path, Short(), TASKS, lambda ids: pytest.fail("an image was loaded"), workers=0)


# Pictures in files

SHAPES = [(64, 64), (640, 427), (427, 640), (30, 200), (333, 336), (1, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    (folder / "train2014").mkdir()
    for i, (w, h) in enumerate(SHAPES):
        image = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)).resize(
            (w, h), Image.Resampling.BICUBIC
        )
        image.save(folder / "train2014" / f"COCO_train2014_{i:012}.jpg")
        image.convert("RGBA").save(folder / f"alpha{i}.png")
        image.convert("L").save(folder / f"gray{i}.jpg")
    (folder / "empty.jpg").touch()
    (folder / "directory.jpg").mkdir()
    (folder / "cut.jpg").write_bytes((folder / "train2014" / "COCO_train2014_000000000001.jpg").read_bytes()[:700])
    (folder / "text.jpg").write_text("not a picture")
    return folder


@pytest.mark.parametrize("size", [64, 224, 336])
@pytest.mark.parametrize("mode, theirs", [("squash", "squash"), ("crop", "shortest")])
def test_preprocessing_equals_torchvision(folder, size, mode, theirs):
    ours = Preprocessing(size, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, mode)
    reference = image_transform(size, is_train=False, resize_mode=theirs)
    for path in sorted(folder.glob("train2014/*.jpg")) + sorted(folder.glob("gray*.jpg")):
        with Image.open(path) as image:
            assert torch.equal(ours.normalize(torch.from_numpy(read_image(path, ours))[None])[0], reference(image)), (
                path
            )


@pytest.mark.parametrize(
    "name, words",
    [
        ("empty", "0 bytes"),
        ("directory", "expected a file, found a folder"),
        ("cut", "700 bytes"),
        ("text", "cannot identify"),
        ("missing", "looked for"),
    ],
)
def test_unreadable_pictures(folder, tmp_path, name, words):
    load_files = ImageFolder(folder, Preprocessing(4, (0.5,) * 3, (0.5,) * 3))
    good = [f"COCO_train2014_{i:012}" for i in range(4)]
    examples = [(image, i % 2) for i, image in enumerate(good)]
    spoilt = Task(
        question="what?",
        answers=("a", "b"),
        prompts=("it is a", "it is b"),
        support=tuple(examples),
        query=(("alpha0.png", 0), (name, 1)),
    )
    small = Task(
        question="and this?",
        answers=("a", "b"),
        prompts=("this is a", "this is b"),
        support=((name, 0), (good[0], 1)),
        query=((good[1], 1),),
    )
    for workers in 0, 1:
        with pytest.raises(FileError, match=words) as error:
            build_bank(tmp_path / "stop", Toy(), [spoilt, small], load_files, workers=workers)
        assert str(folder / name) in str(error.value)
        with pytest.raises(FileError, match="unfinished"):
            FeatureBank.open(tmp_path / "stop")
    bank = build_bank(tmp_path / "skip", Toy(), [spoilt, small], load_files, skip_bad=True)
    assert list(bank.index.bad) == [name] and words in bank.index.bad[name]
    kept, report = leave_out([spoilt, small], bank.index.bad)
    assert [t.question for t in kept] == ["what?"] and kept[0].query == (("alpha0.png", 0),)
    assert len(report) == 2 and "task left out" in report[1]
    assert torch.equal(
        bank.images[bank.image_rows(kept[0].images)], Toy().encode_images(load_files(kept[0].images)).half()
    )
    assert build_bank(tmp_path / "skip", Toy(), [spoilt, small], load_files, skip_bad=True).index.bad == bank.index.bad
    with pytest.raises(FileError, match="leaves out 1 unreadable"):
        build_bank(tmp_path / "skip", Toy(), [spoilt, small], load_files)


def test_free_paths(folder, tmp_path):
    "Ids are paths in the folder: nested, absolute, with an ending of any kind or without one."
    rgb = Image.open(folder / "alpha1.png").convert("RGB")
    (tmp_path / "my pictures").mkdir()
    rgb.save(tmp_path / "my pictures" / "über.tiff")
    rgb.save(tmp_path / "my pictures" / "plain.bmp")
    rgb.save(tmp_path / "no ending", "PNG")
    rgb.save(tmp_path / "UPPER.PNG")
    load_files = ImageFolder(tmp_path, Preprocessing(8, (0.5,) * 3, (0.5,) * 3))
    pixels = load_files(
        [
            "my pictures/über.tiff",
            "my pictures/plain.bmp",
            "no ending",
            "UPPER.PNG",
            str(tmp_path / "UPPER.PNG"),
            str(tmp_path / "UPPER"),
            "my pictures/plain",
            "UPPER.png",
        ]
    )
    assert (pixels == pixels[:1]).all()


OUTSIDE = ["../alpha1.png", "/etc/passwd", "a/../../x.png", "COCO_../x", "a\0b", "", "x" * 300, "COCO_.."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_pictures_stay_in_their_folder(folder, tmp_path, name):
    shutil.copy(folder / "alpha1.png", tmp_path / "x.png")
    (tmp_path / "inside").mkdir()
    with pytest.raises(FileError):
        ImageFolder(tmp_path / "inside").path(name)


def test_capitals_and_accents_of_file_names(tmp_path):
    "img_1.JPG is found for img_1 and img_1.jpg; an accent may be one sign or two, on either side."
    load_files = ImageFolder(tmp_path)
    for name in (
        "img_1.JPG",
        "IMG_2.Png",
        unicodedata.normalize("NFD", "café.jpg"),
        unicodedata.normalize("NFC", "née.Jpeg"),
    ):
        (tmp_path / name).touch()
    for asked, found in ("img_1", "img_1.JPG"), ("img_1.jpg", "img_1.JPG"), ("IMG_2", "IMG_2.Png"):
        assert load_files.path(asked).name == found
    for asked in "café", "café.jpg", "née", "née.jpeg":
        for form in "NFC", "NFD":
            assert load_files.path(unicodedata.normalize(form, asked)).exists()
    (tmp_path / "img_1.jpg").touch()
    assert load_files.path("img_1.jpg").name == "img_1.jpg" and load_files.path("img_1.JPG").name == "img_1.JPG"
    with pytest.raises(FileError, match="no file for image 'IMG_1'"):
        load_files.path("IMG_1")


# What files say of their pictures

PLAIN = Preprocessing(64, (0.5,) * 3, (0.5,) * 3)
HALVES = np.zeros((64, 64, 3), np.uint8)
HALVES[:32] = (250, 100, 20)  # coloured above, black below
HALVES[:, :16] //= 2  # and darker on the left


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_files_say(tmp_path, orientation, ending):
    "The oracle is the definition: orientation n is undone by the transposition of the same name."
    undo = Image.Transpose
    stored = {
        2: [undo.FLIP_LEFT_RIGHT],
        3: [undo.ROTATE_180],
        4: [undo.FLIP_TOP_BOTTOM],
        5: [undo.TRANSPOSE],
        6: [undo.ROTATE_90],
        7: [undo.TRANSVERSE],
        8: [undo.ROTATE_270],
    }.get(orientation, [])
    image, exif = Image.fromarray(HALVES), Image.Exif()
    for step in stored:
        image = image.transpose(step)
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{ending}", exif=exif, **({} if ending in ("png", "tiff") else {"quality": 95}))
    seen = read_image(tmp_path / f"x.{ending}", PLAIN).astype(int)
    inside = np.s_[[8, 8, 56, 56], [4, 60, 4, 60]]
    assert abs(seen[inside] - HALVES[inside]).max() < 12


def test_grey_of_sixteen_bits_and_of_floating_point(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (256, 1))
    wide = Preprocessing(256, (0.5,) * 3, (0.5,) * 3)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    Image.fromarray(ramp).save(tmp_path / "x.tiff")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "f.tiff")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "i.tiff")
    for name in "x.png", "x.tiff", "f.tiff", "i.tiff":
        seen = read_image(tmp_path / name, wide)
        assert (seen[:, :, 0] == np.arange(256)).all() and (seen == seen[..., :1]).all(), name
    for value in 2.0, -1.0, np.nan, np.inf:
        Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "odd.tiff")
        with pytest.raises(FileError, match="odd.tiff.*expected grey values from 0 to 1"):
            read_image(tmp_path / "odd.tiff", wide)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_colour_is_read(tmp_path, mode):
    image = Image.fromarray(HALVES).convert(mode)
    image.save(tmp_path / "x", "TIFF" if mode == "CMYK" else "PNG")
    assert (read_image(tmp_path / "x", PLAIN) == np.asarray(image.convert("RGB"))).all()


def test_the_first_picture_of_a_gif(tmp_path):
    first, second = Image.fromarray(HALVES), Image.fromarray(255 - HALVES)
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    assert abs(read_image(tmp_path / "x.gif", PLAIN).astype(int) - HALVES).mean() < 3


@pytest.mark.parametrize("format", ["EPS", "JPEG2000", "TGA", "ICO", "PPM", "PCX", "PDF"])
def test_other_formats_are_refused_whatever_they_are_called(tmp_path, format):
    Image.fromarray(HALVES).save(tmp_path / "x", format)
    (tmp_path / "x").rename(tmp_path / "x.jpg")
    with pytest.raises(FileError, match="x.jpg.*expected a picture"):
        read_image(tmp_path / "x.jpg", PLAIN)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damaged_pictures_are_the_fault_of_their_files(tmp_path, format):
    "Whatever the decoder raises, the error is ours and names the file."
    buffer, rng = io.BytesIO(), random.Random(0)
    Image.fromarray(HALVES[::2, ::2]).save(buffer, format)
    whole, refused = buffer.getvalue(), 0
    for _ in range(150):
        spoilt = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8])):
            spoilt[rng.randrange(min(len(spoilt), rng.choice([64, 256, len(spoilt)])))] = rng.randrange(256)
        (tmp_path / "x.jpg").write_bytes(spoilt[: rng.randrange(len(spoilt))] if rng.random() < 0.3 else spoilt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_image(tmp_path / "x.jpg", PLAIN).shape == (64, 64, 3)
            except FileError as error:
                assert str(tmp_path / "x.jpg") in str(error)
                refused += 1
    assert refused > 10 or format == "BMP"


class Raises:
    "A decoder that meets something unheard of."

    def __init__(self, error):
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), MemoryError(), RuntimeError("x"), KeyError(1), RecursionError()]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_decoder_that_fails_oddly_is_counted(folder, tmp_path, monkeypatch, error, workers):
    load_files = ImageFolder(folder, Preprocessing(4, (0.5,) * 3, (0.5,) * 3))
    names = [f"COCO_train2014_{i:012}" for i in range(4)]
    one = Task(
        question="what?",
        answers=("a", "b"),
        prompts=("it is a", "it is bb"),
        support=((names[0], 0), (names[1], 1)),
        query=((names[2], 0), ("alpha0.png", 1)),
    )
    real = Image.open
    odd = Raises(error)
    monkeypatch.setattr(Image, "open", lambda path, **how: (odd if "alpha0" in str(path) else real)(path, **how))
    with pytest.raises(FileError, match=f"alpha0.png.*{type(error).__name__}"):
        build_bank(tmp_path / "stop", Toy(), [one], load_files, workers=workers)
    bank = build_bank(tmp_path / "skip", Toy(), [one], load_files, workers=workers, skip_bad=True)
    assert list(bank.index.bad) == ["alpha0.png"]


def test_pipes_among_the_pictures_are_refused(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(FileError, match="x.jpg: expected a file, found a pipe"):
        ImageFolder(tmp_path, PLAIN)(["x"])


# A folder that is not the bank's, pieces that answer another request


@pytest.mark.parametrize("kind", ["tar", "index", "temporary", "link", "photo", "shards link", "texts", "piece"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, kind):
    user = tmp_path / "user"
    (user / "shards").mkdir(parents=True)
    if kind == "tar":
        (user / "shards" / "train-0001.tar").write_text("mine")
    elif kind == "index":
        (user / "index.json").write_text('{"mine": 1}')
    elif kind == "temporary":
        (user / ".draft.tmp").write_text("mine")
    elif kind == "link":
        (tmp_path / "elsewhere").write_text("mine")
        (user / "texts.safetensors").symlink_to(tmp_path / "elsewhere")
    elif kind == "texts":  # a bank's own names, without its index
        (user / "shards").rmdir()
        (user / "texts.safetensors").write_text("mine")
    elif kind == "piece":
        (user / "shards" / "00000000.safetensors").write_text("mine")
    elif kind == "photo":
        (user / "beach.png").write_text("mine")
    else:
        (user / "shards").rmdir()
        (tmp_path / "far").mkdir()
        (tmp_path / "far" / "00000000.safetensors").write_text("mine")
        (user / "shards").symlink_to(tmp_path / "far")
    before = {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(FileError, match="expected a bank of features or an empty folder"):
        build_bank(user, Toy(), TASKS, load, workers=0)
    assert {p: p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == before


def renamed(i, n=10):
    return msgspec.structs.replace(task(i, n), question=f"how is  {i}?", prompts=(f"{i} is not a", f"{i} may be b"))


@pytest.mark.parametrize("finished", [True, False])
def test_without_a_manifest_pieces_of_another_request_are_made_anew(tmp_path, finished):
    "The same number of other texts, or of other pictures, never gets the features of the first ones."

    def stop(ids):
        if ids[0] >= "03":
            raise KeyboardInterrupt
        return load(ids)

    others = [renamed(i) for i in range(6)]
    try:
        build_bank(tmp_path / "bank", Toy(), TASKS, load if finished else stop, shard=16, batch_size=16, workers=0)
    except KeyboardInterrupt:
        pass
    (tmp_path / "bank" / "manifest.json").unlink()
    bank = build_bank(tmp_path / "bank", Toy(), others, load, shard=16, batch_size=16, workers=0)
    build_bank(tmp_path / "whole", Toy(), others, load, shard=16, batch_size=16, workers=0)
    assert same(tmp_path / "whole", tmp_path / "bank") and bank.index.prompts == sorted(
        p for t in others for p in t.prompts
    )


def picture_task(names):
    examples = tuple((name, i % 2) for i, name in enumerate(names))
    return Task(
        question="what?", answers=("a", "b"), prompts=("it is a", "it is bb"), support=examples[2:], query=examples[:2]
    )


@pytest.mark.parametrize("finished", [True, False])
def test_pictures_changed_under_the_same_name_are_noticed(tmp_path, finished):
    pictures, names = tmp_path / "pictures", [f"p{i}" for i in range(8)]
    pictures.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(np.full((4, 4, 3), 20 * i, np.uint8)).save(pictures / f"{name}.png")
    load_files, tasks = ImageFolder(pictures, Preprocessing(4, (0.5,) * 3, (0.5,) * 3)), [picture_task(names)]

    def build():
        return build_bank(tmp_path / "bank", Toy(), tasks, load_files, shard=4, batch_size=4, workers=0)

    if not finished:
        (pictures / "p6.png").rename(tmp_path / "later.png")
        with pytest.raises(FileError, match="no file for image 'p6'"):
            build()
        (tmp_path / "later.png").rename(pictures / "p6.png")
    else:
        build()
        build()
    Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).save(pictures / "p0.png")
    if finished:
        with pytest.raises(FileError, match="pictures: 1 have changed since they were encoded, such as 'p0'"):
            build()
    else:
        bank = build()
        fresh = Toy().encode_images(load_files(bank.index.images)).half()
        assert torch.equal(bank.images, fresh)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_found_where_they_arise(tmp_path, value):
    "In texts as in pictures; the message names the first."

    class Spoilt(Toy):
        def __init__(self, word, image):
            self.word, self.image = word, image

        def encode_texts(self, texts, pooling):
            wrong = torch.tensor([[value if self.word in text else 0.0, 0.0] for text in texts])
            return super().encode_texts(texts, pooling) + wrong

        def encode_images(self, images):
            return super().encode_images(images) + (value if self.image else 0.0)

    for encoder, words in (
        (Spoilt("4 is b", False), "'4 is b'"),
        (Spoilt("what is 3", False), "'what is 3"),
        (Spoilt("-", True), "'00/000'"),
    ):
        with pytest.raises(ValueError, match=f"expected finite features from toy.*first for {words}"):
            build_bank(tmp_path / words.strip("'")[:4].replace("/", ""), encoder, TASKS, load, workers=0)


def test_verify_reads_every_file(tmp_path):
    bank = build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    for name in ("index.json", "texts.safetensors", "images.safetensors"):
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(FileError, match=name):
            bank.verify()
        (tmp_path / name).write_bytes(good)
    bank.verify()


def test_texts_with_one_vector_are_mentioned(tmp_path):
    tasks = [msgspec.structs.replace(task(0), prompts=("it is red", "it is Red"))]
    with pytest.warns(
        UserWarning, match="prompts: 2 different texts share 1 vectors, such as 'it is Red' and 'it is red'"
    ):
        build_bank(tmp_path, Toy(), tasks, load, workers=0)


def test_an_encoder_with_one_way_to_embed_makes_a_bank(tmp_path):
    class One(Toy):
        poolings = ("clip",)

        def encode_texts(self, texts, pooling):
            assert pooling == "clip"
            return super().encode_texts(texts, pooling)

    assert set(build_bank(tmp_path, One(), TASKS, load, workers=0).questions) == {"clip"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("finished", [True, False])
def test_a_pipe_in_a_bank_is_refused_and_never_waited_for(tmp_path, name, finished):
    build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    if not finished:
        manifest = json.loads((tmp_path / "manifest.json").read_text()) | {"complete": False, "files": {}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    if not finished and name == "images.safetensors":  # it is written now, whole or not at all, and never read before
        assert build_bank(tmp_path, Toy(), TASKS, load, workers=0).images.isfinite().all()
        return
    with pytest.raises(FileError, match=f"{name}: expected a file, found a pipe"):
        build_bank(tmp_path, Toy(), TASKS, load, workers=0)


def test_a_pipe_for_a_checkpoint_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text("{}")
    pipe = str(tmp_path / "open_clip_model.safetensors")
    for model, pretrained in (f"local-dir:{tmp_path}", None), ("ViT-B-32", pipe):
        with pytest.raises(FileError, match="expected a file, found a pipe"):
            load_encoder(model, pretrained, quick_gelu=False)


def test_a_manifest_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a page", "icons": []}')
    with pytest.raises(FileError, match="manifest.json: .*encoder"):
        build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    assert os.listdir(tmp_path) == ["manifest.json"]  # not even a lock


@pytest.mark.parametrize("name", ["images", "prompts", "questions"])
def test_two_rows_of_one_name_are_refused(tmp_path, name):
    build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    index, manifest = (json.loads((tmp_path / f"{file}.json").read_text()) for file in ("index", "manifest"))
    index[name][1] = index[name][0]
    (tmp_path / "index.json").write_text(json.dumps(index))
    manifest["files"]["index.json"] = files.sha256_of(tmp_path / "index.json")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match=f"index.json: {name}: .* occurs more than once"):
        FeatureBank.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"schema": 2}))
    with pytest.raises(FileError, match="manifest.json: expected schema 1, got 2"):
        FeatureBank.open(tmp_path)


def test_a_matrix_of_another_shape_than_the_index_says_is_named(tmp_path):
    bank = build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for shape in (len(bank.images) + 1, 3), (len(bank.images),), (len(bank.images), 0), (len(bank.images), 2, 2):
        save_file({"images": torch.ones(shape, dtype=torch.float16)}, tmp_path / "images.safetensors")
        manifest["files"]["images.safetensors"] = files.sha256_of(tmp_path / "images.safetensors")
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(FileError, match=r"images.safetensors: expected float16 \[\d+, E\], got"):
            FeatureBank.open(tmp_path)


@pytest.mark.parametrize("name", ["prompts", "questions.clip", "questions.tokens"])
@pytest.mark.parametrize("change", [lambda x: x[1:], lambda x: torch.cat([x, x]), lambda x: x[:, 0], torch.Tensor.int])
def test_rows_that_do_not_fit_the_index_are_named(tmp_path, name, change):
    "Whole files that belong to different banks: every hash is right, and the rows are somebody else's."
    build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    texts = load_file(tmp_path / "texts.safetensors")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for tensors in texts | {name: change(texts[name])}, {k: x for k, x in texts.items() if k != "prompts"}:
        save_file({k: x.contiguous() for k, x in tensors.items()}, tmp_path / "texts.safetensors")
        manifest["files"]["texts.safetensors"] = files.sha256_of(tmp_path / "texts.safetensors")
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        key = name if "prompts" in tensors else "prompts"
        with pytest.raises(
            FileError, match=rf"texts.safetensors: {key}: expected \[\d+, E\], .*index.json, got torch."
        ):
            FeatureBank.open(tmp_path)


def test_a_finished_bank_is_used_where_nothing_can_be_written(tmp_path, monkeypatch):
    build_bank(tmp_path, Toy(), TASKS, load, workers=0)
    (tmp_path / ".lock").unlink(missing_ok=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(files.os, "access", lambda path, mode: mode != os.W_OK)
    build_bank(tmp_path, Toy(), TASKS, Raises(AssertionError("loaded again")), workers=0)
    assert sorted(tmp_path.rglob("*")) == before


# The encoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "The paper's model cut to two layers with random weights, as safetensors and as a state dict."
    folder = tmp_path_factory.mktemp("checkpoint")
    config = open_clip.get_model_config("ViT-L-14-336")
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2
    (folder / "two-layer-L-14-336.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "two-layer-L-14-336.json")
    torch.manual_seed(0)
    model = open_clip.CLIP(**config, quick_gelu=True).eval()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(model.state_dict(), folder / "model.pt")
    return folder, model


@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_local_checkpoint(folder, checkpoint, file):
    where, model = checkpoint
    encoder = load_encoder("two-layer-L-14-336", str(where / file), quick_gelu=True)
    assert encoder.embed_dim == 768 and encoder.preprocessing.size == 336
    paths = sorted(folder.glob("train2014/*.jpg"))[:2]
    reference = image_transform(336, is_train=False, resize_mode="squash")
    with torch.no_grad():
        want = model.encode_image(torch.stack([reference(Image.open(p)) for p in paths]))
        texts = model.encode_text(open_clip.get_tokenizer("ViT-L-14-336")(["what color is the bowl?"]))
    torch.testing.assert_close(encoder.encode_images(paths), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_texts(["What color is the bowl?"]), texts, atol=1e-4, rtol=1e-4)
    other = load_encoder("two-layer-L-14-336", str(where / file), quick_gelu=False)
    assert {k for k in encoder.fingerprint if encoder.fingerprint[k] != other.fingerprint[k]} == {"activation"}
    assert not torch.allclose(encoder.encode_texts(["a bowl"]), other.encode_texts(["a bowl"]), atol=1e-4)


def test_openai_tags_bring_their_activation(monkeypatch, checkpoint):
    "The tag's own setting is used, since open_clip only warns about a mismatch."
    where, _ = checkpoint
    seen = {}

    def create(*args, **kwargs):
        seen.update(kwargs)
        raise RuntimeError("far enough")

    monkeypatch.setattr(open_clip, "create_model", create)
    for tag, want in ("openai", True), ("laion2b_s32b_b82k", False):
        with pytest.raises(ValueError, match="far enough"):
            load_encoder("ViT-L-14" if not want else "ViT-L-14-336", tag)
        assert seen["force_quick_gelu"] is want and seen["weights_only"] is True


def test_nothing_is_unpickled(tmp_path, checkpoint):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="could not load"):
        load_encoder("two-layer-L-14-336", str(tmp_path / "bomb.pt"), quick_gelu=True)
    assert not (tmp_path / "ran").exists()


def test_the_activation_of_a_file_is_settled_or_asked_for(checkpoint):
    "A file does not say which activation its weights were trained with; a model's own configuration may."
    where, model = checkpoint
    with pytest.raises(ValueError, match="expected the activation that .*--activation quick_gelu"):
        load_encoder("two-layer-L-14-336", str(where / "model.pt"))
    config = open_clip.get_model_config("two-layer-L-14-336") | {"quick_gelu": True}
    (where / "two-layer-quickgelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(where / "two-layer-quickgelu.json")
    encoder = load_encoder("two-layer-quickgelu", str(where / "model.pt"))
    assert encoder.fingerprint["activation"] == "quick_gelu"


def test_checkpoints_of_trainings_are_read_and_programs_refused(tmp_path, checkpoint):
    "A training keeps its best score, a number of numpy, beside the weights. A TorchScript archive is a program."
    where, model = checkpoint
    torch.save({"epoch": 3, "best": np.float64(1.0), "state_dict": model.state_dict()}, tmp_path / "train.pt")
    encoder = load_encoder("two-layer-L-14-336", str(tmp_path / "train.pt"), quick_gelu=True)
    assert encoder.fingerprint["weights"] == weights_hash(model)
    torch.jit.script(torch.nn.Identity()).save(tmp_path / "program.pt")
    with pytest.raises(ValueError, match="program.pt: it is a TorchScript archive.*torch.save"):
        load_encoder("two-layer-L-14-336", str(tmp_path / "program.pt"), quick_gelu=True)


@pytest.mark.parametrize("tower", ["transformer", "resnet"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close_to_full(tmp_path, tower, dtype):
    vision = {
        "transformer": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    }[tower]
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    (tmp_path / f"half-{tower}.json").write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / f"half-{tower}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(f"half-{tower}").state_dict(), tmp_path / "x.pt")
    full, half = (
        load_encoder(f"half-{tower}", str(tmp_path / "x.pt"), dtype=d, quick_gelu=False) for d in ("float32", dtype)
    )
    size = vision["image_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    for a, b in (
        (full.encode_images(pixels), half.encode_images(pixels)),
        (full.encode_texts(["red"]), half.encode_texts(["red"])),
    ):
        assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99
    assert half.fingerprint["computed in"] == dtype


def test_a_text_that_another_tokenizer_cuts_is_refused():
    "Tokenizers that cut without a word: refused exactly where something is lost."
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 300,
            "width": 64,
            "heads": 1,
            "layers": 1,
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
        },
    }

    class Cuts:
        context_length = 16

        def __call__(self, texts):
            return torch.tensor([(list(text.encode()) + [1] * 16)[:16] for text in texts])

    encoder = ClipEncoder(open_clip.CustomTextCLIP(**config), Cuts(), PLAIN, "cuts")
    assert encoder.poolings == ("clip",)
    assert len(encoder.encode_texts(["x" * n for n in range(1, 17)])) == 16
    for text in "x" * 16 + "y", "a very long question about the red bowl":
        with pytest.raises(ValueError, match="expected at most 16 tokens, got more"):
            encoder.encode_texts(["fits", text])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("ViT-L-14-336",), "known tags: openai"),
        (("ViT-B-32", "nothing.pt"), "nothing.pt"),
        (("no-such-model", "openai"), "no-such-model"),
        (("local-dir:/nowhere",), "nowhere"),
        (("ViT-B-32", "openai", "cpu", "float8"), "float8"),
    ],
)
def test_models_that_cannot_be_loaded(arguments, words):
    with pytest.raises(ValueError, match=words):
        load_encoder(*arguments)


def test_token_means_of_other_towers():
    "CustomTextCLIP keeps its text tower in `text`; towers that don't end at their largest token have no known end."
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    tokenizer, pictures = open_clip.SimpleTokenizer(context_length=10), Preprocessing(16, (0.5,) * 3, (0.5,) * 3)
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config)
    encoder = ClipEncoder(model, tokenizer, pictures, "custom")
    assert encoder.encode_texts(["a red bowl"], "tokens").shape == (1, 64)
    alone, padded = (
        encoder.encode_texts(["a red bowl"], "tokens"),
        encoder.encode_texts(["a red bowl", "a much longer text here"], "tokens"),
    )
    torch.testing.assert_close(alone[0], padded[0])
    model.text.pool_type = "last"
    with pytest.raises(ValueError, match="largest token"):
        encoder.encode_texts(["a red bowl"], "tokens")


def test_a_missing_package_is_named(monkeypatch):
    def create(*args, **how):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(open_clip, "create_model", create)
    with pytest.raises(
        ValueError, match="needs the package 'transformers', which is not installed: pip install transf"
    ):
        load_encoder("local-dir:/x")
