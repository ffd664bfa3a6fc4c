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
choices on validation. The GPU's column is an estimate, it was measured on no GPU: a step takes as long as its
floating-point operations at a stated rate, or as its calls of operators at a stated number of them per second,
whichever is longer. Operations are counted by torch in a step of its own.

**--train** makes what the HVAE needs, at the preset's settings but for what is listed: weights fine-tuned from one
network for all tasks (`--start` steps instead of the preset's), with `--views` of each task. Then HVAE and HyperLDM
are trained as long as the preset says. The spread of its samples is told for questions that it was trained on and for
new ones: of 783 questions it learns each, and for a question that it doesn't know it stays near the middle. All is
kept in --out and goes on where it stopped when it is killed. What it reports goes to `results/paper_size.json`.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parent))
from rows import alike, all_tasks

from hyperclip_nb.core.blocks import Standardizer, principal_directions
from hyperclip_nb.core.files import fingerprint
from hyperclip_nb.core.runs import Run, data_dir
from hyperclip_nb.core.seeds import seeded, step_seed
from hyperclip_nb.core.training import keep_best, last
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.features import FeatureBank, build_bank
from hyperclip_nb.dataset.planted import NOTE, PlantedEncoder
from hyperclip_nb.dataset.tasks import Splits, split_validation
from hyperclip_nb.evaluation import trainings
from hyperclip_nb.evaluation.experiment import Experiment
from hyperclip_nb.evaluation.learners import FACTORS
from hyperclip_nb.evaluation.methods import train_method
from hyperclip_nb.evaluation.parts import Parts, Training, once
from hyperclip_nb.evaluation.presets import PRESETS
from hyperclip_nb.evaluation.recipe import fields_of
from hyperclip_nb.evaluation.rows import Method
from hyperclip_nb.evaluation.scoring import TrainedMethod, score, score_shuffled
from hyperclip_nb.evaluation.trainings import Finetuned
from hyperclip_nb.hypernet.finetune import draw_views, finetune
from hyperclip_nb.hypernet.hvae import HVAE, train_hvae
from hyperclip_nb.hypernet.metatrain import adapt

RESULTS = Path(__file__).parent / "results" / "paper_size.json"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table of paper_size.py -->", "<!-- end of the table of paper_size.py -->"
GPU_FLOPS, GPU_CALLS = 1e13, 1e5  # assumed of one GPU: sustained in single precision, operators started per second
TEST, VALIDATION = 373, 87  # questions that rows are scored on, and that choices are made on


def planted(out: Path) -> tuple[Splits, FeatureBank]:
    "Meta-VQA's training tasks, one in ten of them for validation, and a bank of planted features under `out`."
    train, val = split_validation(all_tasks(), 0.1, 0)
    encoder = PlantedEncoder([*train, *val])
    return {"train": train, "val": val}, build_bank(out / "features", encoder, encoder.tasks, encoder.load, workers=0)


# ---- the table ----


class Operations(TorchDispatchMode):
    "Counts the operators that are called, and the floating-point operations of products among them."

    def __init__(self):
        super().__init__()
        self.calls, self.flops = 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        result = function(*arguments, **named)
        self.calls += 1
        if count := flop_registry.get(function.overloadpacket):
            self.flops += count(*arguments, **named, out_val=result)
        return result


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
        with Operations() as found:
            work()
    finally:
        torch.set_num_threads(1)
    return float(found.flops), float(found.calls)


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

    shape: tuple[int, int, int]  # views, tasks, numbers of stored latents

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.costs: list[Cost] = []

    def add(self, part: str, unit: str, count: float, work: Callable[[], Any], per: float = 1.0) -> None:
        "Time some work, of which there is `per` units."
        seconds, (flops, calls) = timed(work) / per, counted(work)
        self.costs.append(Cost(part, unit, count, seconds, flops / per, calls / per))
        print(line(self.costs[-1]), flush=True)

    def trained(self, part: str, seed: int, training: Training, condition: str | None = None) -> Any:
        steps = training.steps()
        self.add(", ".join(filter(None, [part, condition])), "step", len(steps), lambda: next(steps))
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
        super().__init__(splits, bank, run, PRESETS["paper"].recipe)
        self.parts = self.meter = Meter(run, self.recipe, self.parts.data)
        self.meter.shape = (min(2, self.recipe.views), len(splits["train"]), self.recipe.latent_size)
        # Of what is done once for each view of each task, one view of some tasks of alike sizes is measured.
        self.some = TaskSet(alike(splits["train"], 32), bank, scale=self.recipe.feature_scale)

    def measure(self) -> list[Cost]:
        "All lines of the table."
        for part in self.multitask, self.mnet_maml, self.hnet, self.hvae:
            part(0)
        for kind in "cond_multitask", "cond_multitask_film", "cond_hnet_maml":
            self.conditional(0, kind)
        self.adaptations()
        for kind in "hnet", "hvae":
            self.hyperldm(kind, 0)
            self.hyperclip(kind, 0)
        self.hyperldm("hvae", 0, variant="first_denoiser")
        self.scoring()
        return self.meter.costs

    def hvae(self, seed: int) -> HVAE:
        "Its training, without the principal components of real weights; these are measured by themselves."
        if ("hvae",) not in self.held:
            r, tasks, net = self.recipe, self.sets["train"], self.net
            seen = draw_views(tasks, 1, r.hvae_fraction)
            weights = torch.randn(1, 1, net.size).expand(1, len(tasks), -1)
            training = lambda: train_hvae(model, weights, tasks, seen, r.hvae_training, r.hvae_loss)
            model = HVAE(net, r.hvae)
            model.scaler.std.fill_(1)
            self.held["hvae",] = self.meter.trained("hvae", 0, Training(model, training))
        return self.held["hvae",]

    def adaptations(self) -> None:
        "Fine-tuned weights and their components, and the HNet's latents."
        r, count, one = self.recipe, len(self.sets["train"]), replace(self.recipe, views=1, hvae_views=1)
        views, start, hnet = r.hvae_views or r.views, self.multitask(0), self.hnet(0)
        add = self.meter.add
        add("fine-tuned weights", "view", views * count, lambda: trainings.fine_tuned(start, self.some, one, 0), 32)
        if size := r.hvae.components:  # of a sixteenth of the weights, and of a few samples
            share, samples, random = 16, size + 64, seeded(0, "components")
            x = torch.randn(samples, self.net.size // share)
            find = lambda: principal_directions(x, Standardizer(x, r.hvae.scale), size, random)
            add("their components", "view", views * count, find, samples / share)
        for name, how in {"": r.stored, " for HyperCLIP": r.stored_for_hyperclip}.items():
            if how is not None:
                store = lambda: trainings.hnet_stored(hnet, self.some, how, one, 0)
                add(f"stored latents{name}", "view", r.views * count, store, 32)

    def scoring(self) -> None:
        "Networks that are made and scored: rows with their controls, and the choices on validation."
        r, few = self.recipe, 10
        self.sets["few"] = TaskSet(self.sets["val"].tasks[:few], self.sets["val"].bank, scale=r.feature_scale)
        questions = self.embeddings["few"] = {name: e[:few] for name, e in self.embeddings["val"].items()}
        preset = PRESETS["paper"]
        methods = [Method.parse(id) for id in preset.zero_shot_methods]
        # A row is scored once, with three derangements, without a question, and on validation for its temperature.
        times = {m: TEST * (5 if m.reads_questions else 1) + VALIDATION for m in methods}
        sampled = sum(times[m] * m.samples for m in methods if m.name == "hyperldm")
        walks = [steps for steps in r.guidance_steps for _ in r.guidance_prior]
        walked = sum(VALIDATION * sum(walks) + times[m] * max(walks) for m in methods if m.name == "hyperclip")
        scored = sum(times[m] * m.samples for m in methods) + 2 * VALIDATION * len(walks)
        generate, random = self.generator("hvae", 0), seeded(0, "benchmark")
        network = TrainedMethod(lambda q, _: generate(torch.zeros(len(self.embedding(q)), r.latent_size))[None])
        draw = lambda: self.sample("hvae", 0, questions, gamma=1.5, generator=random, check=False)
        walk = lambda: last(self.walk("hvae", 0, questions, 5, r.guidance_prior[-1]))
        # Descents on the support loss, and the sampler that it bends, for each number of shots.
        bent = [id for id in preset.few_shot_methods if Method.parse(id).variant == "few_shot"]
        steps = max(r.few_shot_steps) * (len(preset.few_shot_methods) - len(bent))
        steps += len(FACTORS) * r.diffusion.timesteps * len(bent)
        shots = (TEST + VALIDATION) * sum(n != 0 for n in preset.shots)
        support, fit = self.sets["few"].ragged(self.sets["few"].all_ids, "support"), replace(r.stored, steps=5)
        descent = lambda: adapt(generate, torch.zeros(r.latent_size), support, fit)
        self.meter.add("samples", "network", sampled, draw, few)
        self.meter.add("walks", "step", walked, walk, 5 * few)
        self.meter.add("scores", "network", scored, lambda: score(self, network, 0, "few"), few)
        self.meter.add("few shots", "step", shots * steps, descent, 5 * few)


def line(cost: Cost) -> str:
    seconds = f"{cost.seconds:.2f} s" if cost.seconds >= 1 else f"{1e3 * cost.seconds:.3g} ms"
    many = cost.unit + "s" if cost.count != 1 else cost.unit
    return (
        f"| {cost.part} | {cost.count:,.0f} {many} | {seconds} | {cost.flops / 1e9:.3g} | {cost.hours:.2f} h "
        f"| {cost.gpu_hours:.2f} h |"
    )


def table(costs: list[Cost]) -> str:
    "Markdown, with the sums below."
    head = "| part | how many | one, one core | GFLOP of one | one seed, one core | one seed, one GPU (estimate) |"
    one, gpu = (sum(getattr(cost, name) for cost in costs) for name in ("hours", "gpu_hours"))
    seeds = PRESETS["paper"].seeds
    two = one * -(-seeds // 2)
    return "\n".join(
        [
            head,
            "|---|---|---|---|---|---|",
            *map(line, costs),
            f"| **one seed** | | | | **{one:,.0f} h** | **{gpu:,.1f} h** |",
            f"| **the preset: {seeds} seeds** | | | | **{two:,.0f} h ({two / 24:.1f} days) on two cores** "
            f"| **{seeds * gpu:,.1f} h** |",
        ]
    )


def measure(out: Path) -> None:
    "Measure, print, and write the figures and the table of the README."
    torch.set_num_threads(1)
    splits, bank = planted(out)
    began = time.perf_counter()
    costs = Begun(splits, bank, Run.create(out / "begun", {"benchmark": "paper_size"})).measure()
    print("\n" + table(costs) + f"\n\n{time.perf_counter() - began:.0f} s")
    keep("costs", {"assumed": {"flops_per_s": GPU_FLOPS, "calls_per_s": GPU_CALLS}, "rows": [vars(c) for c in costs]})
    before, after = README.read_text().split(BEGIN)[0], README.read_text().split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table(costs)}\n{END}{after}")


def keep(name: str, found: dict) -> None:
    "One entry of the file of results."
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, name: found}, indent=1) + "\n")


# ---- two trainings at full length ----


class Proof(Experiment):
    "The experiment whose fine-tuned weights lie on disk, so that a killed run does not make them again."

    @once
    def fine_tuned(self, seed: int) -> Finetuned:
        "Their fine-tuned weights, view by view into a mapped file."
        tasks, r, start = self.to_fine_tune(), self.recipe, self.multitask(seed)
        seen = draw_views(tasks, r.hvae_views or r.views, r.hvae_fraction, seed=step_seed(seed, "hvae"))
        shape, folder = (len(seen), len(tasks), self.net.size), self.run.path / "fine_tuned"
        folder.mkdir(exist_ok=True)
        own = {"data", "seed", "finetuned", "hvae_fraction", *fields_of("multitask")}
        settings = {name: value for name, value in self.parts.settings("hvae", seed)[1].items() if name in own}
        path = folder / f"{fingerprint(settings)[:16]}-{'x'.join(map(str, shape))}.bin"
        weights = torch.from_file(str(path), shared=True, size=math.prod(shape)).view(shape)
        for view in range(len(seen)):
            done = path.with_suffix(f".{view}")
            if not done.exists():
                began = time.process_time()
                finetune(start, tasks, r.finetuned, seen[view : view + 1], seed=seed, out=weights[view : view + 1])
                done.write_text(f"{time.process_time() - began:.0f} s of a processor\n")
                print(f"view {view} of {len(seen)}: {done.read_text().strip()}", flush=True)
        return Finetuned(start.z0, weights, seen)


def decoded(x: Experiment, seed: int) -> float:  # R²
    "Share of the variance of fine-tuned weights that the decoder gives back from the posterior's mean, view by view."
    weights, model = x.fine_tuned(seed).weights, x.hvae(seed)
    mean, error, total = weights.mean((0, 1)), 0.0, 0.0
    with torch.no_grad():
        for some in (part for view in weights for part in view.split(64)):
            error += (model(model.encode(some)[0]) - some).square().sum().item()
            total += (some - mean).square().sum().item()
    return 1 - error / total


def train(what: str, out: Path, views: int, start: int, seed: int, fewer: int | None) -> None:
    "HVAE, or HVAE and HyperLDM, and what they are like."
    splits, bank = planted(out)
    if fewer:
        splits = {name: alike(tasks, max(2, round(fewer * len(tasks) / 870))) for name, tasks in splits.items()}
    r = PRESETS["paper"].recipe
    changed = {"hvae_views": views, "multitask": replace(r.multitask, steps=start, epochs=None)}
    recipe = replace(r, **changed)
    config = {"dataset": f"Meta-VQA's training tasks ({NOTE})", "recipe": recipe}
    x = Proof(splits, bank, Run.create(out / f"proof-{len(splits['train'])}", config, seeds=[seed]), recipe)
    found = {
        "features": NOTE,
        "tasks": len(splits["train"]),
        "changed": {name: str(value) for name, value in changed.items()},
        "accuracy": {
            "zero-shot, validation": x.scores(x.zero_shot, "val").mean().item(),
            "one network, validation": x.scores(x.multitask(seed).z0[None], "val").mean().item(),
        },
        "r2": decoded(x, seed),
    }
    print(json.dumps(found, indent=1), flush=True)
    if what == "hyperldm":
        ldm, many = x.hyperldm("hvae", seed), len(x.sets["val"])
        asked = {
            "trained questions": {name: e[:many] for name, e in x.embeddings["train"].items()},
            "new questions": x.embeddings["val"],
        }
        for which, gamma in product(asked, (1.0, 1.5)):
            z = x.sample("hvae", seed, asked[which], gamma=gamma, samples=10, generator=seeded(seed, "samples"))
            found[f"sample std, {which}, g = {gamma:g}"] = ldm.standardizer.encode(z).square().mean().sqrt().item()
        for id in "hvae_hyperldm_g1", "hvae_hyperldm_g1@10":
            method = train_method(x, seed, id)
            found["accuracy"][id] = score(x, method, seed, "val").mean().item()
            found["accuracy"][f"{id}+shuffled"] = score_shuffled(x, method, seed, "val").mean().item()
    print(json.dumps(found, indent=1))
    if not fewer:
        keep(what, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", choices=["hvae", "hyperldm"], help="this part at full length, in place of the table")
    parser.add_argument(
        "--out", type=Path, help="folder of features, weights and parts; default: in the data directory"
    )
    parser.add_argument("--views", type=int, default=2, help="fine-tuned networks of each task (1.2 GB for each)")
    parser.add_argument("--start", type=int, default=600, help="steps of the network that fine-tuning starts from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fewer", type=int, help="about so many tasks, to try it; nothing is written to the results")
    options = parser.parse_args()
    out = options.out or data_dir() / "paper_size"
    out.mkdir(parents=True, exist_ok=True)
    if options.train is None:
        return measure(out)
    train(options.train, out, options.views, options.start, options.seed, options.fewer)


if __name__ == "__main__":
    main()
