"""All that wants to be known of a GPU, in one prepared run of at most eight minutes.

    python benchmarks/gpu.py [--device cuda] [--out FILE] [--seconds 480] [--only tests,parity,precision,speed,seed]
    python benchmarks/gpu.py --device cpu --tiny       # as a test of the script itself, on a machine without a GPU

Five sections, each in a time of its own, and JSON after each, so that a run that is cut off has left what it found:

- **tests**: those marked `cuda` (`tests/test_on_gpu.py`).
- **parity**: every training step, path and sampler of `tests/test_cuda.py` on the device and on the CPU: the largest
  difference of their results, relative to the largest number; and how often the host waits when three more steps are
  asked for, which should be never.
- **precision**: what TF32 and bfloat16 change, and what they save: every training and path with TF32 against single
  precision on the same device; a generator's step and a sampler of the paper's size in all three.
- **speed**: the rows of `speed.py`, a to f, both samplers and both latencies, each against the plain way on the same
  device and against its limit, counted with the products and the bandwidth that are measured there. The goal is twice
  the limit.
- **seed**: a tenth of one seed of the preset `paper`, all rows, at its true sizes (E = 768, hidden 256, P = 394,240): a
  tenth of Meta-VQA's tasks and of the steps that are counted in steps, on planted features (never for claims), and what
  follows for a whole seed, part by part: ten times as much. The goal on one H200 is 15 minutes.

Nothing here was ever run on a GPU where `results/cuda.json` is not there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]

TASKS = 1_243  # of Meta-VQA: 870 for training, 373 for testing
TINY = {  # settings of the recipe with which the script is tried
    "hidden": 8,
    "latent_size": 8,
    "hnet_hidden": (16, 16),
    "conditional_hidden": (16, 16),
    "views": 2,
    "hvae_views": 2,
    "hvae.latent_size": 4,
    "hvae.components": 8,
    "denoiser.hidden": 32,
    "multitask.steps": 10,
    "mnet.steps": 4,
    "hnet.steps": 4,
    "conditional.steps": 10,
    "film.steps": 10,
    "conditional_maml.steps": 4,
    "hvae_training.steps": 10,
    "hyperldm.steps": 30,
    "hyperclip_training.steps": 10,
    "guidance_steps": (5,),
    "few_shot_steps": (5,),
    "diffusion.timesteps": 20,
    "diffusion.beta_end": 0.5,
    "clamp": 3.0,
}


def subprocess_of(command: list[str], seconds: float, **environment: str) -> tuple[int | None, str]:
    "Exit code, None for one that ran out of time, and all that was said. A GPU's state in one part is not the next's."
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen(
            [sys.executable, *command],
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        try:
            code: int | None = started.wait(seconds)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
            code = None
        said.seek(0)
        return code, said.read()


# ---- tests and parity ----


def run_tests(device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    "The tests that need a GPU; without one they are skipped."
    code, said = subprocess_of(["-m", "pytest", "-q", "-m", "cuda", "tests/test_on_gpu.py"], seconds)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", said.splitlines()[-1])}
    return {"exit_code": code, **counts, "failures": re.findall(r"^FAILED (.*)$", said, re.M)[:20]}


@contextmanager
def counted_waits(device: str, found: list[str]):
    "Collects where the host waits for the device, as torch's own mode tells it."
    if device != "cuda":
        yield
        return
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{Path(w.filename).name}:{w.lineno}" for w in noted if "synchroniz" in str(w.message)]


def results_of(found: Any) -> list[Tensor]:
    "Losses and parameters of a training, or the end of a path, on the CPU."
    if isinstance(found, Tensor):
        return [found.detach().cpu().double()]
    updates, model = found
    losses = torch.tensor([u.loss for u in updates], dtype=torch.float64)
    return [losses, *(x.detach().cpu().double() for x in model.state_dict().values())]


def parity(device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    "The device against the CPU."
    from test_cuda import PATHS, TRAININGS, World

    here, there, rows, began = World("cpu"), World(device), {}, time.perf_counter()
    for name, work in {**TRAININGS, **PATHS}.items():
        if time.perf_counter() - began > seconds:
            rows[name] = {"skipped": "out of time"}
            continue
        try:
            pairs = list(zip(results_of(work(here, 4)), results_of(work(there, 4)), strict=True))
            few, many = list[str](), list[str]()
            for steps, waits in (2, few), (5, many):
                with counted_waits(device, waits):
                    work(there, steps)
            worst = max(((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).item() for a, b in pairs)
            rows[name] = {
                "difference": worst,
                "waits_of_three_steps": len(many) - len(few),
                "places": sorted({*many})[:8],
            }
        except Exception as error:
            rows[name] = {"error": f"{type(error).__name__}: {error}"[:400], "trace": traceback.format_exc()[-800:]}
    return {
        "rows": rows,
        "worst": max((row.get("difference", 0.0) for row in rows.values()), default=0.0),
        "errors": [name for name, row in rows.items() if "error" in row],
        "waiting": [name for name, row in rows.items() if row.get("waits_of_three_steps", 0) > 0],
    }


# ---- fewer digits ----


def timed(work: Callable[[], Tensor], device: str, least: float) -> tuple[Tensor, float]:
    "What some work makes, and the seconds of its fastest repetition."
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    made, times, began = work(), list[float](), time.perf_counter()  # the first one prepares
    while len(times) < 3 or time.perf_counter() - began < least:
        wait()
        start = time.perf_counter()
        made = work()
        wait()
        times.append(time.perf_counter() - start)
    return made, min(times)


def precision(device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    "TF32 and bfloat16 against single precision."
    from rows import NET, E, generator_network
    from test_cuda import PATHS, TRAININGS, World

    from hyperclip_nb.basenet.adapter import AdapterNet
    from hyperclip_nb.core.blocks import Standardizer
    from hyperclip_nb.core.devices import matrix_products
    from hyperclip_nb.core.seeds import seeded
    from hyperclip_nb.diffusion.hyperldm import HyperLDM
    from hyperclip_nb.diffusion.schedule import DiffusionConfig
    from hyperclip_nb.hypernet.hypernetworks import HNet

    ways = {
        "float32": lambda: matrix_products("float32"),
        "tf32": lambda: matrix_products("tf32"),
        "bfloat16": lambda: torch.autocast(device, torch.bfloat16),
    }
    difference = lambda a, b: ((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()
    world, began, parity = World(device), time.perf_counter(), {}
    for name, work in {**TRAININGS, **PATHS}.items():
        if time.perf_counter() - began > seconds / 2:
            break
        found = []
        for way in "float32", "tf32":
            with ways[way]():
                found.append(results_of(work(world, 4)))
        parity[name] = max(difference(near, exact) for exact, near in zip(*found))

    hnet = HNet(AdapterNet(24, 8), 8, (8,)).to(device) if tiny else generator_network(device)
    z, e = (torch.randn(n, m, generator=seeded(0, "z")).to(device) for n, m in ((32, hnet.latent_size), (373, E)))
    ldm = HyperLDM.make(
        E, hnet.latent_size, Standardizer(z), DiffusionConfig(timesteps=10, beta_end=0.5) if tiny else DiffusionConfig()
    ).to(device)
    batch = torch.zeros(32, hnet.net.size if tiny else NET.size, device=device)

    def step() -> Tensor:
        hnet.zero_grad(set_to_none=True)
        (hnet(z).float() - batch).square().mean().backward()
        return torch.cat([p.grad.flatten()[:100_000] for p in hnet.parameters() if p.grad is not None]).cpu()

    def samples() -> Tensor:
        return ldm.generate(e, generator=seeded(0), gamma=1.5, clamp=3.0, check=False).cpu()

    speed: dict[str, dict[str, dict[str, float]]] = {}
    for name, work in {"a generator's step, 32 latents": step, "a sampler, 373 questions": samples}.items():
        exact, rows = Tensor(), {}
        for way, context in ways.items():
            with context():
                made, spent = timed(work, device, 0.0 if tiny else 1.0)
            exact = made if way == "float32" else exact
            rows[way] = {"seconds": spent, "difference": difference(made.float(), exact)}
        speed[name] = rows
    return {"parity_of_tf32": parity, "worst": max(parity.values(), default=0.0), "speed": speed}


# ---- speed ----


def speed(device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    "The rows of `speed.py`, quick."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        only = ["--only", "latency_20"] if tiny else []
        command = ["benchmarks/speed.py", "--quick", "--device", device, "--out", str(out), *only]
        code, said = subprocess_of(command, seconds)
        found = json.loads(out.read_text()) if out.exists() else {}
    wanted = ("id", "variant", "work", "reference_s", "ours_s", "ratio", "limit_s", "over_limit", "largest_difference")
    rows = [{key: row[key] for key in wanted} for row in found.get("rows", [])]
    return {
        "exit_code": code,
        "machine": found.get("machine"),
        "rows": rows,
        "over_twice_the_limit": [f"{row['id']}, {row['variant']}" for row in rows if row["over_limit"] > 2],
        **({"said": said[-1500:]} if code != 0 else {}),
    }


# ---- a tenth of a seed ----


def a_tenth(recipe: Any) -> Any:
    """Trainings that count steps get a tenth of them; those that count epochs are shortened by having fewer tasks.

    A clamp keeps samples of a denoiser that was trained for so short a time finite."""
    from hyperclip_nb.core.training import TrainConfig

    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    steps = {k: v for k, v in values.items() if isinstance(v, TrainConfig) and v.steps is not None}
    return replace(recipe, clamp=3.0, **{name: config.shortened(0.1) for name, config in steps.items()})


def run_seed(device: str, tiny: bool, folder: Path) -> None:
    "In a process of its own: says how long each part took."
    from hyperclip_nb.dataset.planted import Planted, plant
    from hyperclip_nb.evaluation.presets import PRESETS, Source
    from hyperclip_nb.evaluation.reproduce import reproduce

    began = time.perf_counter()
    plant(folder / "vqa", config=Planted(embed=24 if tiny else 768), count=40 if tiny else TASKS // 10)
    print(f"features: {time.perf_counter() - began:.1f} s", flush=True)
    preset = PRESETS["paper"]
    preset = preset.override(TINY) if tiny else replace(preset, recipe=a_tenth(preset.recipe))
    rows = ("multitask", "hnet_maml", "hnet_hyperclip", "hvae_hyperldm_g1") if tiny else ()
    began = time.perf_counter()
    source = Source(tasks=folder / "vqa", features=folder / "vqa" / "features")
    results = reproduce(preset, out=folder / "run", source=source, methods=rows, seeds=1, device=device)
    print(f"all: {time.perf_counter() - began:.1f} s", flush=True)
    print("accuracy: " + json.dumps({row.method: row.accuracy for row in results.rows if "+" not in row.method}))


def seed(device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    "A tenth of a seed, and what follows for a whole one."
    with tempfile.TemporaryDirectory() as folder:
        more = ["--tiny"] if tiny else []
        began = time.perf_counter()
        command = ["benchmarks/gpu.py", "--device", device, "--run-seed", folder, *more]
        code, said = subprocess_of(command, seconds)
        spent = time.perf_counter() - began
    parts = {name: float(s) for name, s in re.findall(r"^([\w-]+): ([\d.]+) s$", said, re.M)}
    accuracy = re.search(r"^accuracy: (.*)$", said, re.M)
    whole = parts.pop("all", None)
    features = parts.pop("features", 0.0)
    known = sum(parts.values())
    return {
        "exit_code": code,
        "finished": whole is not None,
        "tasks": 40 if tiny else TASKS // 10,
        "features_s": features,
        "parts_s": parts,
        "scoring_s": whole - known if whole is not None else None,
        "seconds": whole if whole is not None else spent - features,
        "extrapolated_minutes": 10 * whole / 60 if whole is not None else None,
        "at_least_minutes": 10 * known / 60,
        "accuracy": json.loads(accuracy[1]) if accuracy else None,
        **({"said": said[-1500:]} if whole is None else {}),
    }


SECTIONS: dict[str, tuple[float, Callable[[str, bool, float], dict[str, Any]]]] = {  # share of the time that is left
    "tests": (0.15, run_tests),
    "parity": (0.15, parity),
    "precision": (0.15, precision),
    "speed": (0.5, speed),
    "seed": (1.0, seed),
}


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "python": sys.version.split()[0]}
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"name": about.name, "memory_gib": round(about.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON file; default: benchmarks/results/cuda.json on a GPU, else none")
    parser.add_argument("--seconds", type=float, default=480, help="for all of it")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="as little as shows that the script runs")
    parser.add_argument("--run-seed", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_seed:
        return run_seed(options.device, options.tiny, options.run_seed)
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"--only: expected {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --device cpu --tiny tries the script")
    out = options.out or (None if options.device == "cpu" else ROOT / "benchmarks" / "results" / "cuda.json")
    results: dict[str, Any] = {"schema": 1, "tiny": options.tiny, "machine": machine(options.device)}
    end = time.perf_counter() + options.seconds
    for name in wanted:
        share, section = SECTIONS[name]
        began = time.perf_counter()
        try:
            found = section(options.device, options.tiny, max(10.0, share * (end - began)))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-2000:]}
        results[name] = {**found, "section_s": round(time.perf_counter() - began, 1)}
        print(f"== {name}\n{json.dumps(results[name], indent=1)}", flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
    broken = [name for name in wanted if "error" in results[name] or results[name].get("errors")]
    broken += [name for name in wanted if results[name].get("exit_code", 0) not in (0, 5)]  # 5: pytest found no test
    if broken:
        sys.exit(f"not right: {', '.join(dict.fromkeys(broken))}")


if __name__ == "__main__":
    main()
