"A fault at every write, one after the other; a full disk; media that can only be read."

import builtins
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from drilling import LONG, content, finish, finished, start
from toy_bank import TASKS, Toy, load

from hyperclip_nb.core.files import HyperclipError
from hyperclip_nb.core.runs import Run, checkpointed
from hyperclip_nb.core.training import TrainConfig, fit
from hyperclip_nb.dataset.features import FeatureBank, build_bank
from hyperclip_nb.dataset.meta_vqa import build_meta_vqa, load_meta_vqa
from hyperclip_nb.dataset.tasks import load_tasks, save_tasks

pytestmark = pytest.mark.drill


# Small runs whose writes can be counted


def toy_run(out: Path) -> None:
    "Two parts, one of them trained with checkpoints, and a text."
    run = Run.create(out, {"dataset": "toy"}, seeds=[0])
    settings = TrainConfig(steps=6, lr=0.1)

    def build() -> dict[str, torch.Tensor]:
        x = torch.nn.Parameter(torch.ones(3))
        batches = lambda generator: torch.randn(3, generator=generator)
        steps = fit([x], lambda batch, generator: ((x - batch) ** 2).sum(), batches, settings)
        for _ in checkpointed(steps, run.checkpoint("trained"), settings, every=2):
            pass
        return {"x": x.detach()}

    trained = run.part("trained", settings, build)["x"]
    run.part("drawn", {"of": "trained"}, lambda: {"y": trained * 2})
    run.write_text("results.md", "a table\n")
    run.write_json("table.json", {"x": trained})


def toy_bank(out: Path) -> None:
    build_bank(out, Toy(), TASKS[:3], load, shard=20, batch_size=10, workers=0)


def toy_tasks(out: Path) -> None:
    save_tasks(out / "tasks.json", TASKS)


def open_if_there(out: Path, name: str, read: Callable) -> None:
    if (out / name).exists():
        read()


def open_bank(out: Path) -> None:
    try:
        FeatureBank.open(out).verify()
    except HyperclipError as error:  # unfinished, or nothing there
        assert str(out) in str(error)


WORK: dict[str, tuple[Callable, Callable]] = {  # what writes, and what must hold after a fault
    "run": (toy_run, lambda out: open_if_there(out, "manifest.json", lambda: Run.open(out).verify())),
    "bank": (toy_bank, open_bank),
    "tasks": (toy_tasks, lambda out: open_if_there(out, "tasks.json", lambda: load_tasks(out / "tasks.json"))),
    "meta-vqa": (lambda out: None, lambda out: None),  # see `work`
}


class Faults:
    "Counts the calls that write, and lets one of them find the disk full."

    def __init__(self, at: int | None):
        self.at, self.calls = at, 0

    def count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def faulty(monkeypatch, at: int | None):
    "Patch every way to write: os.write, os.fsync, os.replace, opening for writing, and each write of such a file."
    faults = Faults(at)

    def counted(function):
        def call(*args, **kwargs):
            faults.count()
            return function(*args, **kwargs)

        return call

    def opened(file, mode="r", *args, **kwargs):
        if set(mode) & set("wax+"):
            if "w" in mode or "x" in mode:
                faults.count()
            return Failing(original(file, mode, *args, **kwargs), faults)
        return original(file, mode, *args, **kwargs)

    original = io.open
    with monkeypatch.context() as patch:
        for name in "write", "fsync", "replace":
            patch.setattr(os, name, counted(getattr(os, name)))
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        yield faults


class Failing:
    "A file whose writes count; half of the bytes arrive before the disk is full."

    def __init__(self, file, faults: Faults):
        self.file, self.faults = file, faults

    def write(self, data):
        try:
            self.faults.count()
        except OSError:
            self.file.write(data[: len(data) // 2])
            raise
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __iter__(self):
        return iter(self.file)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return finished(tmp_path_factory)[0]


@pytest.fixture
def work(request, home) -> tuple[Callable, Callable]:
    if request.param == "meta-vqa":
        check = lambda out: open_if_there(out, "meta_vqa.json", lambda: _opened_or_said(lambda: load_meta_vqa(out)))
        return lambda out: build_meta_vqa(home / "vqa", out), check
    return WORK[request.param]


def _opened_or_said(read: Callable) -> None:
    try:
        read()
    except HyperclipError as error:
        assert "again" in str(error)  # what to do


@pytest.mark.filterwarnings("ignore:.*different texts share")
@pytest.mark.parametrize("work", WORK, indirect=True)
def test_a_fault_at_any_write_leaves_a_folder_that_goes_on(work, tmp_path, monkeypatch):
    do, check = work
    with faulty(monkeypatch, None) as faults:
        do(tmp_path / "whole")
    whole, calls = content(tmp_path / "whole"), faults.calls
    assert calls >= 5 and not any(name.endswith(".tmp") for name in whole)
    for at in range(calls):
        out = tmp_path / str(at)
        try:
            with faulty(monkeypatch, at) as faults:
                do(out)
        except (HyperclipError, OSError) as error:
            assert "No space left" in str(error) or isinstance(error, HyperclipError), (at, error)
        assert faults.calls > at
        assert not [name for name in content(out) if name.endswith(".tmp")], at
        check(out)
        do(out)
        assert without_pieces(out) == whole, at


def without_pieces(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in content(out).items() if not name.startswith("shards/")}


@pytest.mark.filterwarnings("ignore:.*different texts share")
def test_a_bank_that_was_finished_all_but_the_removal_of_its_pieces_is_tidied(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def stop(path, *args, **kwargs):
            if path.parent.name == "shards" and not path.name.startswith("."):
                raise KeyboardInterrupt
            return unlink(path, *args, **kwargs)

        unlink = Path.unlink
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            toy_bank(tmp_path / "bank")
    toy_bank(tmp_path / "bank")
    assert not (tmp_path / "bank" / "shards").exists()


# Disks


@contextmanager
def mounted(place: Path, *options: str):
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


needs_mount = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="mounting needs root")


@needs_mount
@pytest.mark.parametrize("job", ["features", "build", "training"])
def test_a_full_disk_is_a_sentence_and_more_room_is_enough(home, tmp_path, job):
    size = "size=16k" if job == "build" else "size=64k"
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", size, "tmpfs") as disk:
        for _ in range(3 if LONG else 1):
            process = start(job, home, disk / "out", tmp_path / "log")
            process.join(120)
        said = (tmp_path / "log").read_text()
        assert process.exitcode not in (None, 0) and "No space left on device" in said, said
        if job != "training":  # a command, not a call from Python
            assert process.exitcode == 2 and "Traceback" not in said and str(disk) in said.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(job, home, disk / "out")
        assert content(disk / "out") == content(home / job)


@needs_mount
def test_finished_data_can_be_read_from_media_that_can_not_be_written(home, tmp_path):
    (tmp_path / "made").mkdir()
    for job in ("features", "build"):
        shutil.copytree(home / job, tmp_path / "made" / job)
    toy_run(tmp_path / "made" / "run")
    with mounted(tmp_path / "seen", "--bind", str(tmp_path / "made")) as seen:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(seen)], check=True)
        assert FeatureBank.open(seen / "features").verify().images.shape[0] == 40
        assert load_meta_vqa(seen / "build")["train"]
        run = Run.open(seen / "run")
        run.verify()
        assert set(run.load("trained")) == {"x"}
        with pytest.raises((HyperclipError, OSError), match="run|ead-only"):
            Run.create(seen / "other", {})
        with pytest.raises((HyperclipError, OSError), match="other|ead-only"):
            save_tasks(seen / "other.json", TASKS)
