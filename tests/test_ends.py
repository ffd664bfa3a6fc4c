"However it ends: a sentence for what can be expected, no orphans, no wrong numbers, no bad state over a good one."

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.network import answer_ids, set_accuracy
from hyperclip_nb.cli import commands
from hyperclip_nb.cli.commands import main
from hyperclip_nb.core.blocks import BOUNDS, NumbersError, check_bounds
from hyperclip_nb.core.files import HyperclipError, load_tensors
from hyperclip_nb.core.runs import Run, checkpointed
from hyperclip_nb.core.training import EMA, TrainConfig, fit, track_ema
from hyperclip_nb.core.workers import WorkerError, as_ready, local_workers
from hyperclip_nb.diffusion.sampling import SAMPLERS
from hyperclip_nb.diffusion.schedule import DiffusionConfig, Schedule
from hyperclip_nb.evaluation.parts import DivergedError, Parts, Training
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.evaluation.statistics import ensemble

# --- one place for what can be expected


def deep():
    return deep()


EXPECTED = {  # what is raised -> part of the sentence
    OSError(errno.ENOSPC, "No space left on device", "run/hvae-0.safetensors"): "run/hvae-0.safetensors: No space left",
    PermissionError(errno.EACCES, "Permission denied", "run"): "run: Permission denied",
    FloatingPointError("step 3: expected a finite loss"): "step 3",
    DivergedError("hvae-0 diverged: step 3"): "hvae-0 diverged",
    WorkerError("hnet-1: its worker process died"): "hnet-1",
    BrokenProcessPool("A process in the process pool was terminated abruptly"): "a worker process died",
    MemoryError(): "not enough memory",
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"): "not enough memory",
    ModuleNotFoundError("No module named 'voila'", name="voila"): "expected the package voila",
    deep: "nested",
}


def fail_with(monkeypatch, error):
    def call(self):
        if not isinstance(error, BaseException):
            error()
        raise error

    monkeypatch.setattr(commands.Demo, "__call__", call)


@pytest.mark.parametrize("error", EXPECTED, ids=lambda e: type(e).__name__)
def test_expected_failures_are_one_line_and_exit_code_2(monkeypatch, capsys, error):
    fail_with(monkeypatch, error)
    with pytest.raises(SystemExit) as end:
        main(["demo"])
    text = capsys.readouterr().err
    assert end.value.code == 2 and EXPECTED[error] in text and text.startswith("hyperclip_nb: ")
    assert text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_error_itself(monkeypatch, how):
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "x"))
    if how == "environment":
        monkeypatch.setenv("HYPERCLIP_DEBUG", "1")
    with pytest.raises(OSError, match="No space"):
        main(["demo", *["--debug"] * (how == "option")])


def test_an_error_that_nobody_expected_is_not_dressed_up(monkeypatch):
    fail_with(monkeypatch, KeyError("a bug"))
    with pytest.raises(KeyError):
        main(["demo"])


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_one_line(monkeypatch, capsys, number, code):
    monkeypatch.setattr(
        commands.Demo, "__call__", lambda self: [signal.raise_signal(number) or time.sleep(0.01) for _ in range(500)]
    )
    inherited = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = signal.getsignal(number)  # not what `nohup` or a shell's background job leaves: a command ignores that
    try:
        with pytest.raises(SystemExit) as end:
            main(["demo"])
        text = capsys.readouterr().err
        assert end.value.code == code and "goes on where it stopped" in text and text.count("\n") == 1
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, inherited)


def test_a_pipe_that_nobody_reads_ends_quietly():
    code = (
        "from hyperclip_nb.cli import commands as c\n"
        "c.Demo.__call__ = lambda self: [print('x' * 1000) for _ in range(10_000)]\nc.main(['demo'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_a_sentence():
    code = "from hyperclip_nb.cli import commands as c\nc.Demo.__call__ = lambda self: print('x')\nc.main(['demo'])"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, timeout=240)
    assert done.returncode == 2 and b"No space left" in done.stderr and b"Traceback" not in done.stderr


# --- workers


def test_an_error_of_a_worker_arrives_with_its_traceback():
    with pytest.raises(ValueError, match="non-negative") as caught, local_workers(2) as pool:
        list(as_ready(pool, time.sleep, {"hnet-0": (-1,), "hnet-1": (60,)}))
    assert "worker process of hnet-0" in str(caught.value.__cause__) and caught.value.where.startswith("hnet-0, on ")


def test_errors_of_the_project_survive_the_way_between_processes():
    for error in (WorkerError("a"), NumbersError("b"), DivergedError("c"), HyperclipError("d")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)


PARENT = """
import os, sys, time
from pathlib import Path
def work(name):
    (Path(__file__).parent / name).write_text(str(os.getpid()))
    time.sleep(600)
from hyperclip_nb.cli import commands as c
from hyperclip_nb.core.workers import as_ready, local_workers
def call(self):
    with local_workers(2) as pool:
        list(as_ready(pool, work, {"hnet-0": ("0.pid",), "hnet-1": ("1.pid",)}))
c.Demo.__call__ = call
if __name__ == "__main__":
    c.main(["demo"])
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    "who, number, code, said",
    [
        ("parent", signal.SIGTERM, 143, "ended by SIGTERM"),
        ("parent", signal.SIGINT, 130, "interrupted"),
        ("group", signal.SIGINT, 130, "interrupted"),
        ("parent", signal.SIGKILL, -9, ""),
        ("worker", signal.SIGKILL, 2, "its worker process died: it was killed by SIGKILL"),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, who, number, code, said):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    files = [tmp_path / "0.pid", tmp_path / "1.pid"]
    until = time.monotonic() + 120
    while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < until:
        time.sleep(0.05)
    workers = [int(f.read_text()) for f in files]
    assert all(map(running, workers))
    if who == "group":
        os.killpg(parent.pid, number)
    else:
        os.kill(workers[0] if who == "worker" else parent.pid, number)
    text = parent.communicate(timeout=240)[1]
    assert parent.returncode == code and said in text and "Traceback" not in text
    until = time.monotonic() + 30
    while any(map(running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(running, workers))


# --- numbers that are none


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, 0.0])
@pytest.mark.parametrize("where", ["weights", "features"])
def test_no_accuracy_comes_from_numbers_that_have_no_direction(ragged, value, where):
    net = AdapterNet(ragged.images.shape[1], 4)
    w = torch.randn(len(ragged), net.size, generator=torch.Generator().manual_seed(0))
    assert set_accuracy(w, ragged, net).isfinite().all()
    if where == "weights":
        w[1, -1] = value or 1e25
    else:
        ragged.images[ragged.images.shape[0] // 2] = value
        w *= bool(value)  # with zero weights, a picture without features stays without
    with pytest.raises(
        NumbersError, match=r"logits: expected finite numbers that are not all 0, got .* for [1-9]\d* of"
    ):
        for part in ("query", "support"):
            set_accuracy(w, ragged, net, part)
    batch = ragged.batch(ragged.all_ids, "all")
    with pytest.raises(NumbersError, match="logits"):  # the mean with a sound network would hide it
        ensemble(torch.stack([net.logits(torch.randn_like(w), batch), net.logits(w, batch)]))


def test_answers_are_those_of_argmax():
    logits = torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(0))
    logits[..., 3] = -torch.inf  # padded
    assert torch.equal(answer_ids(logits), logits.argmax(-1))


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_hold_for_every_number(name):
    kind, least, largest = BOUNDS[name]
    check_bounds(**{name: kind(least)})
    check_bounds(**{name: kind(largest)})
    for wrong in (least - 1, largest + 1, float("nan"), float("inf"), "3", None, True):
        with pytest.raises(ValueError, match=f"{name}: expected a"):
            check_bounds(**{name: wrong})


def exploding(steps=6, at=4):
    "A training whose weights are infinite after step `at`, before the loss notices."
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)

    def loss(batch, generator):
        if loop.updates.step + 1 == at:
            loop.updates.optimizer.param_groups[0]["lr"] = float("inf")
        return model.weight.square().sum()

    loop = track_ema(fit(model, loss, lambda generator: None, TrainConfig(steps=steps)), model, EMA(model))
    return model, loop


@pytest.mark.parametrize("every", [1, 2])
def test_a_bad_state_never_takes_the_place_of_a_good_one(tmp_path, every):
    path = tmp_path / "x.resume.safetensors"
    with pytest.raises(NumbersError, match="finite"):
        for _ in checkpointed(exploding()[1], path, {}, every=every):
            pass
    state = load_tensors(path)[0]
    assert all(x.isfinite().all() for x in state.values()) and len(state["past"]) == 3 // every * every
    resumed = checkpointed(exploding(at=99)[1], path, {}, every=every)
    assert [u.step for u in resumed] == [1, 2, 3, 4, 5, 6]


def test_a_divergence_names_the_network_the_step_and_the_last_good_state(tmp_path):
    run = Run.create(tmp_path / "run", {})
    parts = Parts(run, Recipe(), "scenes", report=lambda text: None)

    def steps():
        for path in [run.checkpoint("multitask-0")]:
            path.touch()
        return loop

    model, loop = exploding()
    run.checkpoint("multitask-0").parent.mkdir(exist_ok=True)
    with pytest.raises(DivergedError) as caught:
        parts.trained("multitask", 0, Training(model, lambda: loop))
    assert "multitask-0 diverged: " in str(caught.value) and "step 5" in str(caught.value)
    assert run.manifest.files == {}
    # the error of a part that another needs keeps its own name
    with pytest.raises(DivergedError, match="^multitask-1 diverged"):
        model, loop = exploding()
        parts.kept("hnet", 1, lambda name, settings: parts.trained("multitask", 1, Training(model, lambda: loop)))


def test_a_part_with_a_number_that_is_none_is_not_stored(tmp_path):
    run = Run.create(tmp_path / "run", {})
    parts = Parts(run, Recipe(), "scenes", report=lambda text: None)
    with pytest.raises(DivergedError, match="hvae_latents-0 diverged: latents: expected finite numbers, got 1 of 3"):
        parts.kept("hvae_latents", 0, lambda name, settings: {"latents": torch.tensor([0.0, 1.0, torch.nan])})
    assert run.manifest.files == {} and not list(run.path.glob("*.safetensors"))


# --- schedules


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize(
    "options",
    [
        dict(timesteps=350, beta_end=0.999),
        dict(timesteps=1000, beta_start=0.5, beta_end=0.999),
        dict(timesteps=1000, schedule="cosine"),
        dict(timesteps=4000, schedule="cosine"),
        dict(timesteps=1000, beta_end=0.5),
        dict(timesteps=1000, beta_start=1e-18, beta_end=1e-18),
        dict(timesteps=1),
        dict(),
    ],
    ids=str,
)
def test_a_schedule_is_refused_or_can_be_sampled(prediction, options):
    try:
        schedule = Schedule.make(DiffusionConfig(prediction=prediction, **options))
    except ValueError as error:
        assert "schedule: expected" in str(error)
        assert options not in ({}, dict(timesteps=1), dict(timesteps=1000, schedule="cosine"))
        return
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for sample in SAMPLERS.values():
        for clamp in (None, 3.0):
            generator = torch.Generator().manual_seed(0)
            steps = min(20, len(schedule))
            *_, z = sample(
                lambda z, t: 0.1 * torch.ones_like(z), noise, schedule, generator=generator, steps=steps, clamp=clamp
            )
            assert z.isfinite().all()


def test_zero_signal_at_the_end_is_for_predictions_that_can_begin_there():
    alpha_bars = torch.linspace(0.999, 0, 100, dtype=torch.float64)
    with pytest.raises(ValueError, match="signal √ᾱ of at least"):
        Schedule(alpha_bars, torch.arange(100), "epsilon")
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for prediction in ("v", "x0"):
        schedule = Schedule(alpha_bars, torch.arange(100), prediction)
        for sample in SAMPLERS.values():
            *_, z = sample(lambda z, t: 0.1 * torch.ones_like(z), noise, schedule, generator=torch.Generator())
            assert z.isfinite().all()


@pytest.mark.parametrize("wrong", [[], [1.0, 0.5], [0.9, 0.9], [0.5, 0.9], [0.9, -0.1], [0.9, float("nan")]])
def test_a_curve_must_fall(wrong):
    with pytest.raises(ValueError, match="fall at every step"):
        Schedule(torch.tensor(wrong, dtype=torch.float64), torch.arange(len(wrong)), "v")
