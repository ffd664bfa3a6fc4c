"SIGKILL at random moments: the same command goes on, to the same files, and nothing temporary is left."

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from drilling import JOBS, LONG, SEED, content, finish, finished, kill, long_only, start

from hyperclip_nb.core.files import HyperclipError, load_tensors
from hyperclip_nb.core.runs import Run
from hyperclip_nb.evaluation.results import read_results

pytestmark = pytest.mark.drill
ROUNDS, KILLS = (5, 4) if LONG else (1, 2)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return finished(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def seconds(tmp_path_factory) -> dict[str, float]:
    return finished(tmp_path_factory)[1]


@pytest.mark.parametrize("round", range(ROUNDS))
@pytest.mark.parametrize("job", JOBS)
def test_a_killed_command_goes_on_to_the_same_files(home, seconds, tmp_path, job, round):
    rng = random.Random(f"{SEED} {job} {round}")
    options = {"workers": 1} if job == "features" and LONG else {}
    ends = []
    for _ in range(KILLS):
        process = start(job, home, tmp_path / "out", **options)
        process.join(rng.uniform(0, seconds[job]))
        kill(process)
        ends.append(process.exitcode)
    assert set(ends) <= {0, -signal.SIGKILL}
    finish(job, home, tmp_path / "out")
    assert content(tmp_path / "out") == content(home / job)


@pytest.mark.skipif(not Path("/proc/self/fd/1").exists(), reason="needs /proc")
@pytest.mark.parametrize("late", [0, 1], ids=["at work", "hardly started"])
def test_processes_that_load_pictures_end_with_the_killed_command(home, tmp_path, late):
    out, log = tmp_path / "out", tmp_path / "out.log"

    def there() -> int:  # processes that write to the command's log
        found = 0
        for link in Path("/proc").glob("[0-9]*/fd/1"):
            with contextlib.suppress(OSError):
                found += os.readlink(link) == str(log)
        return found

    process = start("features", home, out, log, workers=2, late=late)
    patience = time.monotonic() + 60
    while there() < 3 and process.is_alive() and time.monotonic() < patience:
        time.sleep(0.01)
    assert there() >= 3, log.read_text()[-2000:]
    kill(process)
    patience = time.monotonic() + 30  # they look every second whether the parent lives
    while there() and time.monotonic() < patience:
        time.sleep(0.1)
    assert not there()


@pytest.mark.parametrize("round", range(10 if LONG else 1))
def test_a_training_killed_between_checkpoints_goes_on_from_the_last(home, tmp_path, round):
    out, rng = tmp_path / "out", random.Random(f"{SEED} {round}")
    process = start("training", home, out)
    state = out / "multitask-0.resume.safetensors"
    while process.is_alive() and not state.exists():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    kill(process)
    assert process.exitcode == -signal.SIGKILL
    if state.exists():
        assert len(load_tensors(state)[0]["past"]) in (200, 400, 450)
    else:
        assert Run.open(out).load("multitask-0")
    finish("training", home, out)
    assert content(out) == content(home / "training")


def test_two_processes_share_a_run(home, tmp_path):
    both = [start("training", home, tmp_path / "out") for _ in range(2)]
    for process in both:
        process.join(120)
    said = (tmp_path / "out.log").read_text()
    assert [process.exitcode for process in both] == [0, 0], said[-2000:]
    assert content(tmp_path / "out") == content(home / "training")


def test_a_run_that_is_killed_can_be_read_at_any_time(home, tmp_path):
    out, rng = tmp_path / "out", random.Random(SEED)
    for _ in range(20 if LONG else 2):
        process = start("training", home, out)
        process.join(rng.uniform(0, 1.5))
        kill(process)
        if (out / "manifest.json").exists():
            Run.open(out).verify()
            for file in out.glob("*.resume.safetensors"):
                load_tensors(file)
        if (out / "results.json").exists():
            read_results(out)


def children(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def with_workers(home: Path, out: Path):
    "A run of two seeds side by side, as soon as both have begun to train, and its workers."
    process = start("training", home, out, seeds=2, workers=2)
    while process.is_alive() and not (out / "multitask-0.safetensors").exists():
        time.sleep(0.005)
    spawned = [child for child in children(process.pid) if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    assert process.is_alive() and spawned, (out.parent / f"{out.name}.log").read_text()[-2000:]
    return process, spawned


proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@proc
@pytest.mark.parametrize("how", ["SIGKILL", *(pytest.param(how, marks=long_only) for how in ("SIGTERM", "SIGINT"))])
def test_workers_end_with_their_parent(home, tmp_path, how):
    process, workers = with_workers(home, tmp_path / "out")
    os.kill(process.pid, getattr(signal, how))
    process.join(10)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [worker for worker in workers if alive(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert process.exitcode not in (None, 0) and not left
    Run.open(tmp_path / "out").verify()


@proc
@long_only
def test_a_killed_worker_ends_the_run_and_a_second_call_goes_on(home, tmp_path):
    process, workers = with_workers(home, tmp_path / "out")
    os.kill(workers[0], signal.SIGKILL)
    process.join(60)
    assert process.exitcode not in (None, 0)
    finish("training", home, tmp_path / "out", seeds=2)
    finish("training", home, tmp_path / "whole", seeds=2)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_command_that_can_not_go_on_says_so(tmp_path):
    with pytest.raises(HyperclipError, match="no-such-run"):
        Run.open(tmp_path / "no-such-run")
