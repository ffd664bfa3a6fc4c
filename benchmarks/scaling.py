"""What more training tasks bring to whom: the scaling law on the described digits, 100 to 10,000 tasks.

    python benchmarks/scaling.py                # all jobs, in order of their worth; killed, it goes on where it was
    python benchmarks/scaling.py --minutes 30   # begins no row after that
    python benchmarks/scaling.py --seeds 1 2    # of these seeds only: once seed 0 is there, processes can share them
    python benchmarks/scaling.py --table        # trains nothing: results/scaling.json and .md from what is there

A job is a number of training tasks, a seed (of the tasks that are drawn and of everything trained), and an effort. Each
of its rows has a file of its own under data/runs/scaling/records, and the table is written anew now and then.

Compute. At effort 1 every training has the length and the batches that `DIGITS` gives it, at every number of tasks;
at effort 2 all parts of the two paths that are compared, the conditional network's and HVAE with HyperLDM, are
trained for twice as many steps, with the first seed. At 1,000 tasks the conditional network's steps take about as
long as all parts of the other path together. The processor's seconds are told for every row: those of all parts that
it is made from, in one thread.

Choices are made on validation questions: step of the conditional network, of multitask and of both perceptrons (by
their trainings, every 100 steps); hidden layers and learning rate of the conditional network (of six pairs), hidden
layers of the perceptrons (of two), length of HyperLDM's training (of two) and γ (of two), with seed 0 for all seeds,
and at effort 1 for both efforts but γ; HyperLDM's length at 10,000 tasks as at 3,000; width and ridge of the kernel;
HyperCLIP's steps and λ. Test questions are the same in all jobs."""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperclip_nb.core.files import fingerprint, write_atomic, write_json
from hyperclip_nb.core.runs import run_dir
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.digits import EACH, digit_pictures, digits_tasks, hashed_question, picture_parts
from hyperclip_nb.dataset.tasks import Task
from hyperclip_nb.dataset.tensors import TensorTask
from hyperclip_nb.evaluation.digits import DIGITS, digits_experiment
from hyperclip_nb.evaluation.experiment import Experiment
from hyperclip_nb.evaluation.graph import in_order, read_by
from hyperclip_nb.evaluation.grid import has_part, kept_as, make_part
from hyperclip_nb.evaluation.methods import from_latents, hyperldm, train_method
from hyperclip_nb.evaluation.overrides import override
from hyperclip_nb.evaluation.recipe import Recipe, to_kept
from hyperclip_nb.evaluation.results import markdown_table, plain
from hyperclip_nb.evaluation.scoring import (
    TrainedMethod,
    best_method,
    measure,
    on_validation,
    score,
    shuffled_questions,
)
from hyperclip_nb.evaluation.statistics import Bootstrap
from hyperclip_nb.guidance.question_regression import KernelRegression
from hyperclip_nb.hypernet.finetune import draw_views, finetune

COUNTS = (100, 300, 1_000, 3_000, 10_000)
LENGTHS = (800, 2_500)  # of HyperLDM's training, at effort 1
WIDTHS = ((512,), (256, 256))  # of the conditional network and of both perceptrons
RATES = (1e-3, 3e-4, 1e-4)  # of the conditional network
GAMMAS = (1.0, 1.5)
KERNELS = tuple(product((0.7, 1.0, 1.4), (0.001, 0.003, 0.01, 0.03)))  # widths and ridges
FEW_KERNELS = ((1.0, 0.003), (1.0, 0.01))
ROWS = {  # what is measured -> what it is called
    "multitask": "Unconditional multitask",
    "cond_multitask": "Conditional network",
    "latent_regression": "Kernel regression to the latent",
    "mlp_regression": "Perceptron to the latent",
    "mlp_regression~task": "The same, trained for the task's loss",
    "hvae_hyperldm": "HyperLDM, one sample",
    "hvae_hyperldm@10": "HyperLDM, ten samples",
    "hvae_hyperclip": "HyperCLIP",
    "decoded": "Best latent, from labelled pictures",
    "fine_tuned": "Fine-tuned on labelled pictures",
}
WITH_LABELS = ("decoded", "fine_tuned")  # not methods: how far words could lead
TWICE = ("cond_multitask", "latent_regression", "hvae_hyperldm", "hvae_hyperldm@10", "decoded")  # rows of effort 2
WIDE = ("cond_multitask", "mlp_regression", "mlp_regression~task")
LATER = ("mlp_regression", "mlp_regression~task", "hvae_hyperclip")  # rows whose other seeds can wait
OURS, THEIRS = "hvae_hyperldm@10", "cond_multitask"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Job:
    "Some rows of the table."

    count: int  # training tasks
    seed: int
    effort: int = 1  # times the usual number of steps

    def recipe(self, length: int = LENGTHS[-1], hidden: Sequence[int] = WIDTHS[0], lr: float = RATES[0]) -> Recipe:
        changes = {
            "conditional.steps": self.effort * DIGITS.conditional.steps,
            "conditional.lr": lr,
            "conditional_hidden": tuple(hidden),
            "mlp_hidden": tuple(hidden),
            "hvae_training.steps": self.effort * DIGITS.hvae_training.steps,
            "hyperldm.steps": self.effort * length,
        }
        return override(DIGITS, changes)


def in_turn() -> list[tuple[Job, str]]:
    "All jobs, row by row, the most valuable first."
    small, many = COUNTS[:-1], COUNTS[-1]
    first = [row for row in ROWS if row not in LATER]
    turns = [
        *((Job(count, 0), first) for count in COUNTS),
        *((Job(count, 0), LATER) for count in small),
        *((Job(count, seed), first) for seed in (1, 2) for count in small),
        *((Job(many, seed), first) for seed in (1, 2)),
        *((Job(count, 0, effort=2), TWICE) for count in (1_000, 3_000, 300, many, 100)),
        *((Job(count, seed), LATER) for seed in (1, 2) for count in small),
        *((Job(many, seed), LATER) for seed in (0, 1, 2)),
    ]
    return [(job, row) for job, rows in turns for row in rows]


# ---- what is trained ----


@lru_cache(maxsize=1)
def opened(count: int, seed: int, folder: Path) -> Experiment:
    "The experiment of a number of tasks; all recipes keep their parts in its run, under names that tell them apart."
    x = digits_experiment(count, seed, out=folder / f"{count}-{seed}")
    x.parts.addressed = True
    return x


def with_recipe(x: Experiment, recipe: Recipe) -> Experiment:
    "The same data and run with other settings; parts that do not depend on them are found in the run."
    y = copy.copy(x)
    y.parts, y.recipe, y.held = copy.copy(x.parts), recipe, {}
    y.parts.recipe = recipe
    return y


def fine_tuned(x: Experiment, seed: int) -> float:  # seconds
    "Fine-tuned weights, which are too large to be written: made again by every process that trains an HVAE."
    _, settings = kept_as(x.parts, "hvae", seed)
    settings = {k: v for k, v in settings.items() if k not in ("hvae", "hvae_loss", "hvae_training")}

    def build() -> dict[str, Tensor]:
        began = time.process_time()
        x.fine_tuned(seed)
        return {"cpu_s": torch.tensor(time.process_time() - began)}

    return x.run.part(f"seconds/fine_tuned-{seed}", settings, build)["cpu_s"].item()


def seconds_of(x: Experiment, seed: int, part: str) -> float | None:  # None: it was made, but nobody looked at a clock
    "Make a part, or find it, and how long it took. One that was cut short begins anew, so that its seconds are whole."
    name, settings = kept_as(x.parts, part, seed)
    if part in ("hvae", "hvae_latents") and not has_part(x, part, seed):
        x.fine_tuned(seed)  # counted by itself

    def build() -> dict[str, Tensor]:
        if has_part(x, part, seed):
            return {"cpu_s": torch.tensor(-1.0)}
        x.run.checkpoint(name).unlink(missing_ok=True)
        began = time.process_time()
        make_part(x, seed, part)
        return {"cpu_s": torch.tensor(time.process_time() - began)}

    found = x.run.part(f"seconds/{name}", settings, build)["cpu_s"].item()
    return None if found < 0 else found


def trained(x: Experiment, seed: int, row: str) -> dict[str, float | None]:  # part -> seconds
    "All parts that a row is made from."
    ids = {"hvae_hyperldm": "hvae_hyperldm_g1", "decoded": "mean_latent", "fine_tuned": "multitask"}
    id = row.removesuffix("@10")
    spent: dict[str, float | None] = {}
    for part in in_order(read_by(ids.get(id, id)), x.recipe):
        if part == "hvae":
            spent["fine_tuned"] = fine_tuned(x, seed)
        spent[part] = seconds_of(x, seed, part)
    return spent


# ---- what is scored ----


def kernel(x: Experiment, seed: int) -> TrainedMethod:
    "Kernel ridge regression from questions to latents."
    train, latents = x.embedding(), x.latents("hvae", seed).mean(0)
    settings = FEW_KERNELS if len(train) > 5_000 else KERNELS  # with so many, a solution takes half a minute

    def fit(width: float, ridge: float) -> TrainedMethod:
        found = KernelRegression.fit(train, latents, width, ridge)
        return from_latents(x, "hvae", seed, lambda questions, noise: found(x.embedding(questions))[None])

    return best_method(x, seed, [({"width": w, "ridge": r}, fit(w, r)) for w, r in settings])


def sampled(x: Experiment, seed: int, gammas: Sequence[float], samples: int) -> TrainedMethod:
    "HyperLDM, with the γ that does best."
    return best_method(x, seed, [({"gamma": γ}, hyperldm(x, seed, "hvae", γ, samples)) for γ in gammas])


def labelled(tasks: Sequence[Task]) -> TaskSet:
    "Questions with forty labelled training pictures of every answer, in order: what no method of the comparison sees."
    digits, found = digit_pictures()[1], []
    for task in tasks:
        answer = {int(digits[int(i)]): label for i, label in task.query}
        rows, labels = [], []
        for label in range(len(task.answers)):
            own = [picture_parts()["train"][digit] for digit, given in sorted(answer.items()) if given == label]
            for i in range(EACH["train"]):
                rows.append(int(own[i % len(own)][i // len(own)]))
                labels.append(label)
        found.append(TensorTask(task.question, task.answers, rows, labels))
    return TaskSet.from_tensors(digit_pictures()[0], found, embed_question=hashed_question)


def from_labels(x: Experiment, seed: int, decode: bool) -> Tensor:  # [T] percent on test pictures
    "Test tasks fine-tuned as the training tasks are, on the same pictures; `decode`: seen through the HVAE's latent."
    tasks = labelled(x.sets["test"].tasks)
    seen = draw_views(tasks, 1, x.recipe.hvae_fraction, seed=seed)
    weights = finetune(x.multitask(seed), tasks, x.recipe.finetuned, seen, seed=seed)[0]
    if decode:
        with torch.no_grad():
            weights = x.hvae(seed)(x.hvae(seed).encode(weights)[0])
    return x.scores(weights)


def options(job: Job, row: str, folder: Path) -> list[dict[str, Any]]:
    "What is tried on validation questions, or what was chosen there by another job."
    if row == THEIRS:
        every = [{"hidden": hidden, "lr": lr} for hidden, lr in product(WIDTHS, RATES)]
    elif row in WIDE:
        every = [{"hidden": hidden} for hidden in WIDTHS]
    elif row.startswith("hvae_hyperldm"):
        every = [{"length": length} for length in LENGTHS]
    else:
        return [{}]
    if job.seed:
        return [record(Job(job.count, 0, job.effort), row, folder)["chosen"]]
    before = None
    if job.effort == 2:
        before = Job(job.count, 0)
    elif row.startswith("hvae_hyperldm") and job.count == COUNTS[-1]:
        before = Job(COUNTS[-2], 0)
    elif row == OURS:  # ten samples: as one
        before = job
    if before is not None:
        chosen = record(before, row.removesuffix("@10"), folder)["chosen"]
        return [{name: chosen[name] for name in every[0]}]
    return every


def made(x: Experiment, seed: int, row: str, option: dict[str, Any]) -> TrainedMethod:
    "The method of a row; what costs no training is chosen here."
    if row == "latent_regression":
        return kernel(x, seed)
    if row.startswith("hvae_hyperldm"):
        return sampled(x, seed, [option["gamma"]] if "gamma" in option else GAMMAS, 10 if row == OURS else 1)
    return train_method(x, seed, row)


def measured(job: Job, row: str, folder: Path) -> dict[str, Any]:
    "Train what a row needs, choose, and score it."
    base, seed, extra = opened(job.count, job.seed, folder), job.seed, dict[str, Any]()
    tried, choosing = list[tuple[float, dict, dict, Experiment, TrainedMethod]](), 0.0
    for option in [{}] if row in WITH_LABELS else options(job, row, folder):
        x = with_recipe(base, job.recipe(**{k: v for k, v in option.items() if k in ("hidden", "lr", "length")}))
        spent, chosen = trained(x, seed, row), option
        if row not in WITH_LABELS:
            began = time.process_time()
            method = made(x, seed, row, option)
            percent = score(x, method, seed, "val").mean().item()
            choosing += time.process_time() - began
            tried.append((percent, {**option, **method.chosen}, spent, x, method))
    began = time.process_time()
    if row in WITH_LABELS:
        found = {"accuracy": from_labels(x, seed, row == "decoded")}
    else:
        validation, chosen, spent, x, method = max(tried, key=lambda one: one[0])
        extra = {"tried": [{**settings, "validation": round(percent, 2)} for percent, settings, *_ in tried]}
        extra |= {"validation": round(validation, 3), "choosing_s": choosing}
        temperature, _ = on_validation(x, method, seed)
        scored = measure(x, method, seed, temperature=temperature)
        found = {"accuracy": scored.accuracy, "nll": scored.raw.nll, "nll_tempered": scored.tempered.nll}
        if row not in ("multitask", OURS):
            (others,) = shuffled_questions(x, seed, times=1)
            found["shuffled"] = score(x, method, seed, questions=others)
    return {
        "count": job.count,
        "seed": seed,
        "effort": job.effort,
        "row": row,
        "settings": settings_of(job, row),
        "chosen": chosen,
        "parts_s": spent,
        **extra,
        "scored_s": time.process_time() - began,
        **{name: [round(value, 4) for value in values.tolist()] for name, values in found.items()},
    }


def settings_of(job: Job, row: str) -> str:
    "What decides a row's numbers, apart from the code."
    plain = {"count": job.count, "seed": job.seed, "row": row, "recipe": to_kept(job.recipe())}
    if row == "latent_regression":
        plain["kernels"] = KERNELS, FEW_KERNELS
    if row in WIDE:
        plain["widths"] = WIDTHS
    if row == THEIRS:
        plain["rates"] = RATES
    return fingerprint({**plain, "lengths": LENGTHS, "gammas": GAMMAS})


def place_of(job: Job, row: str, folder: Path) -> Path:
    return folder / "records" / f"{job.count}-{job.seed}-x{job.effort}-{row.replace('~', '-')}.json"


def on_file(job: Job, row: str, folder: Path) -> dict[str, Any] | None:
    "A row that was measured before with the same settings."
    if not (place := place_of(job, row, folder)).exists():
        return None
    kept = json.loads(place.read_text())
    return kept if kept["settings"] == settings_of(job, row) else None


def record(job: Job, row: str, folder: Path) -> dict[str, Any]:
    "A row, measured now or before."
    if (kept := on_file(job, row, folder)) is None:
        kept = measured(job, row, folder)
        place = place_of(job, row, folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, kept)
        percent, spent = sum(kept["accuracy"]) / len(kept["accuracy"]), kept["scored_s"]
        print(f"{job}: {row} {percent:.1f} % {kept['chosen']} {spent:.0f} s to choose and score", flush=True)
    return kept


# ---- the table ----


def crossing(differences: dict[int, Tensor]) -> dict[str, Any] | None:  # count -> [B] means of a difference
    "Where a difference changes its sign for the last time, by interpolation over the logarithm of the count."
    counts = sorted(differences)
    if len(counts) < 2:
        return None
    x = torch.tensor([math.log10(count) for count in counts], dtype=torch.float64)
    y = torch.stack([differences[count] for count in counts], 1)  # [B, N]
    place = torch.full((len(y),), math.nan, dtype=torch.float64)
    for i in range(len(counts) - 1):  # the last change wins
        here = (y[:, i] > 0) != (y[:, i + 1] > 0)
        share = y[here, i] / (y[here, i] - y[here, i + 1])
        place[here] = x[i] + share * (x[i + 1] - x[i])
    share_of = lambda wanted: round(wanted.double().mean().item(), 3)
    found = {"crosses": share_of(~place.isnan()), "above_at_the_end": share_of(y[:, -1] > 0)}
    found |= {"always_above": share_of((y > 0).all(1)), "always_below": share_of((y <= 0).all(1))}
    if found["crosses"] > 0.5:
        ends = torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)
        low, middle, high = (10 ** place[~place.isnan()].quantile(ends)).tolist()
        found |= {"at": round(middle), "ci95": [round(low), round(high)]}
    return found


def tabulated(folder: Path) -> dict[str, Any]:
    "All that is there, with intervals over cells and seeds."
    turns = in_turn()
    kept = {(job, row): one for job, row in turns if (one := on_file(job, row, folder))}
    left = [turn for turn in turns if turn not in kept]
    missing = [f"{job.count:,} tasks, seed {job.seed}, effort {job.effort}: {ROWS[row]}" for job, row in left]
    cells = [task.cell for task in digits_tasks(400, split="test")]
    draws: dict[int, Bootstrap] = {}

    def bootstrap(seeds: int) -> Bootstrap:  # the same resampled cells for all rows and counts
        return draws.setdefault(seeds, Bootstrap(len(cells), seeds, groups=cells))

    def scores(count: int, effort: int, row: str) -> dict[int, Tensor]:  # seed -> [T]
        return {
            job.seed: torch.tensor(one["accuracy"], dtype=torch.float64)
            for (job, r), one in kept.items()
            if (job.count, job.effort, r) == (count, effort, row)
        }

    def gap(mine: dict[int, Tensor], theirs: dict[int, Tensor]) -> Tensor | None:  # [S, T] of common seeds
        seeds = [seed for seed in mine if seed in theirs]
        return torch.stack([mine[seed] - theirs[seed] for seed in seeds]) if seeds else None

    rounded = lambda pair: [round(end, 3) for end in pair]
    rows = []
    for count, effort, row in product(COUNTS, (1, 2), ROWS):
        if not (mine := scores(count, effort, row)):
            continue
        own = [one for (job, r), one in kept.items() if (job.count, job.effort, r) == (count, effort, row)]
        values, seconds = torch.stack([*mine.values()]), [[*one["parts_s"].values()] for one in own]
        known = [sum(some) for some in seconds if None not in some]
        means = lambda name: [sum(one[name]) / len(one[name]) for one in own if name in one]
        average = lambda numbers, digits=3: round(sum(numbers) / len(numbers), digits) if numbers else None
        versus = {}
        for other, of in (("multitask", 1), (THEIRS, effort), (THEIRS, 2), ("latent_regression", effort)):
            if (other, of) != (row, effort) and (d := gap(mine, scores(count, of, other))) is not None:
                ends = bootstrap(len(d)).interval(d)
                name = other if of == effort or other == "multitask" else f"{other} x{of}"
                versus[name] = {"diff": round(d.mean().item(), 3), "ci95": rounded(ends), "seeds": len(d)}
        rows.append(
            {
                "count": count,
                "effort": effort,
                "row": row,
                "label": ROWS[row],
                "seeds": [*mine],
                "accuracy": round(values.mean().item(), 3),
                "of_seeds": rounded(values.mean(1).tolist()),
                "ci95": rounded(bootstrap(len(values)).interval(values)),
                "validation": average([one["validation"] for one in own if "validation" in one]),
                "shuffled": average(means("shuffled")),
                "nll": average(means("nll"), 4),
                "nll_tempered": average(means("nll_tempered"), 4),
                "chosen": [one["chosen"] for one in own],
                "tried": own[0].get("tried", []),  # with the first seed
                "training_s": average(known, 1),
                "parts_s": {
                    part: average([o["parts_s"][part] for o in own if o["parts_s"][part]], 1)
                    for part in own[0]["parts_s"]
                },
                "choosing_s": average([one["choosing_s"] for one in own if "choosing_s" in one], 1),
                "vs": versus,
            }
        )
    crossings = {}
    for effort, (a, b) in product((1, 2), ((OURS, THEIRS), ("latent_regression", THEIRS), ("mlp_regression", THEIRS))):
        of = {count: gap(scores(count, effort, a), scores(count, effort, b)) for count in COUNTS}
        means = {count: bootstrap(len(d)).means(d) for count, d in of.items() if d is not None}
        if at := crossing(means):
            crossings[f"{a} - {b}, effort {effort}"] = {"counts": [*means], **at}
    steps = {
        effort: {
            "multitask": DIGITS.multitask.steps,
            "cond_multitask": r.conditional.steps,
            "hvae": r.hvae_training.steps,
            "hvae_hyperldm": [effort * length for length in LENGTHS],
            "mlp_regression": r.mlp_regression.steps,
            "hvae_hyperclip": r.hyperclip_training.steps,
        }
        for effort in (1, 2)
        for r in [Job(COUNTS[0], 0, effort).recipe()]
    }
    return {
        "questions": len(cells),
        "cells": len({*cells}),
        "counts": [*COUNTS],
        "steps": steps,
        "rows": rows,
        "crossings": crossings,
        "missing": missing,
    }


def markdown(table: dict[str, Any]) -> str:
    "Accuracies, differences and seconds."
    by = {(row["count"], row["effort"], row["row"]): row for row in table["rows"]}
    head = ["Training tasks", *(f"{count:,}" for count in COUNTS)]

    def lines(text: Callable[[dict], str]) -> list[list[str]]:
        return [
            [f"{ROWS[row]}{', twice the steps' if effort == 2 else ''}", *cells]
            for effort, row in product((1, 2), ROWS)
            if any(cells := [text(by[key]) if (key := (c, effort, row)) in by else "" for c in COUNTS])
        ]

    def against(other: str) -> Callable[[dict], str]:
        def text(row: dict) -> str:
            if (found := row["vs"].get(other)) is None:
                return ""
            number = plain(found["diff"], tuple(found["ci95"]), "+")
            return f"**{number}**" if found["ci95"][0] * found["ci95"][1] > 0 else number

        return text

    seeds = {count: sorted({len(row["seeds"]) for row in table["rows"] if row["count"] == count}) for count in COUNTS}
    told = "; ".join(f"{count:,} tasks: {' or '.join(map(str, found)) or 'none'}" for count, found in seeds.items())
    sections = {
        "Accuracy": lines(lambda row: plain(row["accuracy"], tuple(row["ci95"]))),
        "Difference from the conditional network of the same effort": lines(against(THEIRS)),
        "Difference from the conditional network with twice the steps": lines(against(f"{THEIRS} x2")),
        "Difference from kernel regression of the same effort": lines(against("latent_regression")),
        "With shuffled questions": lines(lambda row: "" if row["shuffled"] is None else f"{row['shuffled']:.1f}"),
        "NLL with one temperature": lines(
            lambda row: "" if row["nll_tempered"] is None else f"{row['nll_tempered']:.3f}"
        ),
        "Training, processor seconds, all parts": lines(
            lambda row: "" if row["training_s"] is None else f"{row['training_s']:.0f}"
        ),
    }
    note = (
        f"{table['questions']} held-out questions in {table['cells']} cells, the same for every number of tasks. "
        "Percent, means over seeds, in brackets 95 % intervals over cells and seeds (one seed: over cells only). "
        f"Seeds: {told}. Bold: the interval lies on one side of zero. Rows below HyperCLIP see labelled pictures of "
        "the question's own task: they say what a better reading of the words could reach, and are no methods of the "
        "comparison."
    )
    missing = "\n".join(f"- {text}" for text in table["missing"]) or "Nothing."
    text = f"# What more training tasks bring\n\n{note}\n"
    for title, rows in sections.items():
        text += f"\n## {title}\n\n{markdown_table(head, rows)}" if rows else ""
    return f"{text}\n## Not measured\n\n{missing}\n"


def write(folder: Path) -> None:
    table = tabulated(folder)
    write_json(RESULTS / "scaling.json", table)
    write_atomic(RESULTS / "scaling.md", markdown(table).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no row is begun after so many")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="which; default: all")
    parser.add_argument("--table", action="store_true", help="write the table only")
    parser.add_argument("--out", type=Path, help="the directory of all runs; default: runs/scaling under the data")
    options = parser.parse_args()
    folder, began = options.out or run_dir("scaling"), time.monotonic()
    late = lambda: time.monotonic() - began > 60 * options.minutes
    wanted = [] if options.table else [turn for turn in in_turn() if turn[0].seed in options.seeds]
    for job, turns in groupby(wanted, key=lambda turn: turn[0]):
        missing = [row for _, row in turns if on_file(job, row, folder) is None]
        for row in missing:
            if not late():
                record(job, row, folder)
        if missing and not late():
            write(folder)
    write(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
