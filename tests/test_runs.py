"A run that is killed, damaged, shared between processes or started by other code."

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import hyperclip_nb
from hyperclip_nb.core import files, runs
from hyperclip_nb.core.files import FileError, HyperclipError, RunError, load_tensors, read_json, write_json
from hyperclip_nb.core.runs import Run, checkpointed, data_dir, read_manifest
from hyperclip_nb.core.training import EMA, TrainConfig, fit, keep_best, track_ema


def ones(n=3):
    return lambda: {"x": torch.ones(n)}


def never():
    raise AssertionError("built again")


def make_x(run):
    return run.part("x", {}, ones())


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {"a": 1}, seeds=[0, 1])


# --- where data go


def test_data_dir_asks_the_user_then_the_environment_then_looks_around(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERCLIP_DATA", str(tmp_path / "env"))
    assert data_dir(tmp_path / "said") == (tmp_path / "said").resolve()
    assert data_dir("~/x") == Path.home().resolve() / "x"
    assert data_dir() == (tmp_path / "env").resolve()
    monkeypatch.delenv("HYPERCLIP_DATA")

    package = tmp_path / "site" / "hyperclip_nb"
    package.mkdir(parents=True)
    monkeypatch.setattr(hyperclip_nb, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(runs.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    installed = tmp_path / "cache" / "hyperclip_nb"
    assert data_dir() == installed
    (package.parent / "settings.ini").write_text("[DEFAULT]\nlib_name = another\n")
    assert data_dir() == installed
    (package.parent / "settings.ini").write_text("[DEFAULT]\nlib_name = hyperclip_nb\n")
    assert data_dir() == package.parent.resolve() / "data"
    assert not data_dir().exists()


# --- parts


def test_the_same_settings_are_built_once(run):
    built = run.part("x", {"lr": 0.1, "names": ("a", "b")}, ones())
    loaded = Run.open(run.path).part("x", {"names": ["a", "b"], "lr": 0.1}, never)
    assert built.keys() == loaded.keys() and torch.equal(built["x"], loaded["x"])
    assert run.has("x", {"lr": 0.1, "names": ["a", "b"]}) and not run.has("x", {"lr": 0.1}) and not run.has("y", {})
    assert torch.equal(run.load("x")["x"], torch.ones(3))


def test_other_settings_build_again_and_replace(run):
    run.part("x", {"seed": 0}, ones(1))
    assert len(run.part("x", {"seed": 1}, ones(2))["x"]) == 2
    assert len(run.part("x", {"seed": 0}, ones(1))["x"]) == 1
    run.verify()


def test_what_is_returned_is_not_tied_to_the_model(run):
    model = nn.Linear(2, 2)
    part = run.part("m", {}, model.state_dict)
    nn.init.zeros_(model.weight)
    assert part["weight"].abs().sum() > 0 and not part["weight"].requires_grad
    assert torch.equal(part["weight"], run.load("m")["weight"])


def test_a_build_that_fails_leaves_no_trace(run):
    before = sorted(os.listdir(run.path))
    with pytest.raises(AssertionError):
        run.part("x", {}, never)
    assert sorted(os.listdir(run.path)) == before and not run.has("x", {})


def test_a_deleted_file_is_built_again_but_not_loaded(run):
    run.part("x", {}, ones())
    (run.path / "x.safetensors").unlink()
    with pytest.raises(RunError, match="found none; run again"):
        run.load("x")
    assert not run.has("x", {})
    run.part("x", {}, ones())
    run.verify()


def test_damage_is_refused_with_what_to_do(run):
    run.part("x", {}, ones())
    file = run.path / "x.safetensors"
    content = file.read_bytes()
    for damaged in (content[:-1], content[:-1] + b"\x55", b""):
        file.write_bytes(damaged)
        for action in (lambda: run.part("x", {}, never), lambda: run.load("x"), run.verify):
            with pytest.raises(RunError, match="x.safetensors: expected sha256 .*, found .*delete it"):
                action()
    file.unlink()
    assert torch.equal(run.part("x", {}, ones())["x"], torch.ones(3))


def test_settings_are_a_dict_or_dataclass(run):
    @dataclass
    class Settings:
        lr: float = 0.1

    run.part("x", Settings(), ones())
    assert run.has("x", {"lr": 0.1})
    with pytest.raises(ValueError, match="expected settings as a dict or dataclass, got list"):
        run.part("x", [1], ones())
    assert run.manifest.config == {"a": 1} and run.manifest.seeds == [0, 1]


def test_parts_may_lie_in_folders(run):
    run.part("seed-0/hnet", {}, ones())
    run.metrics("seed-0/hnet")({"loss": float("nan")})
    assert Run.open(run.path).load("seed-0/hnet")["x"].tolist() == [1, 1, 1]
    assert json.loads((run.path / "seed-0" / "hnet.jsonl").read_text()) == {"loss": "nan"}


# --- the directory


def test_going_on_keeps_parts_and_starting_over_deletes_them(run):
    run.part("x", {}, ones())
    run.checkpoint("y").write_bytes(b"state")
    again = Run.create(run.path, {"a": 2})
    assert again.config == {"a": 2} and again.has("x", {}) and run.checkpoint("y").exists()
    fresh = Run.create(run.path, {"a": 2}, resume=False)
    assert not fresh.has("x", {}) and sorted(p.name for p in run.path.iterdir() if p.name != ".lock") == [
        "manifest.json"
    ]


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "beach.png").touch()
    with pytest.raises(RunError, match="beach.png"):
        Run.create(tmp_path, {})
    assert os.listdir(tmp_path) == ["beach.png"]  # not even a lock
    with pytest.raises(RunError, match="without manifest.json"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="nothing there"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"name": "a page", "icons": []}')
    with pytest.raises(RunError, match="expected schema 1, got None"):
        Run.create(tmp_path, {}, resume=False)
    assert sorted(os.listdir(tmp_path)) == ["beach.png", "manifest.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema": 2}, "expected schema 1, got 2"),
        ({"schema": "1"}, "expected schema 1, got '1'"),
        ({"files": []}, r"\$\.files"),
        ({"extra": 1}, "extra"),
        ({"files": {"x": {"sha256": 1, "settings": {}, "code": ""}}}, r"\$\.files\['x'\]\.sha256"),
        ({"config": None}, r"\$\.config"),
    ],
)
def test_manifests_are_checked(run, change, message):
    manifest = read_json(run.path / "manifest.json", dict) | change
    write_json(run.path / "manifest.json", manifest)
    for action in (lambda: Run.open(run.path), lambda: Run.create(run.path, {}), lambda: run.part("x", {}, never)):
        with pytest.raises(HyperclipError, match=message) as error:
            action()
        assert "manifest.json" in str(error.value)
    (run.path / "manifest.json").write_text('{"schema": 1')
    with pytest.raises(FileError, match="manifest.json: expected JSON"):
        Run.open(run.path)


def temporary(name, process):
    return f".{name}.{files._host()}-{process}-1.tmp"


@pytest.mark.parametrize("hours", [-2, 0, 100_000])
def test_only_leftovers_of_dead_processes_are_swept_whatever_the_clock_says(run, hours):
    "Files of living processes, of other machines, and whatever is not ours stay; other folders are not looked into."
    child = multiprocessing.get_context("spawn").Process(target=print)
    child.start()
    child.join()
    dead = [temporary("x.safetensors", child.pid), f".y.json.{child.pid}-2.tmp"]
    kept = [
        temporary("z", os.getpid()),
        temporary("z", os.getppid()),
        f".z.elsewhere-{child.pid}-1.tmp",
        ".note.tmp",
        f"deep/{dead[0]}",
    ]
    (run.path / "deep").mkdir()
    for name in dead + kept:
        (run.path / name).touch()
        os.utime(run.path / name, (time.time() - 3600 * hours,) * 2)
    Run.create(run.path, {})
    assert [name for name in dead + kept if (run.path / name).exists()] == kept


LEADING_OUT = [
    "../victim.txt",
    "/victim.txt",
    "deep/../../victim.txt",
    "link/victim.txt",
    "linked.txt",
    ".",
    "",
    "a\0b",
    "manifest.json",
    ".lock",
]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_manifest_names_only_files_of_its_own_directory(run, tmp_path, name):
    "Nothing is opened and nothing is deleted where a name leads out of the directory or over a link."
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (run.path / "link").symlink_to(tmp_path)
    (run.path / "linked.txt").symlink_to(victim)
    run.part("x", {}, ones())
    manifest = read_json(run.path / "manifest.json", dict)
    name = str(victim) if name == "/victim.txt" else name
    manifest["files"][name] = manifest["files"]["x.safetensors"]
    write_json(run.path / "manifest.json", manifest)
    for action in (
        lambda: Run.open(run.path),
        lambda: Run.create(run.path, {}),
        lambda: Run.create(run.path, {}, resume=False),
        lambda: run.load("x"),
        run.verify,
    ):
        with pytest.raises(HyperclipError, match="nothing was opened"):
            action()
    assert victim.read_text() == "mine" and (run.path / "x.safetensors").exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "..", "deep/../x", "a" * 300])
def test_a_part_is_made_only_inside_of_its_run(run, name):
    before, around = sorted(os.listdir(run.path)), sorted(os.listdir(run.path.parent))
    for action in (
        lambda: run.part(f"{name}/x" if name in ("", "..") else name, {}, never),
        lambda: run.write_text(name, "x"),
        lambda: run.write_json(name, {}),
        lambda: run.metrics(f"{name}/x" if name in ("", "..") else name),
    ):
        with pytest.raises(FileError, match="expected names of files inside this folder"):
            action()
    assert sorted(os.listdir(run.path)) == before and sorted(os.listdir(run.path.parent)) == around
    Run.open(run.path).verify()


def test_what_is_no_file_is_refused_and_never_waited_for(run):
    run.part("x", {}, ones())
    (run.path / "x.safetensors").unlink()
    os.mkfifo(run.path / "x.safetensors")
    for action in (lambda: run.load("x"), run.verify, lambda: run.part("x", {}, never)):
        with pytest.raises(FileError, match="x.safetensors: expected a file, found a pipe"):
            action()


@pytest.mark.parametrize("name, use", [(".lock", lambda run: run.has("x", {})), (".x.lock", make_x)])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder", "socket"])
def test_what_lies_in_a_lock_s_place_is_not_touched(run, tmp_path, kind, name, use):
    victim, place = tmp_path / "keys", run.path / name
    victim.write_text("mine")
    place.unlink(missing_ok=True)
    put = {
        "link": lambda: place.symlink_to(victim),
        "dangling link": lambda: place.symlink_to(tmp_path / "nothing"),
        "pipe": lambda: os.mkfifo(place),
        "folder": place.mkdir,
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(os.path.relpath(place)),
    }
    put[kind]()
    with pytest.raises(
        FileError, match=rf"{re.escape(str(place))}: expected a (lock|file), found a {kind.split()[-1]}"
    ):
        use(run)
    assert os.path.lexists(place) and victim.read_text() == "mine" and not (tmp_path / "nothing").exists()
    assert not (run.path / "x.safetensors").exists()


def test_who_waits_says_for_whom(run):
    context = multiprocessing.get_context("fork")
    holds, go = context.Event(), context.Event()

    def hold():
        with files.folder_lock(run.path):
            holds.set()
            go.wait(30)

    child = context.Process(target=hold)
    child.start()
    assert holds.wait(30)
    with pytest.warns(UserWarning, match=rf"waiting for (process {child.pid}|another process), which works"):
        threading.Timer(0.5, go.set).start()
        with files.folder_lock(run.path, patience=0.1):
            pass
    child.join()


@pytest.mark.parametrize(
    "extra",
    [{"a.b": 1}, {"../x": 1}, {"files": {"a[0].b": {"sha256": 1, "settings": {}, "code": ""}}}, {"files": {"x": []}}],
)
def test_odd_names_in_a_manifest_still_end_in_a_sentence(run, extra):
    write_json(run.path / "manifest.json", read_json(run.path / "manifest.json", dict) | extra)
    with pytest.raises(FileError, match="manifest.json"):
        Run.open(run.path)


def test_other_code_is_used_and_mentioned_once(run, monkeypatch):
    for name in ("x", "y"):
        run.part(name, {}, ones())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.load("x")
    monkeypatch.setattr(runs, "code_version", lambda: "9.9.9+00000000")
    with pytest.warns(UserWarning, match="made by code .*, this is 9.9.9") as seen:
        run.part("x", {}, never)
        run.part("y", {}, never)
    assert len(seen) == 1 and str(run.path.parent) not in str(seen[0].message)


# --- kills


class Killed(BaseException):
    "Not an Exception, like the end of a process."


def dies_at(monkeypatch, count):
    "Let the count-th rename die before it happens."
    replace, calls = os.replace, []

    def dying(*args):
        calls.append(args)
        if len(calls) == count:
            raise Killed
        replace(*args)

    monkeypatch.setattr("hyperclip_nb.core.files.os.replace", dying)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [0, 1])
def test_killed_between_any_two_writes_both_settings_still_work(run, monkeypatch, count, after):
    "Replacing a part takes three writes: entry out, part in, entry in. The fourth never comes."
    run.part("x", {"seed": 0}, ones(1))
    with monkeypatch.context() as patch:
        dies_at(patch, count)
        try:
            run.part("x", {"seed": 1}, ones(2))
        except Killed:
            assert count < 4
    reopened = Run.open(run.path)
    assert len(reopened.part("x", {"seed": after}, ones(after + 1))["x"]) == after + 1
    reopened.verify()


def sine_loop(path, every=10):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    def batches(generator):
        x = torch.rand(16, 1, generator=generator)
        return x, x.sin() + 0.1 * torch.randn(16, 1, generator=generator)

    config = TrainConfig(steps=60, lr=1e-2, schedule="cosine", warmup=5, weight_decay=0.01)
    ema = EMA(model, decay=0.9)
    loop = track_ema(
        fit(model, lambda batch, generator: (model(batch[0]) - batch[1]).square().mean(), batches, config), model, ema
    )
    loop = keep_best(loop, ema.module, lambda: -ema.module[0].weight.norm().item(), every=7)
    return checkpointed(loop, path, {"config": config}, every), loop, model, ema


def result(path):
    loop, best, model, ema = sine_loop(path)
    updates = list(loop)
    return updates, best.best_step, best.best_score, [p.tolist() for m in (model, ema.module) for p in m.parameters()]


def test_killed_at_many_points_it_ends_in_the_same_bits(tmp_path, monkeypatch):
    expected = result(tmp_path / "undisturbed")
    draw = random.Random(0)
    for life in range(12):
        path = tmp_path / str(life % 3)
        loop, *_ = sine_loop(path)
        with monkeypatch.context() as patch:
            if life % 2:
                dies_at(patch, draw.randint(1, 3))  # in the middle of writing a checkpoint
            try:
                for update in loop:
                    if not life % 2 and draw.random() < 0.04:
                        break
            except Killed:
                pass
    for path in map(str, range(3)):
        assert result(tmp_path / path) == expected
        assert result(tmp_path / path) == expected  # and once more from the finished state


def train_slowly(path):
    torch.set_num_threads(1)
    for _ in sine_loop(path, every=1)[0]:
        time.sleep(0.001)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_real_kill_at_any_moment(tmp_path):
    expected = result(tmp_path / "undisturbed")
    draw = random.Random(1)
    for _ in range(6):
        process = multiprocessing.get_context("fork").Process(target=train_slowly, args=(tmp_path / "killed",))
        process.start()
        time.sleep(draw.uniform(0.02, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if (tmp_path / "killed").exists():
            load_tensors(tmp_path / "killed")  # whole at any moment
    assert result(tmp_path / "killed") == expected


def test_the_last_state_is_stored_so_that_nothing_is_trained_twice(tmp_path):
    loop, inner, *_ = sine_loop(tmp_path / "x", every=25)
    expected = list(loop)
    loop, inner, model, _ = sine_loop(tmp_path / "x", every=25)
    model[0].register_forward_pre_hook(lambda *_: never())
    assert list(loop) == expected and len(expected) == 60


def three_steps(model):
    return fit(model, lambda batch, generator: model.weight.sum(), lambda generator: None, TrainConfig(steps=3))


def test_a_checkpoint_of_other_settings_is_ignored_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / "x"
    loop, *_ = sine_loop(path)
    for _ in range(25):
        next(loop)
    other = checkpointed(three_steps(nn.Linear(1, 1)), path, {"other": 1})
    assert [u.step for u in other] == [1, 2, 3]
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(FileError, match="x: expected a whole safetensors file"):
        next(checkpointed(three_steps(nn.Linear(1, 1)), path, {"other": 1}))


def test_a_checkpoint_of_another_loop_is_refused(tmp_path):
    next(checkpointed(three_steps(nn.Linear(1, 1)), tmp_path / "x", {}, every=1))
    with pytest.raises(RunError, match="expected the state of this loop"):
        next(checkpointed(three_steps(nn.Linear(2, 2)), tmp_path / "x", {}, every=1))


def test_the_checkpoint_goes_when_the_part_is_stored(run):
    def build():
        loop, _, model, _ = sine_loop(run.checkpoint("net"))
        list(loop)
        assert run.checkpoint("net").exists()
        return model.state_dict()

    run.part("net", {}, build)
    assert not run.checkpoint("net").exists()


# --- several processes


def fill(path, worker):
    run = Run.open(path)
    for i in range(8):
        run.part(f"{worker}-{i}", {"i": i}, ones(i))
        run.part("shared", {}, ones())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_lose_nothing(run):
    processes = [
        multiprocessing.get_context("fork").Process(target=fill, args=(run.path, worker)) for worker in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(read_manifest(run.path).files) == 17
    Run.open(run.path).verify()


def test_a_part_is_built_once_and_who_waits_for_it_says_for_whom(run, monkeypatch):
    began, go, got = threading.Event(), threading.Event(), []
    monkeypatch.setattr(runs.claimed.__wrapped__, "__defaults__", (0.05,))  # patience
    monkeypatch.setattr(files.warnings, "warn", lambda message, **where: (got.append(message), go.set()))

    def build():
        began.set()
        assert go.wait(60)
        return {"x": torch.ones(1)}

    first = threading.Thread(target=lambda: Run.open(run.path).part("x", {}, build))
    first.start()
    assert began.wait(60)
    other = threading.Thread(target=lambda: got.append(Run.open(run.path).part("x", {}, never)))
    other.start()
    for thread in (other, first):
        thread.join(60)
    assert "waiting for" in got[0] and "building the part 'x'" in got[0]
    assert torch.equal(got[1]["x"], torch.ones(1))
    run.verify()
    assert sorted(os.listdir(run.path)) == [".lock", "manifest.json", "x.safetensors"]


def test_a_waiter_goes_on_where_the_builder_failed(run):
    began, go, got = threading.Event(), threading.Event(), []

    def fail():
        began.set()
        assert go.wait(60)
        raise KeyboardInterrupt

    def first():
        with pytest.raises(KeyboardInterrupt):
            Run.open(run.path).part("x", {}, fail)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert began.wait(60)
    threads.append(threading.Thread(target=lambda: got.append(Run.open(run.path).part("x", {}, ones(2)))))
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(60)
    assert len(got[0]["x"]) == 2 and sorted(os.listdir(run.path)) == [".lock", "manifest.json", "x.safetensors"]


def test_a_run_that_cannot_be_written_can_be_read(run, monkeypatch):
    run.part("x", {}, ones())
    shutil.copytree(run.path, run.path.parent / "shipped", ignore=shutil.ignore_patterns(".lock"))
    monkeypatch.setattr("hyperclip_nb.core.runs.os.access", lambda path, mode: False)
    shipped = Run.open(run.path.parent / "shipped")
    assert torch.equal(shipped.load("x")["x"], torch.ones(3)) and shipped.has("x", {})
    assert not (shipped.path / ".lock").exists()


# --- devices


@pytest.mark.parametrize("name", ["banana", "", "meta", "cpu:3", "cuda:99", "mps:7"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=r"expected a device that is there \(cpu.*\), got"):
        runs.check_device(name)


def test_a_device_that_is_there():
    assert runs.check_device("cpu") == torch.device("cpu")


def test_no_state_of_a_training_is_left_beside_the_finished_part(run):
    run.part("a", {}, ones())
    files.save_tensors(run.checkpoint("a"), {"step": torch.ones(1)})  # a kill came between the part and its removal
    run.part("a", {}, never)
    assert not run.checkpoint("a").exists()


def test_a_large_part_stays_in_its_file_and_is_the_same(run, monkeypatch):
    monkeypatch.setattr(runs, "MAPPED_FROM", 4_000)
    made = {"large": torch.arange(2_000.0).view(40, 50).mT, "count": torch.tensor(3)}
    built, again = run.part("large", {}, lambda: made), run.part("large", {}, lambda: 1 / 0)
    for found in built, again, run.load("large"):
        assert found.keys() == made.keys() and all(torch.equal(found[name], x) for name, x in made.items())
    run.part("large", {"other": True}, lambda: {"large": torch.zeros(2_000)})
    assert torch.equal(built["large"], made["large"])  # who has it keeps it when it is made anew
    damaged = run.path / "large.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="damaged"):
        run.part("large", {"other": True}, lambda: 1 / 0)
