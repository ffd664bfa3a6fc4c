"""Every artifact with every kind of damage: reading it ends in the project's own error, which names the file, or in
the content as it was."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from drilling import LONG, SEED, finished
from toy_bank import TASKS, Toy, load

from hyperclip_nb.core.files import FileError, HyperclipError
from hyperclip_nb.core.runs import Run, checkpointed
from hyperclip_nb.core.training import TrainConfig, fit
from hyperclip_nb.dataset import questions
from hyperclip_nb.dataset.features import FeatureBank, build_bank
from hyperclip_nb.dataset.meta_vqa import load_meta_vqa
from hyperclip_nb.dataset.meta_vqa_check import check_meta_vqa
from hyperclip_nb.dataset.questions import kept_labels
from hyperclip_nb.dataset.sources import read_tasks
from hyperclip_nb.evaluation.results import read_results

pytestmark = [pytest.mark.drill, pytest.mark.filterwarnings("ignore:.*different texts share")]


# Artifacts: the files of a folder, and how their readers see them


class Artifact(NamedTuple):
    file: str
    read: Callable[[Path], Any]  # the folder -> what it says, to compare
    sealed: bool = True  # does a hash elsewhere notice every change? What a person may edit has none


def bank_of(folder: Path) -> list:
    bank = FeatureBank.open(folder / "features").verify()
    return [bank.index, bank.images.tolist(), bank.prompts.tolist(), {k: v.tolist() for k, v in bank.questions.items()}]


def rebuilt(folder: Path) -> list:
    "An unfinished bank is finished: from its pieces, or without them."
    build_bank(folder / "half", Toy(), TASKS[:3], load, shard=20, batch_size=10, workers=0)
    bank = FeatureBank.open(folder / "half").verify()
    return [bank.images.tolist(), bank.index.images]


def state(folder: Path) -> list:
    "A training that goes on from its checkpoint."
    x = torch.nn.Parameter(torch.ones(3))
    steps = fit(
        [x],
        lambda batch, generator: ((x - batch) ** 2).sum(),
        lambda generator: torch.randn(3, generator=generator),
        TrainConfig(steps=6, lr=0.1),
    )
    for _ in checkpointed(steps, folder / "training" / "x.resume.safetensors", {"x": 1}, every=2):
        pass
    return x.tolist()


def part(folder: Path) -> list:
    run = Run.open(folder / "training")
    return [(k, v.tolist()) for k, v in run.load("scores-0").items()]


def whole_run(folder: Path) -> Any:
    run = Run.open(folder / "training")
    run.verify()
    return read_results(folder / "training")


def checked(folder: Path) -> None:
    if problems := check_meta_vqa(folder / "build").problems:
        raise FileError("; ".join(problems))


ARTIFACTS = {
    "part": Artifact("training/scores-0.safetensors", part),
    "checkpoint": Artifact("training/x.resume.safetensors", state),
    "run manifest": Artifact("training/manifest.json", part),
    "results": Artifact("training/results.json", whole_run),
    "results alone": Artifact("training/results.json", lambda folder: read_results(folder / "training"), sealed=False),
    "bank index": Artifact("features/index.json", bank_of),
    "bank manifest": Artifact("features/manifest.json", bank_of),
    "bank images": Artifact("features/images.safetensors", bank_of),
    "bank texts": Artifact("features/texts.safetensors", bank_of),
    "bank shard": Artifact("half/shards/00000000.safetensors", rebuilt),
    "index of an unfinished bank": Artifact("half/index.json", rebuilt),
    "manifest of an unfinished bank": Artifact("half/manifest.json", rebuilt),
    "task file": Artifact("tasks/train.json", lambda folder: read_tasks(folder / "tasks"), sealed=False),
    "built task file": Artifact("build/meta_train.json", lambda folder: load_meta_vqa(folder / "build")),
    "task file that is checked": Artifact("build/meta_test.json", checked),
    "templates that are checked": Artifact("build/prompt_meta.json", checked),
    "record of the build": Artifact(
        "build/meta_vqa.json", lambda folder: load_meta_vqa(folder / "build"), sealed=False
    ),
    "labels": Artifact("labels.safetensors", lambda folder: kept_labels(folder / "labels.safetensors")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A folder with all of them."
    home = finished(tmp_path_factory)[0]
    made = tmp_path_factory.mktemp("damage") / "made"
    shutil.copytree(home, made, ignore=shutil.ignore_patterns("pictures", "vqa", "coco"))
    with pytest.raises(KeyboardInterrupt):
        pieces = []

        def stop(ids):
            if len(pieces) == 4:
                raise KeyboardInterrupt
            pieces.append(ids)
            return load(ids)

        build_bank(made / "half", Toy(), TASKS[:3], stop, shard=20, batch_size=10, workers=0)
    return made


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    "A copy of that folder, to be damaged, with labels that take no time to list."
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.setattr(questions, "list_labels", lambda question, seed, images: [len(question.text)] * images)
    kept_labels(tmp_path / "made" / "labels.safetensors")
    state(tmp_path / "made")
    return tmp_path / "made"


# Kinds of damage


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(1, len(data))])


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for place in rng.sample(range(len(data)), min(len(data), rng.choice([1, 1, 8]))):
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def other_type(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice([b"[1, 2]", b'"text"', b"null", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"3"]))


def other_content(path: Path, rng: random.Random) -> None:
    root = next(parent for parent in path.parents if parent.name == "made")
    others = [other for other in root.rglob(f"*{path.suffix}") if other.read_bytes() != path.read_bytes()]
    shutil.copy(rng.choice(sorted(others)), path)


def unknown_field(path: Path, rng: random.Random) -> None:
    if path.suffix == ".json":
        data = json.loads(path.read_bytes())
        place = rng.choice([data, *(v for v in data.values() if isinstance(v, dict))])
        place["unheard_of"] = rng.choice([1, "x", [], {"a": None}])
        path.write_text(json.dumps(data))
    else:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header.setdefault("__metadata__", {})["unheard_of"] = "x"
        header["unheard_of"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data) - 8 - size] * 2}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def nan_inside(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    if path.suffix == ".json":
        numbers = [*re.finditer(rb'(?<=[ \[:,])(-?\d+(\.\d+)?|"[^"]*")(?=[,\]\s}])', data)]
        found = rng.choice(numbers)
        word = rng.choice([b"NaN", b"Infinity", b"1e999"])
        path.write_bytes(data[: found.start()] + word + data[found.end() :])
    else:
        path.write_bytes(data[:-4] + b"\x00\x00\xc0\x7f")


def link_or_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    kind = rng.choice(["folder", "link to nothing", "link in a circle", "pipe"])
    if kind == "folder":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "link in a circle":
        path.symlink_to(path.name)
    else:
        os.mkfifo(path)


DAMAGE = [empty, cut, flipped, other_type, other_content, unknown_field, nan_inside, link_or_folder]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ARTIFACTS)
def test_damage_is_noticed_and_named(folder, name, damage):
    artifact = ARTIFACTS[name]
    path, rng = folder / artifact.file, random.Random(f"{SEED} {name} {damage.__name__}")
    top = artifact.file.partition("/")[0]
    shutil.move(folder / top, folder.parent / top)
    restore(folder.parent / top, folder / top)
    good = artifact.read(folder)
    for _ in range(25 if LONG else 2):
        restore(folder.parent / top, folder / top)
        damage(path, rng)
        try:
            found = artifact.read(folder)
        except HyperclipError as error:
            named = path.name in str(error) or str(path.parent) in str(error)
            assert named, f"{path}: not named in: {error}"
        else:
            assert found == good or not artifact.sealed, "another content, and nobody noticed"


def restore(kept: Path, place: Path) -> None:
    if kept.is_file():
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        shutil.copy(kept, place)
        return
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(kept, place)
