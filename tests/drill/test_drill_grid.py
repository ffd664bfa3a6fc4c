"Grids of parts: the same table from any workers, kills in the middle, machines that share nothing."

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from drilling import finished
from test_experiment import TINY

from hyperclip_nb.core.files import FileError, RunError, read_json
from hyperclip_nb.core.runs import Run, code_version
from hyperclip_nb.core.training import TrainConfig
from hyperclip_nb.core.workers import WorkerError, as_ready
from hyperclip_nb.evaluation import grid
from hyperclip_nb.evaluation.grid import Job, Place, Study, received, sent, work
from hyperclip_nb.evaluation.presets import Preset, Source
from hyperclip_nb.evaluation.reproduce import reproduce
from hyperclip_nb.evaluation.sweep import Sweep, Swept, sweep

PRESET = Preset(
    recipe=replace(TINY, multitask=TrainConfig(steps=450, lr=1e-3)),  # long enough for two checkpoints
    methods=("clip_zero_shot", "multitask", "hnet_maml", "hnet_hyperclip", "hvae_hyperldm_g1.5", "question_regression"),
    shots=(0, 1, "all"),
    seeds=2,
    audit=False,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    "Real task files and features of random numbers; every process opens them."
    home, _ = finished(tmp_path_factory)
    return Source(tasks=home / "tasks", features=home / "features")


@pytest.fixture(scope="module")
def serial(source, tmp_path_factory) -> Path:
    "The run that all others must equal."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("serial") / "run"
    reproduce(PRESET, out=out, source=source)
    torch.set_num_threads(before)
    return out


def parts_in(folder: Path) -> dict[str, str]:
    "Every part and what is in it."
    return {
        name: entry.sha256 for name, entry in Run.open(folder).manifest.files.items() if name.endswith("safetensors")
    }


def rows_in(folder: Path) -> list:
    found = json.loads((folder / "results.json").read_text())
    return [found["rows"], found.get("claims")]


def log_of(folder: Path) -> list[str]:
    return [json.loads(line)["job"] for line in (folder / "log.jsonl").read_text().splitlines()]


# --- the same table from any workers


def test_processes_make_the_same_run_and_a_second_call_makes_nothing(source, serial, tmp_path):
    reproduce(PRESET, out=tmp_path / "run", source=source, workers=2)
    assert parts_in(tmp_path / "run") == parts_in(serial) and rows_in(tmp_path / "run") == rows_in(serial)
    jobs = log_of(tmp_path / "run")
    assert len(jobs) == len({*jobs}) and sorted(jobs) == sorted(log_of(serial))
    assert {f"{part}-{seed}" for part in ("multitask", "hnet_latents", "hvae_hyperldm") for seed in (0, 1)} <= {*jobs}
    reproduce(PRESET, out=tmp_path / "run", source=source, workers=2)
    assert log_of(tmp_path / "run") == jobs


def test_threads_as_workers_make_the_same_run(source, serial, tmp_path):
    with ThreadPoolExecutor(3) as executor:
        reproduce(PRESET, out=tmp_path / "run", source=source, executor=executor)
    assert parts_in(tmp_path / "run") == parts_in(serial) and rows_in(tmp_path / "run") == rows_in(serial)
    assert not (tmp_path / "run" / grid.MARK).exists()


def test_a_machine_that_does_not_see_the_run_is_sent_parts_and_sends_its_own(source, serial, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "sees", lambda folder, mark: False)
    with ThreadPoolExecutor(1) as executor:
        reproduce(PRESET, out=tmp_path / "run", source=source, executor=executor, seeds=1)
    mine = parts_in(tmp_path / "run")
    assert (
        mine == {name: sha for name, sha in parts_in(serial).items() if name in mine} and "hvae-0.safetensors" in mine
    )
    assert log_of(tmp_path / "run") == list(dict.fromkeys(log_of(tmp_path / "run")))
    grid._opened.cache_clear()
    grid._homes.clear()


def test_what_is_sent_is_checked_when_it_arrives(tmp_path):
    here, there = Run.create(tmp_path / "here", {}), Run.create(tmp_path / "there", {})
    here.part("x", {"lr": 0.1}, lambda: {"x": torch.arange(5.0)})
    parcel = sent(here, ["x", "not there"])
    received(there, parcel)
    assert there.has("x", {"lr": 0.1}) and parts_in(tmp_path / "there") == parts_in(tmp_path / "here")
    settings, content = parcel["x"]
    with pytest.raises(FileError, match="damaged"):
        received(Run.create(tmp_path / "third", {}), {"x": (settings, content[:-1] + b"\x55")})


def test_machines_with_other_code_other_data_or_without_the_run_are_refused(source, serial):
    job = Job(Study(folder=serial, recipe=PRESET.recipe, methods=("multitask",)), 0, "row", "multitask")
    place = Place(source=source, data="another", code=code_version())
    for wrong, said in (
        (replace(place, code="0.0.9"), "expected hyperclip_nb 0.0.9"),
        (place, "expected the tasks and features that the grid was started with"),
        (replace(place, mark="of another machine"), "expected this run directory, which other workers see"),
    ):
        with pytest.raises(WorkerError, match=said):
            work(job, wrong)


class Gone(ThreadPoolExecutor):
    "A scheduler that is not there any more."

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_a_failure_names_its_part_and_its_machine(source, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "do", lambda job, x: 1 / 0)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ZeroDivisionError) as caught:
        reproduce(PRESET, out=tmp_path / "run", source=source, executor=executor)
    assert caught.value.where == f"multitask-0, on {os.uname().nodename}"
    with Gone(1) as executor, pytest.raises(WorkerError, match="a: the workers are gone .* goes on where it stopped"):
        list(as_ready(executor, print, {"a": ()}))


def test_a_sweep_scores_validation_questions_only_and_may_grow(source, serial, tmp_path):
    out, methods = tmp_path / "run", ["multitask", "cond_multitask"]
    plan = Sweep(preset="smoke", methods=methods, seeds=2, grid={"conditional.lr": [1e-3, 1e-2]})
    first = sweep(plan, out=out, source=source)
    jobs = log_of(out)
    assert sorted(job.split(".")[0] for job in jobs if "/" not in job) == sorted(
        [f"{part}-{seed}" for seed in (0, 1) for part in ("multitask", "cond_multitask", "cond_multitask")]
    )
    more = msgspec.structs.replace(plan, grid={"conditional.lr": [1e-3, 1e-2, 3e-2]})
    second = sweep(more, out=out, source=source, workers=2)
    assert second.recipes[:2] == first.recipes and len(second.recipes) == 3
    new = log_of(out)[len(jobs) :]
    assert len(new) == 6 and not [job for job in new if job.startswith("multitask")]
    assert {name.split("/")[0] for name in parts_in(out) if "/" in name} == {"validation"}
    assert read_json(out / "sweep.json", Swept).recipes == second.recipes
    with pytest.raises(RunError, match="expected the directory of a sweep"):
        sweep(plan, out=serial, source=source)


# --- Dask, and kills


def descendants(process: int) -> list[int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found.setdefault(int(fields[1]), []).append(int(path.parent.name))
    below = found.get(process, [])
    return [*below, *(pid for child in below for pid in descendants(child))]


def workers_of(process: int) -> list[int]:
    "Dask's worker processes: those that have made something in the run have torch loaded."
    found = []
    for pid in descendants(process):
        with contextlib.suppress(OSError):
            if "libtorch" in Path(f"/proc/{pid}/maps").read_text():
                found.append(pid)
    return found


COMMAND = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {drill!r}]
from test_drill_grid import PRESET
from hyperclip_nb.core.cluster import cluster_workers
from hyperclip_nb.evaluation.presets import Source
from hyperclip_nb.evaluation.reproduce import reproduce

if __name__ == "__main__":
    source = Source(tasks=Path({tasks!r}), features=Path({features!r}))
    with cluster_workers({where!r}) as executor:
        reproduce(PRESET, out={out!r}, source=source, executor=executor)
"""


def started(folder: Path, source: Source, where: str = "local:2") -> subprocess.Popen:
    "The grid on a cluster, as a command that can be killed."
    here = Path(__file__).parent
    names = {"tests": str(here.parent), "drill": str(here), "where": where, "out": str(folder / "run")}
    script = folder / "command.py"
    script.write_text(COMMAND.format(**names, tasks=str(source.tasks), features=str(source.features)))
    log = open(folder / "log", "ab")
    return subprocess.Popen([sys.executable, str(script)], stdout=log, stderr=log, start_new_session=True)


def made(folder: Path) -> dict[str, tuple[int, int]]:
    "What is finished in a run: inode and time of each part's file."
    with contextlib.suppress(FileNotFoundError, RunError):
        files = [folder / name for name in parts_in(folder)]
        return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    return {}


def wait_for(process: subprocess.Popen, run: Path, parts: int) -> None:
    until = time.monotonic() + 300
    while process.poll() is None and len(made(run)) < parts and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None and len(made(run)) >= parts, (run.parent / "log").read_text()[-3000:]


proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")


@proc
def test_a_killed_worker_and_then_a_killed_scheduler_cost_nothing_that_was_finished(source, serial, tmp_path):
    pytest.importorskip("dask.distributed")
    run, command = tmp_path / "run", started(tmp_path, source)
    try:
        wait_for(command, run, 2)
        first, workers = made(run), workers_of(command.pid)
        os.kill(workers[0], signal.SIGKILL)  # the other one goes on, and a new one takes its place
        wait_for(command, run, len(first) + 6)
        second = made(run)
        os.kill(command.pid, signal.SIGKILL)  # the scheduler lives in it
        command.wait(30)
        until = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers outlive their scheduler"
        assert len(second) < len(parts_in(serial)), "killed too late to say anything"
        command = started(tmp_path, source)
        assert command.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    end = made(run)
    assert all(second[name] == state for name, state in first.items()), "made twice after the worker's death"
    assert all(end[name] == state for name, state in second.items()), "made twice after the scheduler's death"
    assert parts_in(run) == parts_in(serial) and rows_in(run) == rows_in(serial)
    assert "its page: http" in (tmp_path / "log").read_text()


# --- a sweep as a command


def sweep_command(file: Path, source: Source, out: Path, workers: int) -> list[str]:
    more = ["--tasks", source.tasks, "--features", source.features, "--out", out, "--workers", workers]
    return [sys.executable, "-m", "hyperclip_nb", "sweep", str(file), *map(str, more)]


@proc
def test_a_sweep_is_a_command_that_may_be_killed(source, tmp_path):
    plan = {
        "preset": "smoke",
        "set": {"multitask.steps": 300, "conditional.steps": 300},
        "methods": ["multitask", "cond_multitask"],
        "seeds": 2,
        "grid": {"conditional.lr": [1e-3, 1e-2]},
    }
    file, out = tmp_path / "sweep.json", tmp_path / "run"
    file.write_text(json.dumps(plan))
    with open(tmp_path / "log", "wb") as log:
        command = subprocess.Popen(sweep_command(file, source, out, 2), stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(command, out, 2)
            workers = descendants(command.pid)
        finally:
            command.kill()
            command.wait(30)
    first, until = made(out), time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "workers outlive their command"
    first = made(out)
    assert 2 <= len(first) < 10, "killed too late to say anything"
    for workers in 1, 2:
        done = subprocess.run(sweep_command(file, source, out, workers), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "| conditional.lr |" in done.stdout and f"run directory: {out}\n" in done.stdout
        assert "hyperclip_nb reproduce --preset smoke --set multitask.steps=300" in done.stdout
        second = made(out)
        assert all(second[name] == state for name, state in first.items()), "made twice"
        first = second
    alone = sweep(read_json(file, Sweep), out=tmp_path / "alone", source=source)
    assert read_json(out / "sweep.json", Swept).recipes == alone.recipes
    assert parts_in(out) == parts_in(tmp_path / "alone")
