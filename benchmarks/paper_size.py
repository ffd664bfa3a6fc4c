"""The preset `paper` at its real size: what each of its trainings costs, and two of them at full length.

    python benchmarks/paper_size.py                       # seconds per step of everything, and the cost of the whole
    python benchmarks/paper_size.py --train hvae          # HyperLDM learns from its latents: --train hyperldm does both
    python benchmarks/paper_size.py --train hyperldm --views 4 --out DIR

Tasks are Meta-VQA's training tasks where HYPERCLIP_META_VQA names the folder of its files, else drawn like them; their
features are planted (`hyperclip_nb.dataset.planted`): for testing at the real size, never for claims. E = 768, hidden
256, P = 394,240.

**The table.** Every training of the preset is begun as `reproduce` begins it, a few steps are taken and timed, and the
rest is multiplied. What a part is made from is random where only its shape matters. One thread, and the processor's
time, so that others on the machine don't count; `reproduce` trains seeds side by side, with one thread each, so two
cores take the time of one seed for each two. Scoring is counted too: samples, walks and controls of all rows, and the
choices on validation. The GPU's column is an estimate and was measured on none: a step takes as long as its
floating-point operations at a stated rate, or as its calls of operators at a stated number of them per second, whichever
is longer. Operations are counted by torch in a step of its own.

**--train** makes what the HVAE needs, at the preset's settings but for what is listed: weights fine-tuned from one
network for all tasks (`--start` steps instead of the preset's), with `--views` of each task. Then HVAE and HyperLDM are
trained as long as the preset says. All is kept in --out and goes on where it stopped when it is killed. What it reports
goes to `results/paper_size.json`.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from rows import all_tasks, alike

from hyperclip_nb.core.files import read_json, write_json
from hyperclip_nb.core.runs import Run, data_dir
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import keep_best
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.features import FeatureBank, build_bank
from hyperclip_nb.dataset.planted import NOTE, PlantedEncoder
from hyperclip_nb.dataset.tasks import Splits, split_validation
from hyperclip_nb.evaluation import trainings
from hyperclip_nb.evaluation.experiment import Experiment
from hyperclip_nb.evaluation.methods import hyperclip_walk, train_method
from hyperclip_nb.evaluation.parts import Parts, Training
from hyperclip_nb.evaluation.presets import PRESETS
from hyperclip_nb.evaluation.rows import Method
from hyperclip_nb.evaluation.scoring import score
from hyperclip_nb.hypernet.finetune import draw_views, finetune
from hyperclip_nb.hypernet.hvae import train_hvae

RESULTS = Path(__file__).parent / "results" / "paper_size.json"
README, BEGIN, END = Path(__file__).parent / "README.md", "<!-- table of paper_size.py -->", "<!-- end of that table -->"
GPU_FLOPS, GPU_CALLS = 1e13, 1e5  # assumed of one GPU: sustained in single precision, operators started per second
TEST, VALIDATION = 373, 87  # questions that rows are scored on, and that choices are made on


def planted(out: Path) -> tuple[Splits, FeatureBank]:
    "Meta-VQA's training tasks, one in ten of them for validation, and a bank of planted features under `out`."
    train, val = split_validation(all_tasks(), 0.1, 0)
    encoder = PlantedEncoder([*train, *val])
    return {"train": train, "val": val}, build_bank(out / "features", encoder, encoder.tasks, encoder.load, workers=0)


# ---- the table ----


class Calls(TorchDispatchMode):
    "Counts the operators that are called."

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += 1
        return function(*arguments, **(named or {}))


@dataclass
class Cost:
    "A line of the table."

    part: str
    unit: str  # of what is counted
    count: float  # of them in one seed
    seconds: float  # of one, on one core
    flops: float = 0.0  # of one
    calls: float = 0.0  # operators of one

    @property
    def hours(self) -> float:
        return self.count * self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.count * max(self.flops / GPU_FLOPS, self.calls / GPU_CALLS) / 3600


def counted(work: Callable[[], Any]) -> tuple[float, float]:  # floating-point operations, operators
    "What one piece of work asks of a processor. With two threads nothing goes to numpy, which torch can't count."
    torch.set_num_threads(2)
    try:
        with FlopCounterMode(display=False) as flops, Calls() as calls:
            work()
    finally:
        torch.set_num_threads(1)
    return float(flops.get_total_flops()), calls.count


def timed(work: Callable[[], Any], least: float = 4.0) -> float:  # seconds
    "The median of at least two, and of as many as fit into some seconds; the first call is not counted."
    work()
    times: list[float] = []
    while len(times) < 2 or sum(times) < least and len(times) < 200:
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


class Meter(Parts):
    "In place of a run: every training is begun, timed and dropped; stored latents are random numbers."

    def __init__(self, *arguments: Any, tasks: int, views: int, size: int):
        super().__init__(*arguments)
        self.shape, self.costs = (views, tasks, size), []

    def add(self, part: str, unit: str, count: float, work: Callable[[], Any], per: float = 1.0) -> None:
        "Time some work, of which there is `per` units."
        seconds, (flops, calls) = timed(work) / per, counted(work)
        self.costs.append(Cost(part, unit, count, seconds, flops / per, calls / per))
        print(line(self.costs[-1]), flush=True)

    def trained(self, part: str, seed: int, training: Training, condition: str | None = None) -> Any:
        steps = training.steps()
        self.add(part, "step", len(steps), lambda: next(steps))
        if isinstance(steps, keep_best):  # now and then the validation tasks are scored
            began = time.process_time()
            steps.consider()
            self.costs[-1].seconds += (time.process_time() - began) / steps.every
        return training.model.eval().requires_grad_(False)

    def kept(self, part: str, seed: int, build: Callable, condition: str | None = None) -> dict[str, Tensor]:
        views, tasks, size = self.shape
        latents = torch.randn(views, tasks, size, generator=seeded(0, part))
        return {"latents": latents, "std": torch.full_like(latents if "hvae" in part else latents[0], 0.1)}


class Begun(Experiment):
    "The experiment of which nothing is trained to its end."

    def __init__(self, splits: Splits, bank: FeatureBank, run: Run):
        recipe = PRESETS["paper"].recipe
        super().__init__(splits, bank, run, recipe)
        shape = {"tasks": len(splits["train"]), "views": min(2, recipe.views), "size": recipe.latent_size}
        self.meter = self.parts = Meter(run, recipe, "measured", tasks=0, views=0, size=0)
        self.meter.shape = (shape["views"], shape["tasks"], shape["size"])
        # A few tasks of alike sizes, of which one view is measured for all.
        self.few = TaskSet(alike(splits["train"], 32), bank)

    def fine_tuned(self, seed: int) -> Any:
        r, start = replace(self.recipe, views=1), self.multitask(seed)
        views = self.recipe.views * len(self.sets["train"])
        self.meter.add("fine-tuned weights", "view", views, lambda: trainings.fine_tuned(start, self.few, r, 0), 32)
        seen = draw_views(self.sets["train"], 1, r.hvae_fraction)
        return trainings.Finetuned(start.z0, torch.randn(1, 1, self.layout.size).expand(1, len(self.sets["train"]), -1), seen)


def line(cost: Cost) -> str:
    seconds = f"{cost.seconds:.2f} s" if cost.seconds >= 1 else f"{1e3 * cost.seconds:.3g} ms"
    return (
        f"| {cost.part} | {cost.count:,.0f} {cost.unit}s | {seconds} | {cost.flops / 1e9:.3g} | {cost.hours:.2f} "
        f"| {cost.gpu_hours:.2f} |"
    )
