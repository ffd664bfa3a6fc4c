"""Where generation could pay: descriptions that leave something open, a few labels, and questions that make no sense.

    python benchmarks/ambiguity.py                # all jobs, in order of their worth; killed, it goes on where it was
    python benchmarks/ambiguity.py --minutes 30   # begins no job after that
    python benchmarks/ambiguity.py --seeds 1 2    # of these seeds only
    python benchmarks/ambiguity.py --table        # trains nothing: results/ambiguity.json and .md from what is there

In a question that names digits one by one, a digit is replaced by "another digit": "Is it 3, another digit or 8?".
Every training question of these families is given in both forms, so that what reads questions learns what is left open.
Multitask and HVAE are those of `benchmarks/scaling.py`, trained once and found by either script. Then labels of the
task come in, 0 to 10 of them as they come, and every method uses them in its own way: networks drawn from a question
are weighted by a power of the likelihood of the labels; a single network is adapted by gradient steps, on its weights
or on its latent. Powers, rates, numbers of steps and widths of draws are chosen on validation questions, for every
number of labels; hidden layers of all networks, and the rate of the conditional one, once (of two, and of two by two).
Three draws of labels are averaged on test questions.

Beside that: which allowed completions the drawn networks implement; whether asking for the label of the picture that
the networks disagree most about is better than a random one; whether disagreement tells wrong answers, and questions
whose words were shuffled or that are about something else."""

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from scaling import RATES, RESULTS, WIDTHS, opened, trained
from torch import Tensor, nn

from hyperclip_nb.core.files import fingerprint, write_atomic, write_json
from hyperclip_nb.core.runs import checkpointed, run_dir
from hyperclip_nb.core.seeds import noise_like, seeded
from hyperclip_nb.dataset.batches import TaskBatch, TaskSet
from hyperclip_nb.dataset.digits import digit_pictures, digits_tasks, hashed_question, picture_parts, words_of
from hyperclip_nb.dataset.tensors import TensorTask
from hyperclip_nb.evaluation import trainings
from hyperclip_nb.evaluation.digits import DIGITS
from hyperclip_nb.evaluation.experiment import Experiment
from hyperclip_nb.evaluation.learners import POWERS, likelihood
from hyperclip_nb.evaluation.methods import dropout_drawn
from hyperclip_nb.evaluation.overrides import override
from hyperclip_nb.evaluation.parts import Training
from hyperclip_nb.evaluation.recipe import Recipe, to_kept
from hyperclip_nb.evaluation.results import markdown_table, plain
from hyperclip_nb.evaluation.statistics import Bootstrap, ensemble
from hyperclip_nb.hypernet.hypernetworks import WeightGenerator
from hyperclip_nb.hypernet.metatrain import Adaptation, adaptation_path

COUNTS, SEEDS = (1_000, 3_000), range(5)
SHOTS = (0, 1, 3, 10)  # labels
SAMPLES = 64  # networks drawn for a question
DRAWS = 3  # of labels, on test questions
STEPS = (0, 1, 2, 4, 8, 16, 32)
NAMES = {
    "hyperldm": "HyperLDM, 64 samples weighted by the labels",
    "gaussian": "Gaussian around the perceptron's latent, weighted",
    "stored": "Stored latents of similar questions, weighted",
    "conditional": "Conditional network and gradient steps",
    "regression": "Perceptron to the latent and latent steps",
    "task_regression": "The same, trained for the task's loss",
}
DRAWN = ("hyperldm", "gaussian", "stored")


# ---- questions ----


def table_of(task: TensorTask) -> tuple[int, ...]:  # [10] answer of each digit, -1: not asked about
    given = dict(zip(digit_pictures()[1][torch.as_tensor(task.rows)].tolist(), torch.as_tensor(task.labels).tolist()))
    return tuple(given.get(digit, -1) for digit in range(10))


@dataclass(frozen=True)
class Open:
    "A task whose question leaves a digit open."

    task: TensorTask  # with its question in that form
    named: frozenset[int]  # digits that the question names
    digit: int  # which one is no longer named

    def completions(self) -> dict[int, tuple[int, ...]]:  # the other digit -> answer of each digit
        "All functions that the question allows: any digit that it does not name may be the other one."
        table, found = table_of(self.task), {}
        for digit in {*range(10)} - (self.named - {self.digit}):
            swapped = [*table]
            swapped[digit], swapped[self.digit] = table[self.digit], table[digit]
            found[digit] = tuple(swapped)
        return found


def left_open(task: TensorTask) -> Open | None:  # None: its question names fewer than two digits one by one
    numbers = [*re.finditer(r"\d", task.question)]
    if task.family not in ("member", "choice", "groups") or len(numbers) < 2:
        return None
    one = Random(task.question).choice(numbers)
    question = f"{task.question[: one.start()]}another digit{task.question[one.end() :]}"
    return Open(replace(task, question=question), frozenset(int(n[0]) for n in numbers), int(one[0]))


@dataclass(frozen=True)
class Asked:
    "Questions, their tasks, and what networks read."

    tasks: TaskSet
    e: Tensor  # [T, D]


def asked(x: Experiment, tasks: Sequence[TensorTask]) -> Asked:
    made = TaskSet.from_tensors(digit_pictures()[0], tasks, embed_question=hashed_question)
    return Asked(made, embedded(x, [task.question for task in tasks]))


def embedded(x: Experiment, questions: Sequence[str]) -> Tensor:  # [T, D]
    return x.embedding({"text": torch.stack([hashed_question(question) for question in questions])})


# ---- what is trained, on both forms of the questions ----


@dataclass(frozen=True)
class Trained:
    conditional: Any
    regression: Any
    task_regression: Any
    ldm: Any
    latents: Tensor  # [T, Z] of the training tasks in both forms
    e: Tensor  # [T, D]


def trained_on_both(x: Experiment, seed: int, val: Asked) -> Trained:
    whole = digits_tasks(len(x.sets["train"]), seed)
    some = [(i, found.task) for i, task in enumerate(whole) if (found := left_open(task))]
    train, ids = asked(x, [*whole, *(task for _, task in some)]), torch.tensor([i for i, _ in some])
    latents = x.latents("hvae", seed)
    latents = torch.cat([latents, latents[:, ids]], 1)
    settings = {"data": x.parts.data, "seed": seed, "recipe": to_kept(x.recipe), "study": "ambiguity 2"}

    def kept(name: str, training: Training, option: dict[str, Any]) -> nn.Module:
        name, own = f"ambiguity/{name}-{seed}", {**settings, "option": option}

        def build() -> dict[str, Tensor]:
            for _ in checkpointed(training.steps(), x.run.checkpoint(name), own):
                pass
            return training.model.state_dict()

        training.model.load_state_dict(x.run.part(name, own, build))
        print(name, flush=True)
        return training.model.eval().requires_grad_(False)

    pair, on, start, hvae = (train.tasks, train.e), (val.tasks, val.e), x.multitask(seed).z0, x.hvae(seed)
    query = val.tasks.batch(val.tasks.all_ids, "query")

    def best(
        name: str,
        train_it: Callable[[Recipe], Training],
        generate: Callable[[Tensor], Tensor],
        options: Sequence[dict[str, Any]],
    ) -> nn.Module:
        "The one that does best on validation questions."
        models = [kept(f"{name}-{i}", train_it(override(x.recipe, option)), option) for i, option in enumerate(options)]
        with torch.no_grad():
            scores = [right(x.net.logits(generate(model(val.e)), query), query).mean() for model in models]
        return models[int(torch.stack(scores).argmax())]

    regression = lambda loss: lambda r: trainings.mlp_regression(loss, hvae, latents, pair, on, r, seed)
    perceptrons = [{"mlp_hidden": hidden} for hidden in WIDTHS]
    ldm, diffusion = trainings.hyperldm(latents, train.e, x.recipe, seed)
    kept("hyperldm", diffusion, {})
    return Trained(
        best(
            "conditional",
            lambda r: trainings.conditional("cond_multitask", x.net, pair, on, start, r, seed),
            lambda weights: weights,
            [{"conditional_hidden": h, "conditional.lr": lr} for h, lr in product(WIDTHS, RATES[:2])],
        ),
        best("regression", regression("latent"), hvae, perceptrons),
        best("task_regression", regression("task"), hvae, perceptrons),
        ldm,
        latents.mean(0),
        train.e,
    )


# ---- networks drawn from questions ----


def draws(x: Experiment, seed: int, t: Trained, name: str, on: Asked) -> Iterator[tuple[dict, Tensor]]:  # [K, T, Z]
    "Latents, for every setting that there is to choose from."
    noise = lambda: seeded(seed, "ambiguity", name, len(on.e))
    if name == "hyperldm":
        yield {}, t.ldm.generate(on.e, generator=noise(), samples=SAMPLES, clamp=x.recipe.clamp, variance="beta")
    elif name == "gaussian":
        error = (t.latents - t.regression(t.e)).double()
        covariance = error.T @ error / len(error)
        floor = 1e-4 * covariance.diagonal().mean() * torch.eye(len(covariance)).double()
        root = torch.linalg.cholesky(covariance + floor).float()
        mean = t.regression(on.e).expand(SAMPLES, -1, -1)
        for scale in (0.5, 1.0, 2.0):
            yield {"scale": scale}, mean + scale * noise_like(mean, noise()) @ root.T
    else:
        far = torch.cdist(on.e, t.e).square() / t.e.shape[1]
        for width in (0.05, 0.1, 0.2):
            drawn = torch.multinomial((-far / width).softmax(1), SAMPLES, replacement=True, generator=noise())
            yield {"width": width}, t.latents[drawn.T]


def log_probs(x: Experiment, generate: WeightGenerator, z: Tensor, batch: TaskBatch) -> Tensor:  # [K, T, N, C]
    "What the networks of latents answer."
    with torch.no_grad():
        return torch.stack([x.net.logits(generate(one), batch).log_softmax(-1) for one in z])


def right(log_p: Tensor, batch: TaskBatch) -> Tensor:  # [T, N, C] -> [T] percent
    hits = (log_p.argmax(-1) == batch.labels) & batch.mask
    return 100 * hits.sum(1).double() / batch.mask.sum(1)


def mixture(log_p: Tensor, nats: Tensor) -> Tensor:  # [K, T, N, C], [K, T] -> [T, N, C]
    return (log_p + nats.log_softmax(0)[..., None, None]).logsumexp(0)


def some_of(batch: TaskBatch, order: Tensor) -> TaskBatch:  # order [T, L] places; masked where a task has fewer
    rows = torch.arange(len(order))[:, None]
    labels, mask = batch.labels[rows, order], batch.mask[rows, order]
    return replace(batch, images=batch.images[rows, order], labels=labels, mask=mask)


def random_order(batch: TaskBatch, *seed: Any) -> Tensor:  # [T, N] places in random order, padded ones last
    keys = torch.rand(batch.mask.shape, generator=seeded(*seed))
    return keys.masked_fill(~batch.mask, 2.0).argsort(1)


def disagreement(log_p: Tensor, log_share: Tensor | None = None) -> Tensor:  # [K, T, N, C], [K, T] -> [T, N] nats
    "How much the label would say about which network it is: the entropy of the mean less the mean of the entropies."
    entropy = lambda lp: -(lp.exp() * lp.clamp(min=-50)).sum(-1)
    share = torch.full(log_p.shape[:2], -math.log(len(log_p))) if log_share is None else log_share
    mean = (log_p + share[..., None, None]).logsumexp(0)
    return entropy(mean) - (share.exp()[..., None] * entropy(log_p)).sum(0)


def chosen_order(log_p: Tensor, batch: TaskBatch, count: int, power: float) -> Tensor:  # [T, L]
    "Ask for the label of the picture that the networks disagree most about, again and again."
    nats, free, order = torch.zeros(log_p.shape[:2]), batch.mask.clone(), []
    for _ in range(count):
        gain = disagreement(log_p, (power * nats).log_softmax(0)).masked_fill(~free, -1)
        place = gain.argmax(1)
        free[torch.arange(len(free)), place] = False
        order.append(place)
        one = log_p[:, torch.arange(len(free)), place]  # [K, T, C]
        label = batch.labels[torch.arange(len(free)), place]
        nats = nats + one.gather(-1, label.expand(len(one), -1)[..., None])[..., 0]
    return torch.stack(order, 1)


# ---- one job ----


def by_draws(x: Experiment, seed: int, t: Trained, name: str, val: Asked, test: Asked, shown: list[Open]) -> dict:
    "Networks drawn from questions, weighted by labels that come at random or are asked for."
    generate, found, tried = x.hvae(seed), {}, []
    parts = {
        side: [a.tasks.batch(a.tasks.all_ids, part) for part in ("support", "query")]
        for side, a in (("val", val), ("test", test))
    }
    for settings, z in draws(x, seed, t, name, val):
        tried.append((settings, *(log_probs(x, generate, z, batch) for batch in parts["val"])))
    held: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # settings -> latents and what is answered on test pictures

    def on_test(settings: dict) -> tuple[Tensor, Tensor, Tensor]:
        if (key := json.dumps(settings)) not in held:
            z = next(z for own, z in draws(x, seed, t, name, test) if own == settings)
            held[key] = z, *(log_probs(x, generate, z, batch) for batch in parts["test"])
        return held[key]

    def percent(support: Tensor, query: Tensor, side: str, order: Tensor, power: float) -> Tensor:
        rows = torch.arange(len(order))[:, None]
        nats = power * likelihood(support[:, rows, order], some_of(parts[side][0], order))
        return right(mixture(query, nats), parts[side][1])

    for n, how in product(SHOTS, ("random", "asked")):
        if how == "asked" and not n:
            continue

        def scored(support: Tensor, query: Tensor, side: str, power: float, draw: int) -> Tensor:
            batch = parts[side][0]
            if how == "asked":
                return percent(support, query, side, chosen_order(support, batch, n, power), power)
            return percent(support, query, side, random_order(batch, seed, "labels", side, draw)[:, :n], power)

        options = [(settings, power) for settings, *_ in tried for power in (POWERS if n else (1.0,))]
        values = [scored(s, q, "val", power, 0).mean() for _, s, q in tried for power in (POWERS if n else (1.0,))]
        settings, power = options[int(torch.stack(values).argmax())]
        _, support, query = on_test(settings)
        several = [scored(support, query, "test", power, draw) for draw in range(DRAWS if n and how == "random" else 1)]
        key = f"{name}/{n}" if how == "random" else f"{name} asked/{n}"
        found[key] = torch.stack(several).mean(0)
        found[f"chosen {key}"] = {**settings, **({"power": power} if n else {})}
    found["modes"] = modes(x, generate, on_test(found[f"chosen {name}/0"])[0], shown)
    return found


def modes(x: Experiment, generate: WeightGenerator, z: Tensor, shown: list[Open]) -> dict[str, Any]:
    "Which functions the drawn networks compute, on validation pictures: is it one that the question allows?"
    rows = picture_parts()["val"]
    pictures = digit_pictures()[0][torch.cat(rows)]
    sizes = [len(own) for own in rows]
    valid, distinct, allowed, truth, drawn = [], [], [], [], []
    for i, one in enumerate(shown):
        if one.task.family == "choice":  # asks nothing about other digits, so it has no table to compare with
            continue
        with torch.no_grad():
            w = generate(z[:, i])
            logits = x.net.functional(x.net.split(w), pictures.expand(len(w), -1, -1))[..., : len(one.task.answers)]
        shares = torch.stack([some.mean(1) for some in logits.softmax(-1).split(sizes, 1)], 1)  # [K, 10, C]
        tables, may = [tuple(row) for row in shares.argmax(-1).tolist()], one.completions()
        counts = {digit: tables.count(table) for digit, table in may.items()}
        valid.append(sum(counts.values()) / len(tables))
        distinct.append(sum(count > 0 for count in counts.values()))
        allowed.append(len(may))
        truth.append(counts[one.digit] / len(tables))
        told = {str(digit): count for digit, count in sorted(counts.items())}
        drawn.append({"question": one.task.question, "family": one.task.family, "meant": one.digit, "counts": told})
    mean = lambda values: round(sum(values) / len(values), 4)
    return {
        "questions": len(valid),
        "valid": mean(valid),
        "distinct": mean(distinct),
        "allowed": mean(allowed),
        "truth": mean(truth),
        "drawn": drawn[:24],
    }


def by_steps(x: Experiment, seed: int, t: Trained, name: str, val: Asked, test: Asked) -> dict:
    "A network from the question, adapted to the labels."
    model = getattr(t, name)
    generate: WeightGenerator = x.multitask(seed) if name == "conditional" else x.hvae(seed)
    rates = (0.001, 0.003, 0.01) if name == "conditional" else (0.03, 0.1, 0.3)
    found: dict[str, Any] = {}

    def scored(on: Asked, n: int, rate: float, side: str, draw: int, places: Sequence[int]) -> dict[int, Tensor]:
        support, query = (on.tasks.batch(on.tasks.all_ids, part) for part in ("support", "query"))
        batch = some_of(support, random_order(support, seed, "labels", side, draw)[:, :n])
        with torch.no_grad():
            start = model(on.e)
        path: Iterable[Tensor] = [start]
        if n and max(places):
            how = Adaptation(steps=max(places), lr=rate, optimizer="adam")
            path = adaptation_path(generate, start, batch, how)
        out = {}
        for k, z in enumerate(path):
            if k in places:
                with torch.no_grad():
                    out[k] = right(x.net.logits(generate(z), query).log_softmax(-1), query)
        return out

    for n in SHOTS:
        tried = {
            (rate, k): value.mean()
            for rate in (rates if n else rates[:1])
            for k, value in scored(val, n, rate, "val", 0, STEPS).items()
        }
        rate, k = max(tried, key=lambda key: tried[key])
        several = [scored(test, n, rate, "test", draw, (k,))[k] for draw in range(DRAWS if n else 1)]
        found[f"{name}/{n}"] = torch.stack(several).mean(0)
        found[f"chosen {name}/{n}"] = {"rate": rate, "steps": k} if n else {}
    return found


def auroc(score: Tensor, positive: Tensor) -> float:  # [N], [N] bool
    "The probability that a positive one has the higher score, ties counting half."
    values, inverse, counts = score.double().unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # mean rank of equals
    n, m = int(positive.sum()), int((~positive).sum())
    return ((rank[positive].sum() - n * (n + 1) / 2) / (n * m)).item()


FOREIGN = [
    f"{start} {thing}?"
    for start in (
        "What colour is",
        "How heavy is",
        "Who painted",
        "Where did you buy",
        "Is it raining on",
        "Why do they call it",
    )
    for thing in (
        "the car",
        "my old house",
        "a cat",
        "that bridge",
        "the blue chair",
        "his violin",
        "this soup",
        "the moon",
    )
]


def detection(x: Experiment, seed: int, t: Trained, test: Asked) -> dict[str, float]:
    "Does disagreement tell wrong answers, and questions that can't be understood?"
    query, generate = test.tasks.batch(test.tasks.all_ids, "query"), x.hvae(seed)
    questions, r = [task.question for task in test.tasks.tasks], Random(0)
    mixed = [" ".join(r.sample(words, len(words))) for words in map(words_of, questions)]
    sets = {
        "": questions,
        "shuffled words": mixed,
        "another matter": [FOREIGN[i % len(FOREIGN)] for i in range(len(questions))],
    }
    scores: dict[str, dict[str, Tensor]] = {}  # of a question: name -> [T]
    wrong: dict[str, float] = {}
    entropy = lambda lp: -(lp.exp() * lp.clamp(min=-50)).sum(-1)
    per_question = lambda value: (value * query.mask).sum(1) / query.mask.sum(1)
    for kind, texts in sets.items():
        e = embedded(x, texts)
        noise = seeded(seed, "detection", kind)
        z = t.ldm.generate(e, generator=noise, samples=10, clamp=x.recipe.clamp, variance="beta")
        with torch.no_grad():
            single = x.net.logits(t.conditional(e), query).log_softmax(-1)
            with dropout_drawn(t.conditional, noise, e.device):
                passes = torch.stack([x.net.logits(t.conditional(e), query).log_softmax(-1) for _ in range(10)])
            path = x.net.logits(generate(t.regression(e)), query).log_softmax(-1)
        ten = log_probs(x, generate, z, query)
        mean = ensemble(ten, cosine=False)
        values = {
            "disagreement of HyperLDM's ten samples": disagreement(ten),
            "entropy of their mean": entropy(mean),
            "disagreement of ten dropout passes": disagreement(passes),
            "entropy of the conditional network": entropy(single),
            "entropy of the perceptron's network": entropy(path),
        }
        scores[kind] = {name: per_question(value) for name, value in values.items()}
        scores[kind]["distance to the nearest training question"] = torch.cdist(e, t.e).amin(1)
        if not kind:
            for target, log_p in ("HyperLDM", mean), ("conditional", single):
                miss = ((log_p.argmax(-1) != query.labels) & query.mask)[query.mask]
                wrong |= {f"{target}: {name}": auroc(value[query.mask], miss) for name, value in values.items()}
            poor = {"HyperLDM": right(mean, query), "conditional": right(single, query)}
    found = {f"wrong answers of {name}": value for name, value in wrong.items()}
    for target, percent in poor.items():
        low = percent <= percent.quantile(0.25)
        found |= {f"worst quarter of questions, {target}: {n}": auroc(v, low) for n, v in scores[""].items()}
    for kind in ("shuffled words", "another matter"):
        other = torch.cat([torch.zeros(len(questions)), torch.ones(len(questions))]).bool()
        found |= {f"{kind}: {n}": auroc(torch.cat([v, scores[kind][n]]), other) for n, v in scores[""].items()}
    return {name: round(value, 4) for name, value in found.items()}


def settings_of(count: int, seed: int) -> str:
    told = {
        "count": count,
        "seed": seed,
        "recipe": to_kept(DIGITS),
        "samples": SAMPLES,
        "shots": SHOTS,
        "widths": WIDTHS,
        "rates": RATES[:2],
        "version": 3,
    }
    return fingerprint(told)


def measured(count: int, seed: int, folder: Path) -> dict[str, Any]:
    began, x = time.process_time(), opened(count, seed, folder)
    trained(x, seed, "latent_regression")
    shown = {
        split: [found for task in digits_tasks(size, 0, split) if (found := left_open(task))]
        for split, size in (("val", 200), ("test", 400))
    }
    val, test = (asked(x, [one.task for one in shown[split]]) for split in ("val", "test"))
    t = trained_on_both(x, seed, val)
    spent = {"training_s": time.process_time() - began}
    scores: dict[str, Any] = {}
    for name in NAMES:
        found = (
            by_draws(x, seed, t, name, val, test, shown["test"])
            if name in DRAWN
            else by_steps(x, seed, t, name, val, test)
        )
        if "modes" in found:
            scores[f"modes {name}"] = found.pop("modes")
        scores |= found
        print(
            count,
            seed,
            name,
            {k: round(v.mean().item(), 1) for k, v in found.items() if isinstance(v, Tensor)},
            flush=True,
        )
    whole = asked(x, digits_tasks(400, 0, "test"))
    scores["detection"] = detection(x, seed, t, whole)
    spent["all_s"] = time.process_time() - began
    plain_of = lambda v: [round(value, 4) for value in v.tolist()] if isinstance(v, Tensor) else v
    return {
        "count": count,
        "seed": seed,
        "settings": settings_of(count, seed),
        "cells": [one.task.cell for one in shown["test"]],
        "families": [one.task.family for one in shown["test"]],
        "validation_questions": len(shown["val"]),
        **spent,
        **{key: plain_of(value) for key, value in scores.items()},
    }


def on_file(count: int, seed: int, folder: Path) -> dict[str, Any] | None:
    place = folder / "records" / f"ambiguity-{count}-{seed}.json"
    if not place.exists():
        return None
    kept = json.loads(place.read_text())
    return kept if kept["settings"] == settings_of(count, seed) else None


# ---- the table ----


def tabulated(folder: Path) -> dict[str, Any]:
    kept = {count: [one for seed in SEEDS if (one := on_file(count, seed, folder))] for count in COUNTS}
    out: dict[str, Any] = {"names": NAMES, "shots": [*SHOTS], "samples": SAMPLES, "counts": {}}
    rounded = lambda pair: [round(end, 3) for end in pair]
    for count, some in kept.items():
        if not some:
            continue
        draws = Bootstrap(len(some[0]["cells"]), len(some), groups=some[0]["cells"])
        of = lambda key: torch.tensor([one[key] for one in some], dtype=torch.float64)
        told = lambda values: {"mean": round(values.mean().item(), 3), "ci95": rounded(draws.interval(values))}
        rows = {}
        for name, n in product(NAMES, SHOTS):
            row = told(of(f"{name}/{n}"))
            if name != "hyperldm":
                row["hyperldm_minus_it"] = told(of(f"hyperldm/{n}") - of(f"{name}/{n}"))
            row["chosen"] = [one[f"chosen {name}/{n}"] for one in some]
            if name in DRAWN and n:
                row["asked"] = told(of(f"{name} asked/{n}"))
                row["asked_minus_random"] = told(of(f"{name} asked/{n}") - of(f"{name}/{n}"))
            rows[f"{name}/{n}"] = row
        average = lambda values: round(sum(values) / len(values), 4)
        out["counts"][count] = {
            "seeds": [one["seed"] for one in some],
            "questions": len(some[0]["cells"]),
            "cells": draws.cells,
            "validation_questions": some[0]["validation_questions"],
            "rows": rows,
            "modes": {
                name: {
                    k: average([one[f"modes {name}"][k] for one in some])
                    for k in ("valid", "distinct", "allowed", "truth", "questions")
                }
                for name in DRAWN
            },
            "drawn": {name: some[0][f"modes {name}"]["drawn"] for name in DRAWN},  # of the first seed
            "detection": {
                key: {
                    "mean": average([one["detection"][key] for one in some]),
                    "of_seeds": [one["detection"][key] for one in some],
                }
                for key in some[0]["detection"]
            },
            "training_s": [round(one["training_s"]) for one in some],
            "all_s": [round(one["all_s"]) for one in some],
        }
    out["missing"] = [
        f"{c} tasks, seed {s}" for c in COUNTS for s in SEEDS if s not in [one["seed"] for one in kept[c]]
    ]
    return out


def markdown(table: dict[str, Any]) -> str:
    bold = lambda found, sign="": plain(found["mean"], tuple(found["ci95"]), sign)
    marked = lambda found: f"**{bold(found, '+')}**" if found["ci95"][0] * found["ci95"][1] > 0 else bold(found, "+")
    text = "# Descriptions that leave a digit open\n"
    heads = [f"{n} label{'s' * (n != 1)}" for n in SHOTS]
    for count, found in table["counts"].items():
        rows, seeds = found["rows"], found["seeds"]
        text += (
            f"\n## {count:,} training tasks, seeds {', '.join(map(str, seeds))}\n\n"
            f"Percent on {found['questions']} test questions in {found['cells']} cells; choices on "
            f"{found['validation_questions']} validation questions.\n\n"
        )
        text += markdown_table(["", *heads], [[NAMES[m], *(bold(rows[f"{m}/{n}"]) for n in SHOTS)] for m in NAMES])
        others = [m for m in NAMES if m != "hyperldm"]
        text += "\nHyperLDM minus each; bold where the interval lies on one side of zero:\n\n" + markdown_table(
            ["", *heads], [[NAMES[m], *(marked(rows[f"{m}/{n}"]["hyperldm_minus_it"]) for n in SHOTS)] for m in others]
        )
        text += "\nAsking for the label of the picture that networks disagree most about, minus random pictures:\n\n"
        text += markdown_table(
            ["", *heads[1:]],
            [[NAMES[m], *(marked(rows[f"{m}/{n}"]["asked_minus_random"]) for n in SHOTS if n)] for m in DRAWN],
        )
        text += "\nFunctions that the drawn networks compute (questions of the families member and groups):\n\n"
        names = {
            "valid": "allowed by the question (%)",
            "truth": "the one that was meant (%)",
            "distinct": "different allowed ones among 64",
        }
        text += markdown_table(
            ["", *names.values(), "allowed"],
            [
                [
                    NAMES[m],
                    f"{100 * o['valid']:.1f}",
                    f"{100 * o['truth']:.1f}",
                    f"{o['distinct']:.2f}",
                    f"{o['allowed']:.1f}",
                ]
                for m, o in found["modes"].items()
            ],
        )
        text += "\nAUROC:\n\n" + markdown_table(
            ["", "mean over seeds"], [[key, f"{value['mean']:.3f}"] for key, value in found["detection"].items()]
        )
    missing = "\n".join(f"- {one}" for one in table["missing"]) or "Nothing."
    return f"{text}\n## Not measured\n\n{missing}\n"


def write(folder: Path) -> None:
    table = tabulated(folder)
    if table["counts"]:
        write_json(RESULTS / "ambiguity.json", table)
        write_atomic(RESULTS / "ambiguity.md", markdown(table).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no job is begun after so many")
    parser.add_argument("--seeds", type=int, nargs="*", default=[*SEEDS], help="which; default: all")
    parser.add_argument("--table", action="store_true", help="write the table only")
    parser.add_argument("--out", type=Path, help="the directory of all runs; default: runs/scaling under the data")
    options = parser.parse_args()
    folder, began = options.out or run_dir("scaling"), time.monotonic()
    for seed, count in () if options.table else product(options.seeds, COUNTS):
        if on_file(count, seed, folder) is None and time.monotonic() - began < 60 * options.minutes:
            kept = measured(count, seed, folder)
            (folder / "records").mkdir(parents=True, exist_ok=True)
            write_json(folder / "records" / f"ambiguity-{count}-{seed}.json", kept)
            write(folder)
    write(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
