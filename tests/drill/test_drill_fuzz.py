"""Every reader, with valid files that were changed here and there: what it raises is the project's own.

Changes know the structure: values of another kind or size, keys gone, twice or unheard of, and then bytes."""

import copy
import hashlib
import io
import json
import random
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drilling import LONG, SEED, finished
from PIL import Image

from hyperclip_nb.core.files import FileError, HyperclipError
from hyperclip_nb.core.runs import Run
from hyperclip_nb.dataset.coco_tasks import read_objects
from hyperclip_nb.dataset.encoders import ImageFolder, Preprocessing
from hyperclip_nb.dataset.features import FeatureBank
from hyperclip_nb.dataset.meta_vqa import (
    ANNOTATIONS,
    QUESTIONS,
    build_meta_vqa,
    load_meta_vqa,
    read_templates,
    read_vqa,
)
from hyperclip_nb.dataset.meta_vqa_check import check_meta_vqa
from hyperclip_nb.dataset.small_clip import WEIGHTS, SmallTokenizer, small_clip_record
from hyperclip_nb.dataset.sources import read_tasks
from hyperclip_nb.evaluation.asking import open_experiment
from hyperclip_nb.evaluation.presets import Source
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.evaluation.results import read_results

pytestmark = [pytest.mark.drill, pytest.mark.filterwarnings("ignore")]

# JSON

ODD: list[Any] = [None, True, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, 1e300, "", " ", "\0", "a" * 300]
ODD += ["{}", "{", "..", "../x", "/etc/passwd", "é\u0301", "\ud800", "\u202e", "NaN", [], {}, [[]], [None], {"": {}}]


def places(data: Any, path: tuple = ()) -> Iterator[tuple]:
    "Where the values of a document are, its root first."
    yield path
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*path, key))


def at(data: Any, path: tuple) -> Any:
    for key in path:
        data = data[key]
    return data


def mutated(data: Any, paths: list[tuple], rng: random.Random) -> bytes:
    "The document with one to three changes, as bytes; now and then the bytes are changed too."
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        path = rng.choice(paths)
        try:
            holder = at(data, path[:-1])
            if not path:
                data = rng.choice([data, [data], *ODD]) if rng.random() < 0.1 else data
                continue
            change = rng.randrange(6)
            if change == 0:
                del holder[path[-1]]
            elif change == 1:
                holder[path[-1]] = at(data, rng.choice(paths))  # another value of the document
            elif change == 2 and isinstance(holder, dict):
                holder[str(rng.choice(ODD))] = holder.pop(path[-1])
            elif change == 3 and isinstance(holder, list):
                holder.append(copy.deepcopy(holder[path[-1]]))
            elif change == 4 and isinstance(holder[path[-1]], dict):
                holder[path[-1]]["unheard_of"] = rng.choice(ODD)
            else:
                holder[path[-1]] = rng.choice(ODD)
        except (LookupError, TypeError):  # an earlier change took the place away
            continue
    try:
        content = json.dumps(data, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    except ValueError:  # a document that holds itself
        content = b"[" * 5000
    kind = rng.randrange(40)
    if kind == 0:
        content = content[: rng.randrange(len(content) + 1)]
    elif kind == 1:
        content = content.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-8-sig", "utf-32", "utf-16-le"]))
    elif kind == 2:
        content = content.replace(b":", b": NaN, " if rng.random() < 0.5 else b": " + b"[" * 3000, 1)
    elif kind < 6:
        changed = bytearray(content)
        for place in rng.choices(range(len(changed)), k=min(3, len(changed))):
            changed[place] = rng.randrange(256)
        content = bytes(changed)
    return content


class Reader:
    "What reads a folder, the files of it that the drill changes, and those that the reading changes."

    def __init__(self, read: Callable[[Path], Any], *files: str, changes: tuple[str, ...] = ()):
        self.read, self.files, self.changes = read, files, changes


def checked(folder: Path) -> None:
    if problems := check_meta_vqa(folder).problems:
        raise FileError(f"{folder}: {problems[0][:1000]}")


def prompts_of(folder: Path) -> None:
    build_meta_vqa(folder, folder / "out", read_templates(folder / "prompt_meta.json"))


def resealed(folder: Path) -> None:
    "A bank whose manifest has the right hash of a changed index."
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["index.json"] = hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    FeatureBank.open(folder).verify()


def small_clip_of(folder: Path) -> None:
    SmallTokenizer(small_clip_record(folder)["pieces"])(["a cat"])


def built(folder: Path) -> None:
    (folder / "meta_vqa.json").unlink(missing_ok=True)  # as published, without hashes
    load_meta_vqa(folder)


VQA = tuple(name.format(part) for name in (ANNOTATIONS, QUESTIONS) for part in ("train", "val"))
META = ("meta_train.json", "meta_test.json", "prompt_meta.json")
READERS = {  # name -> the folder, and what reads which of its files
    "tasks": ("tasks", Reader(read_tasks, "train.json", "test.json")),
    "Meta-VQA": ("build", Reader(built, *META)),
    "a build": ("build", Reader(load_meta_vqa, "meta_vqa.json", "meta_train.json")),
    "meta-vqa check": ("build", Reader(checked, *META, "ques_ans_count.json")),
    "prompts": ("vqa+", Reader(prompts_of, "prompt_meta.json")),
    "VQA": ("vqa", Reader(read_vqa, *VQA)),
    "COCO": ("coco", Reader(read_objects, *(f"instances_{part}2014.json" for part in ("train", "val")))),
    "manifest": ("training", Reader(lambda folder: Run.open(folder).verify(), "manifest.json")),
    "results": ("training", Reader(read_results, "results.json")),
    "recipe": ("scenes", Reader(open_experiment, "manifest.json")),
    "bank manifest": ("features", Reader(lambda folder: FeatureBank.open(folder).verify(), "manifest.json")),
    "small CLIP": ("small", Reader(small_clip_of, "small_clip.json")),
    "bank index": ("features", Reader(resealed, "index.json", changes=("manifest.json",))),
}
COUNT = (100_000 if LONG else 2_000) // len(READERS)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    whole, home = finished(tmp_path_factory)[0], tmp_path_factory.mktemp("fuzz") / "home"
    shutil.copytree(whole, home, ignore=shutil.ignore_patterns("pictures", "figures"))
    shutil.copytree(home / "vqa", home / "vqa+")
    asked = [*json.loads((home / "build" / "meta_train.json").read_bytes())][:2]
    for part in ("train", "val"):  # a few of the many entries, since every input is read as a whole
        for folder in "vqa", "vqa+":
            questions, annotations = (home / folder / name.format(part) for name in (QUESTIONS, ANNOTATIONS))
            data = json.loads(questions.read_bytes())
            few = data["questions"][:12]
            if folder == "vqa+":  # that is, those of two tasks
                few = [question for question in data["questions"] if question["question"] in asked]
            questions.write_text(json.dumps({**data, "questions": few}))
            data, ids = json.loads(annotations.read_bytes()), {question["question_id"] for question in few}
            data["annotations"] = [entry for entry in data["annotations"] if entry["question_id"] in ids]
            annotations.write_text(json.dumps(data))
    for part in ("train", "val"):
        path = home / "coco" / f"instances_{part}2014.json"
        data = json.loads(path.read_bytes())
        path.write_text(json.dumps({**data, "images": data["images"][:8], "annotations": data["annotations"][:8]}))
    prompts = {question: f"A thing is {{}} {i}" for i, question in enumerate(asked)}
    (home / "vqa+" / "prompt_meta.json").write_text(json.dumps(prompts))
    (home / "small").mkdir()
    (home / "small" / WEIGHTS).write_bytes(b"weights")
    record = {"sha256": hashlib.sha256(b"weights").hexdigest(), "pieces": [320, 2368, 533]}
    (home / "small" / "small_clip.json").write_text(json.dumps(record))
    run = Run.create(home / "scenes", {"dataset": "scenes", "world_seed": 0, "recipe": Recipe()})
    run.write_text("results.md", "a table")
    return home


@pytest.mark.parametrize("name", READERS)
def test_a_reader_raises_nothing_but_the_projects_own(home, tmp_path, monkeypatch, name):
    folder, reader = READERS[name]
    monkeypatch.setattr(Source, "open", lambda *arguments: None)  # the recipe has been read by then
    place, rng = tmp_path / folder, random.Random(f"{SEED} {name}")
    shutil.copytree(home / folder, place)
    originals = {path.name: path.read_bytes() for path in place.iterdir() if path.suffix == ".json"}
    documents = {file: json.loads(originals[file]) for file in reader.files}
    where = {file: [*places(document)] for file, document in documents.items()}
    refused, memory = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(COUNT):
        file = rng.choice(reader.files)
        content = mutated(documents[file], where[file], rng)
        (place / file).write_bytes(content)
        try:
            reader.read(place)
        except HyperclipError as error:
            refused += 1
            assert str(place) in str(error) and len(str(error)) < 3000, (i, file, str(error)[:500])
        except Exception as error:
            (tmp_path / f"{i}-{file}").write_bytes(content)
            pytest.fail(f"input {i}, {tmp_path / f'{i}-{file}'}: {type(error).__name__}: {str(error)[:300]}")
        for other in {file, *reader.changes}:
            (place / other).write_bytes(originals[other])
    assert COUNT / 10 < refused
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory  # kB: no number in a file may ask for gigabytes
    assert grown < 1_000_000


def test_a_manifest_with_a_name_that_no_file_can_have(tmp_path):
    run = Run.create(tmp_path, {})
    run.write_text("results.md", "a table")
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    manifest["files"]["a" * 300] = manifest["files"]["results.md"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HyperclipError, match="manifest.json|aaa"):
        Run.open(tmp_path)


# Pictures

PICTURES = 12_000 if LONG else 300


def pictures() -> list[bytes]:
    "A picture in every format and several of their forms."
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    forms = [(rgb, {"format": "JPEG"}), (rgb, {"format": "JPEG", "progressive": True}), (rgb, {"format": "PNG"})]
    forms += [(rgb.convert(mode), {"format": "PNG"}) for mode in ("P", "L", "LA", "RGBA", "1", "I;16")]
    forms += [(rgb, {"format": "WEBP"}), (rgb, {"format": "WEBP", "lossless": True}), (rgb, {"format": "BMP"})]
    forms += [(rgb, {"format": "GIF"}), (rgb, {"format": "GIF", "save_all": True, "append_images": [rgb.rotate(90)]})]
    forms += [
        (rgb, {"format": "TIFF", "compression": c}) for c in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")
    ]
    forms += [(rgb.convert("F"), {"format": "TIFF"}), (rgb.convert("CMYK"), {"format": "JPEG"})]
    exif = Image.Exif()
    exif[0x0112] = 6
    forms.append((rgb, {"format": "JPEG", "exif": exif}))
    found = []
    for image, options in forms:
        file = io.BytesIO()
        image.save(file, **options)
        found.append(file.getvalue())
    return found


def changed(data: bytes, rng: random.Random) -> bytes:
    "Bytes near the beginning, where sizes and tables are, more often than others."
    changed, kind = bytearray(data), rng.randrange(8)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        begin = rng.randrange(len(data))
        return data[:begin] + data[begin + rng.randrange(1, 9) :]
    if kind == 2:
        begin = rng.randrange(len(data))
        return data[:begin] + rng.randbytes(rng.randrange(1, 9)) + data[begin:]
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(min(len(data), rng.choice([32, 128, len(data)])))
        changed[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256), changed[place] ^ 1 << rng.randrange(8)])
    return bytes(changed)


def test_any_bytes_are_a_picture_or_a_named_fault(tmp_path):
    rng, valid = random.Random(SEED), pictures()
    load, path = ImageFolder(tmp_path, Preprocessing(16, (0.5,) * 3, (0.5,) * 3)), tmp_path / "x.png"
    for data in valid[:8]:
        path.write_bytes(data)
        assert load(["x"]).shape == (1, 16, 16, 3)
    for i in range(PICTURES):
        content = changed(rng.choice(valid), rng)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = load(["x"])
                assert pixels.shape == (1, 16, 16, 3) and pixels.dtype == np.uint8
            except FileError as error:
                assert str(path) in str(error)
            except Exception as error:
                (tmp_path / f"{i}.bin").write_bytes(content)
                pytest.fail(f"{tmp_path / f'{i}.bin'}: {type(error).__name__}: {error}")
