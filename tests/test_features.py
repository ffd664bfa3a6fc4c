"The bank of features under bad luck: kills, damage, mismatches, unreadable files; and the encoder against its references."

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

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

from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.encoders import ClipEncoder, ImageFolder, Preprocessing, load_encoder, read_image
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
    (tmp_path / "killed" / "shards" / ".00000064.safetensors.1-1.tmp").write_bytes(b"half")
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

    with pytest.raises(FileError, match="not finite"):
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
        ("directory", "IsADirectory"),
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
    "Ids are paths: nested, absolute, with an ending of any kind or without one."
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
            str(folder / "alpha1.png"),
            str(folder / "alpha1"),
        ]
    )
    assert (pixels == pixels[:1]).all()


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
        load_encoder("two-layer-L-14-336", str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "ran").exists()


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
