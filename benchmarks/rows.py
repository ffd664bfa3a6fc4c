"""What is measured: data of the paper's scale, and for each kind of work the product's side, the plain side, and its
limit.

**The limit** of a row is the time for its floating-point operations at the fastest sgemm that `speed.py` measures on
the same core,
plus the time for the bytes that must move at the measured copy bandwidth (bytes read and written by a large copy, per
second). Counted
are, per task, two operations for each weight and example in every product that the method needs (in the base
network's backward pass
three of four: no gradient of the images), and the generator's last layer, forward, to the latent, and to its weights
where those are
trained. Bytes: the last layer read once per batch and step; in training, of every weight: the gradient written,
Adam's reading of
weight, gradient and two moments and its writing of weight and moments (eight floats). Sampling shares the first
product between the
guided and the unguided pass and applies guidance before the last layer. What is elementwise, small or random is not
counted.
"""

import copy
import functools
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import reference  # noqa: E402

from hyperclip_nb.basenet.adapter import AdapterNet, adapter_logits
from hyperclip_nb.basenet.fast.kernels import GeneratedLoss
from hyperclip_nb.basenet.fast.layers import forget_gradients
from hyperclip_nb.basenet.network import set_accuracy, task_accuracy
from hyperclip_nb.core.blocks import Standardizer
from hyperclip_nb.core.energy import Energy
from hyperclip_nb.core.seeds import own_randomness
from hyperclip_nb.core.training import TrainConfig
from hyperclip_nb.dataset.batches import Ragged, TaskSet
from hyperclip_nb.dataset.meta_vqa import load_meta_vqa
from hyperclip_nb.dataset.tasks import Task
from hyperclip_nb.diffusion.denoisers import PUBLISHED_SIZE, PublishedDenoiser
from hyperclip_nb.diffusion.hyperldm import HyperLDM, LDMConfig, train_hyperldm
from hyperclip_nb.diffusion.sampling import respaced
from hyperclip_nb.guidance.hyperclip import ContrastConfig, HyperCLIP, train_hyperclip
from hyperclip_nb.hypernet.finetune import draw_views
from hyperclip_nb.hypernet.hvae import HVAE, HVAELoss, train_hvae
from hyperclip_nb.hypernet.hypernetworks import HNet
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, fit_meta
from hyperclip_nb.hypernet.store import store_adaptations

NET, LATENT, WIDTH = AdapterNet(768, 256), 128, 128  # the paper's scale: P = 394,240
E, H, P = NET.embed, NET.hidden, NET.size


# ---- data: real sizes, random features ----


def drawn_tasks(count: int = 870) -> list[Task]:
    "Tasks whose sizes follow Meta-VQA's quantiles, for machines without its files."
    levels = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1]
    support, answers = [8, 16, 20, 29, 59, 122, 206, 481, 1242], [2, 4, 5, 7, 10, 16, 22, 47, 203]
    share = (torch.rand(2, count, generator=torch.Generator().manual_seed(0)) * 0.999).tolist()

    def quantile(values: list[int], u: float) -> int:
        i = max(k for k, level in enumerate(levels[:-1]) if level <= u)
        return int(values[i] * (values[i + 1] / values[i]) ** ((u - levels[i]) / (levels[i + 1] - levels[i])))

    tasks = []
    for t, (u, v) in enumerate(zip(*share)):
        n, c = quantile(support, u), quantile(answers, v)
        c = min(c, n // 2)
        example = lambda i: (f"{t}-{i}", i % c)
        tasks.append(
            Task(
                question=f"task {t}",
                answers=tuple(map(str, range(c))),
                prompts=tuple(f"{t} is {i}" for i in range(c)),
                support=tuple(map(example, range(n))),
                query=tuple(map(example, range(n, n + max(c, round(0.45 * n))))),
            )
        )
    return tasks


@functools.cache
def all_tasks() -> list[Task]:
    folder = os.environ.get("HYPERCLIP_META_VQA")
    if not folder:
        return drawn_tasks()
    return load_meta_vqa(folder)["train"] if (Path(folder) / "meta_train.json").exists() else drawn_tasks()


def alike(tasks: list[Task], count: int) -> list[Task]:
    "Every so-maniest task in order of size, beginning where the mean size of the choice is nearest to that of all."
    size = lambda task: len(task.support) + len(task.query)
    tasks, mean, step = sorted(tasks, key=size), statistics.mean(map(size, tasks)), len(tasks) / count
    choice = lambda first: [tasks[int(first + i * step)] for i in range(count)]
    return choice(
        min(range(max(1, int(step))), key=lambda first: abs(statistics.mean(map(size, choice(first))) - mean))
    )


class RandomBank:
    "As much of a FeatureBank as a TaskSet uses, with random features; images in half precision, as on disk."

    def __init__(self, tasks: list[Task]):
        keys = {
            "image": [i for t in tasks for i in t.images],
            "prompt": [p for t in tasks for p in t.prompts],
            "question": [t.question for t in tasks],
        }
        self._rows = {kind: {key: row for row, key in enumerate(dict.fromkeys(found))} for kind, found in keys.items()}
        generator = torch.Generator().manual_seed(0)
        draw = lambda kind: torch.randn(len(self._rows[kind]), E, generator=generator)
        self.images, self.prompts, self.questions = draw("image").half(), draw("prompt"), {"clip": draw("question")}

    def _find(self, kind: str, keys: list[str]) -> Tensor:
        return torch.tensor([self._rows[kind][key] for key in keys])

    def image_rows(self, ids: list[str]) -> Tensor:
        return self._find("image", ids)

    def prompt_rows(self, texts: list[str]) -> Tensor:
        return self._find("prompt", texts)

    def question_rows(self, texts: list[str]) -> Tensor:
        return self._find("question", texts)


def task_set(count: int, device: str) -> TaskSet:
    tasks = alike(all_tasks(), count)
    return TaskSet(tasks, RandomBank(tasks), device)


def examples(tasks: TaskSet, part: str) -> list[reference.Examples]:
    "Each task's own tensors, without padding."
    batches = (tasks.batch(torch.tensor([i], device=tasks.device), part) for i in range(len(tasks)))
    return [(b.images[0], b.labels[0], b.answers[0]) for b in batches]


def generator_network(device: str, kind: type[HNet] = HNet) -> HNet:
    hnet = kind(NET, LATENT, (WIDTH,) * 3, generator=torch.Generator().manual_seed(0))
    return hnet.to(device)


def diffusion(device: str) -> HyperLDM:
    "HyperLDM of the paper's sizes, with a denoiser that is not trained: its samples need check=False."
    latents = torch.randn(64, LATENT, generator=torch.Generator().manual_seed(1))
    ldm = HyperLDM.make(E, LATENT, Standardizer(latents), denoiser=PUBLISHED_SIZE, kind=PublishedDenoiser)
    ldm.denoiser.to(device), ldm.standardizer.to(device)
    return ldm


def score_each(hnet: HNet, latents: Tensor, parts: Sequence[list[reference.Examples]]) -> None:
    "The plain way: one task and one of its sets at a time, weights generated for each."
    for part in parts:
        for z, task in zip(latents, part):
            with torch.no_grad():
                w = reference.weights(hnet, z)
            reference.accuracy(w, task, NET)


def score_both(hnet: HNet, latents: Tensor, tasks: TaskSet, together: int = 64) -> None:
    "Accuracy on the support and the query set of every task, from one set of generated weights."
    for ids in tasks.sizes("all").argsort(descending=True).split(together):
        with torch.no_grad():
            w = hnet(latents[ids])
        for part in "support", "query":
            task_accuracy(w, tasks.ragged(ids, part, sort=False), NET).tolist()


# ---- what must be done ----


def network_flops(examples: float, answers: float, backward: bool = False) -> float:
    "Of one base network on some examples, with its gradient with respect to the weights if asked for."
    return examples * ((10 if backward else 4) * E * H + (4 if backward else 2) * E * answers)


def last_layer_flops(products: int) -> float:
    return products * 2 * WIDTH * P


def mean_sizes(count: int) -> tuple[float, float, float]:  # support, query, answers (weighted with examples)
    "Of so many tasks of `task_set`."
    support, query, answers = (
        torch.tensor([(len(t.support), len(t.query), len(t.answers)) for t in alike(all_tasks(), count)]).double().T
    )
    return support.mean().item(), query.mean().item(), ((support * answers).sum() / support.sum()).item()


LAST_LAYER, ADAM = 4 * WIDTH * P, 8 * 4 * WIDTH * P  # bytes
DENOISER = 2 * LATENT * 128 + 128 * 128  # products of one guided-or-not step, per latent


# ---- rows ----


class Row:
    """One kind of work. `ours` and `plain` do it once; `compare` returns pairs of tensors that must agree.

    A quick run does few tasks the plain way, and without the optimiser's step, which would count for too much among
    so few.
    """

    variants, work = ("same",), ""
    ours_tasks = plain_tasks = 1

    def __init__(self, id: str, variant: str, quick: bool, device: str):
        self.id, self.variant, self.quick, self.device = id, variant, quick, device

    def ours(self) -> None: ...
    def plain(self) -> None: ...
    def warm_up(self) -> None:
        self.ours()

    def make_plain(self) -> None:
        "What the plain side begins with: networks of `nn.Linear`s."
        for model in vars(self).values():
            if isinstance(model, torch.nn.Module):
                reference.plain(model)

    def compare(self) -> list[tuple[Tensor, Tensor]]: ...
    def limit(self) -> tuple[float, float]:  # per task
        "Necessary operations and bytes."


class WatchedLoss(GeneratedLoss):
    "Notes the weights of a step before they are overwritten."

    def __init__(self, *arguments, note: Callable[[Tensor], None]):
        super().__init__(*arguments)
        self.note = note

    def weights(self, u: Tensor) -> Tensor:
        w = super().weights(u)
        self.note(w)
        return w


class WatchedHNet(HNet):
    "An HNet that keeps the published code's four accuracies of every outer step: before and after, on both sets."

    def fast_energy(self, batch: Ragged, trains: bool = False) -> Energy:
        if not trains:
            self.support = batch
            return super().fast_energy(batch)

        def note(after: Tensor) -> None:
            before = self(self.z0[None])
            self.metrics = [task_accuracy(w, part, NET) for w in (before, after) for part in (self.support, batch)]

        loss = WatchedLoss(self.head, batch, self.net, True, note=note)
        return lambda z: loss(self.body(z))


class MetaTraining(Row):
    work = "HNet-MAML meta-training, 10 inner steps, four accuracies per task"
    steps = 10

    def __init__(self, *args):
        super().__init__(*args)
        self.ours_tasks, self.plain_tasks = (16, 2) if self.quick else (32, 32)
        self.ours_set, self.hnet = task_set(self.ours_tasks, self.device), generator_network(self.device, WatchedHNet)
        self.updates = self.training(self.hnet, self.ours_set)
        self.plain_set = task_set(self.plain_tasks, self.device)
        self.optimizer = None

    def training(self, hnet: HNet, tasks: TaskSet):
        return fit_meta(
            hnet,
            tasks,
            TrainConfig(steps=10**6, lr=1e-3),
            adaptation=Adaptation(steps=self.steps, lr=0.1),
            order="first",
            episodes=Episodes(tasks=self.ours_tasks, support=None, query=None),
        )

    def ours(self):
        next(self.updates)

    def plain(self):
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(self.hnet.parameters(), lr=1e-3)
            self.pairs = list(zip(examples(self.plain_set, "support"), examples(self.plain_set, "query")))
        self.optimizer.zero_grad()
        reference.meta_gradient(self.hnet, self.pairs, self.steps)
        torch.nn.utils.clip_grad_norm_(self.hnet.parameters(), 10.0)
        if not self.quick:
            self.optimizer.step()

    def compare(self):
        tasks = task_set(2 if self.quick else 6, self.device)
        pairs = list(zip(examples(tasks, "support"), examples(tasks, "query")))
        mine, plain = self.hnet, reference.plain(copy.deepcopy(self.hnet))
        next(self.training(mine, tasks))
        theirs = torch.tensor(reference.meta_gradient(plain, pairs, self.steps)).view(-1, 4).mean(0)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
        found = [reference.same_shape(a.grad, b.grad) for a, b in zip(mine.parameters(), plain.parameters())]
        return [*found, (torch.stack(mine.metrics).mean(1).cpu(), theirs)]

    def limit(self):
        support, query, answers = mean_sizes(self.ours_tasks)
        flops = self.steps * (network_flops(support, answers, True) + last_layer_flops(2)) + network_flops(
            query, answers, True
        )
        flops += last_layer_flops(3) + network_flops(2 * support + query, answers)
        return flops, ((self.steps + 1) * LAST_LAYER + ADAM) / self.ours_tasks


class Storing(Row):
    work = "storing adaptations, 50 latent steps"

    def __init__(self, *args):
        super().__init__(*args)
        self.ours_tasks, self.plain_tasks = (16, 1) if self.quick else (96, 4)
        self.how, self.hnet = Adaptation(steps=50, lr=0.1), generator_network(self.device).requires_grad_(False)
        self.tasks, self.plain_examples = None, None

    def ours(self):
        if self.tasks is None:
            self.tasks = task_set(self.ours_tasks, self.device)
        store_adaptations(self.hnet, self.tasks, self.how, views=1)

    def warm_up(self):
        if self.tasks is None:
            self.tasks = task_set(self.ours_tasks, self.device)
        store_adaptations(self.hnet, self.tasks, Adaptation(steps=2), views=1)

    def plain(self):
        if self.plain_examples is None:
            self.plain_examples = examples(task_set(self.plain_tasks, self.device), "all")
        generator = torch.Generator().manual_seed(0)
        for images, labels, answers in self.plain_examples:
            share = 2 / 3 + torch.rand((), generator=generator).item() / 3
            some = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))].to(images.device)
            reference.adapt(self.hnet, (images[some], labels[some], answers), self.how.steps)

    def compare(self):
        tasks, how = task_set(3 if self.quick else 5, self.device), Adaptation(steps=5 if self.quick else 50, lr=0.1)
        mine = store_adaptations(self.hnet, tasks, how, views=1, fraction=(1.0, 1.0))[0]
        plain = reference.plain(self.hnet)
        return [(mine, torch.stack([reference.adapt(plain, task, how.steps) for task in examples(tasks, "all")]))]

    def limit(self):
        support, query, answers = mean_sizes(self.ours_tasks)
        return 50 * (
            network_flops(5 / 6 * (support + query), answers, True) + last_layer_flops(2)
        ), 50 * LAST_LAYER / self.ours_tasks


class Autoencoding(Row):
    work = "HVAE step, batch 32"

    def __init__(self, *args):
        super().__init__(*args)
        self.ours_tasks, self.plain_tasks = 32, 2 if self.quick else 32
        generator, tasks = torch.Generator().manual_seed(2), task_set(48, self.device)
        self.weights = torch.randn(1, 48, P, generator=generator).to(self.device)
        self.hvae = HVAE.make(NET, self.weights, self.weights[0, 0]).to(self.device)
        self.updates = self.training(32, tasks)
        self.optimizer = None

    def training(self, batch: int, tasks: TaskSet):
        seen = draw_views(tasks, 1)
        return train_hvae(
            self.hvae, self.weights, tasks, seen, TrainConfig(lr=1e-4, steps=10**6), HVAELoss(batch=batch)
        )

    def ours(self):
        next(self.updates)

    def plain(self):
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(self.hvae.parameters(), lr=1e-4)
        noises = torch.randn(self.plain_tasks, LATENT, generator=torch.Generator().manual_seed(0)).to(self.device)
        self.optimizer.zero_grad()
        reference.hvae_gradient(self.hvae, self.weights[0, : self.plain_tasks], noises)
        if not self.quick:
            self.optimizer.step()

    def compare(self):
        step = self.training(4, task_set(48, self.device))
        with own_randomness(step.config.seed, 0, step.params) as generator:  # as `fit` draws
            drawn = step.batches(generator)
            noises = torch.randn(4, LATENT, generator=generator).to(self.device)
        plain = reference.plain(copy.deepcopy(self.hvae))
        reference.hvae_gradient(plain, drawn[0], noises)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
        next(step)
        return [reference.same_shape(p.grad, q.grad) for p, q in zip(self.hvae.parameters(), plain.parameters())]

    def limit(self):
        inner = LATENT * WIDTH + 2 * WIDTH * WIDTH + 2 * LATENT * WIDTH
        return last_layer_flops(5) + 6 * inner, (2 * ADAM + 2 * LAST_LAYER) / 32


class Contrasting(Row):
    work = "HyperCLIP epoch over stored tasks, batches of 64"
    variants = ("same", "hoisted")

    def __init__(self, *args):
        super().__init__(*args)
        self.ours_tasks, self.plain_tasks = (64, 4) if self.quick else (192, 64)
        generator = torch.Generator().manual_seed(2)
        draw = lambda n: torch.randn(self.ours_tasks, n, generator=generator).to(self.device)
        self.latents, self.e, self.hnet = draw(LATENT), draw(E), generator_network(self.device).requires_grad_(False)
        self.model = HyperCLIP(NET, E).to(self.device)
        self.updates, self.tasks, self.optimizer = None, None, None

    def training(self, batch: int, latents: Tensor, e: Tensor):
        config = ContrastConfig(batch=batch, ema_decay=0.0)
        return train_hyperclip(self.model, self.hnet, latents, e, TrainConfig(lr=3e-4, steps=10**6), config)

    def ours(self):
        if self.updates is None:
            self.updates = self.training(64, self.latents, self.e)
        for _ in range(self.ours_tasks // 64):
            next(self.updates)
        if self.variant == "same":
            if self.tasks is None:
                self.tasks = task_set(self.ours_tasks, self.device)
            forget_gradients(*self.updates.params)  # their memory for the scoring
            score_both(self.hnet, self.latents, self.tasks)

    def plain(self):
        if self.optimizer is None:
            self.optimizer, tasks = (
                torch.optim.Adam(self.model.parameters(), lr=3e-4),
                task_set(self.plain_tasks, self.device),
            )
            self.parts = examples(tasks, "support"), examples(tasks, "query")
        self.optimizer.zero_grad()
        reference.contrast_gradient(self.model, self.hnet, self.latents[: self.plain_tasks], self.e[: self.plain_tasks])
        if not self.quick:
            self.optimizer.step()
        if self.variant == "same":
            score_each(self.hnet, self.latents, self.parts)

    def compare(self):
        z, e = self.latents[:6], self.e[:6]
        reference.contrast_gradient(
            self.model, reference.plain(copy.deepcopy(self.hnet)), z, e
        )  # of all six: their order doesn't matter
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        plain = [p.grad.clone() for p in self.model.parameters()]
        self.model.zero_grad()
        step = self.training(6, z, e)
        next(step)
        return [(p.grad, q) for p, q in zip(step.params, plain)]

    def limit(self):
        first, second = 256 * P, 256 * E
        flops, moved = last_layer_flops(1) + 4 * first + 6 * second, (8 * 4 * (first + second) + LAST_LAYER) / 64
        if self.variant == "same":
            support, query, answers = mean_sizes(self.ours_tasks)
            flops, moved = (
                flops + network_flops(support + query, answers) + last_layer_flops(1),
                moved + LAST_LAYER / self.ours_tasks,
            )
        return flops, moved


class Diffusing(Row):
    work = "HyperLDM epoch over 870 tasks"
    variants = ("same", "hoisted")

    def __init__(self, *args):
        super().__init__(*args)
        self.ours_tasks, self.plain_tasks = 870, 64 if self.variant == "hoisted" else 16
        generator = torch.Generator().manual_seed(2)
        self.latents, self.e = torch.randn(870, LATENT, generator=generator), torch.randn(870, E, generator=generator)
        self.latents, self.e = self.latents.to(self.device), self.e.to(self.device)
        self.ldm, self.config = diffusion(self.device), LDMConfig(ema_from=0.0, ema_decay=0.999)
        self.updates = train_hyperldm(self.ldm, self.latents, self.e, TrainConfig(lr=2.5e-4, steps=10**6), self.config)
        self.hnet = generator_network(self.device).requires_grad_(False) if self.variant == "same" else None
        self.tasks, self.optimizer = None, None

    def warm_up(self):
        for _ in range(7):
            next(self.updates)
        if self.variant == "same":
            self.tasks = task_set(870, self.device)
            if not self.quick:
                score_both(self.hnet, self.latents, self.tasks)

    def ours(self):
        for _ in range(7):
            next(self.updates)
        if self.variant == "same":
            score_both(self.hnet, self.latents, self.tasks)

    def plain(self):
        if self.optimizer is None:
            self.denoiser = PublishedDenoiser(LATENT, E, PUBLISHED_SIZE).to(self.device)
            self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=2.5e-4)
            tasks = task_set(self.plain_tasks, self.device)
            self.parts = examples(tasks, "support"), examples(tasks, "query")
        n, generator = self.plain_tasks, torch.Generator().manual_seed(0)
        index, noise = (
            torch.randint(350, (n,), generator=generator),
            torch.randn(n, LATENT, generator=generator).to(self.device),
        )
        self.optimizer.zero_grad()
        reference.diffusion_step(self.denoiser, self.ldm.schedule, self.latents[:n], self.e[:n], index, noise)
        if not self.quick:
            self.optimizer.step()
        if self.variant == "same":
            score_each(self.hnet, self.latents, self.parts)

    def compare(self):
        from hyperclip_nb.diffusion.schedule import diffusion_loss

        denoiser = PublishedDenoiser(LATENT, E, PUBLISHED_SIZE).to(self.device)
        z, e, schedule = self.latents[:16], self.e[:16], self.ldm.schedule
        draw = torch.Generator().manual_seed(5)
        index, noise = (
            torch.randint(len(schedule), (16,), generator=draw),
            torch.randn(16, LATENT, generator=draw).to(self.device),
        )
        reference.diffusion_step(denoiser, schedule, z, e, index, noise)
        plain = [p.grad.clone() for p in denoiser.parameters()]
        denoiser.zero_grad()
        diffusion_loss(denoiser, z, e, schedule, torch.Generator().manual_seed(5), drop=0.0).backward()
        found = [(p.grad, q) for p, q in zip(denoiser.parameters(), plain)]
        if self.variant == "same":
            tasks = task_set(6, self.device)
            mine = set_accuracy(lambda ids: self.hnet(self.latents[ids]), tasks, NET, "support").cpu()
            plain = reference.plain(self.hnet)
            found.append(
                (
                    mine,
                    torch.tensor(
                        [
                            reference.accuracy(reference.weights(plain, z), task, NET)
                            for z, task in zip(self.latents, examples(tasks, "support"))
                        ]
                    ),
                )
            )
        return found

    def limit(self):
        first = LATENT * 128 + E * 128 + 100 * 128  # layers without a gradient to their input
        flops, moved = 4 * first + 6 * (128 * 128 + 128 * LATENT), 8 * 4 * (first + 2 * 128 * 128) / 128
        if self.variant == "same":
            support, query, answers = mean_sizes(870)
            flops, moved = (
                flops + network_flops(support + query, answers) + last_layer_flops(1),
                moved + LAST_LAYER / 870,
            )
        return flops, moved


class Sampling(Row):
    work = "DDPM sampling, 350 steps"
    evaluate = False

    def __init__(self, *args):
        super().__init__(*args)
        self.gamma = 1.0 if self.id == "sample_g1" else 1.5
        self.ours_tasks, self.plain_tasks = 373, 2 if self.quick else 8
        self.ldm, self.e = (
            diffusion(self.device),
            torch.randn(373, E, generator=torch.Generator().manual_seed(3)).to(self.device),
        )
        self.hnet, self.tasks, self.plain_examples = None, None, None
        if self.evaluate:
            self.hnet = generator_network(self.device).requires_grad_(False)

    def ours(self):
        z = self.ldm.generate(self.e, gamma=self.gamma, generator=torch.Generator().manual_seed(4), check=False)[0]
        if self.evaluate:
            if self.tasks is None:
                self.tasks = task_set(373, self.device)
            set_accuracy(lambda ids: self.hnet(z[ids]), self.tasks, NET)

    def plain(self):
        generator = torch.Generator().manual_seed(4)
        if self.evaluate and self.plain_examples is None:
            self.plain_examples = examples(task_set(self.plain_tasks, self.device), "query")
        for i, e in enumerate(self.e[: self.plain_tasks]):
            noises = torch.randn(351, LATENT, generator=generator).to(self.device)
            z = self.ldm.standardizer.decode(
                reference.sample(self.ldm.denoiser, self.ldm.schedule, noises, e, self.gamma)
            )
            if self.evaluate:
                with torch.no_grad():
                    w = reference.weights(self.hnet, z)
                reference.accuracy(w, self.plain_examples[i], NET)

    def compare(self):
        n, generator = 3, torch.Generator().manual_seed(4)
        noises = torch.stack([torch.randn(1, n, LATENT, generator=generator)[0] for _ in range(350)]).to(self.device)
        noises = torch.cat([noises, torch.zeros_like(noises[:1])])
        *_, mine = self.ldm.path(self.e[:n], gamma=self.gamma, generator=torch.Generator().manual_seed(4), check=False)
        plain = torch.stack(
            [
                reference.sample(self.ldm.denoiser, self.ldm.schedule, noises[:, i], self.e[i], self.gamma)
                for i in range(n)
            ]
        )
        found = [(mine[0], plain)]
        if self.evaluate:
            tasks, z = task_set(n, self.device), self.ldm.standardizer.decode(plain)
            with torch.no_grad():
                w = self.hnet(z)
            query = tasks.batch(tasks.all_ids, "query")
            logits = adapter_logits(w, query.images, query.answers, NET)
            for i, (images, labels, answers) in enumerate(examples(tasks, "query")):
                found.append((logits[i, : len(labels), : len(answers)], reference.logits(w[i], images, answers, NET)))
        return found

    def limit(self):
        flops = 350 * 2 * (DENOISER + (0 if self.gamma == 1 else 128 * 128))
        if not self.evaluate:
            return flops, 0.0
        _, query, answers = mean_sizes(373)
        return flops + last_layer_flops(1) + network_flops(query, answers), LAST_LAYER / 373


class ZeroShot(Sampling):
    work = "zero-shot evaluation of 373 tasks: sample (γ = 1.5), generate, score the query sets"
    evaluate = True


class Latency(Row):
    work = "one new question to answers on 25 images"

    def __init__(self, *args):
        super().__init__(*args)
        self.steps = int(self.id.split("_")[1])
        self.ldm, self.hnet = diffusion(self.device), generator_network(self.device).requires_grad_(False)
        generator = torch.Generator().manual_seed(6)
        self.e, self.images, self.answers = (torch.randn(n, E, generator=generator).to(self.device) for n in (1, 25, 5))

    def logits(self, **options) -> Tensor:  # [25, 5]
        options = options or ({"sampler": "ddim", "steps": 20} if self.steps == 20 else {})
        z = self.ldm.generate(self.e, gamma=1.5, generator=torch.Generator().manual_seed(7), check=False, **options)[0]
        with torch.no_grad():
            return adapter_logits(self.hnet(z), self.images[None], self.answers[None], NET)[0]

    def ours(self):
        self.logits().argmax(-1).tolist()

    def plain_logits(self) -> Tensor:
        generator, schedule, denoiser = torch.Generator().manual_seed(7), self.ldm.schedule, self.ldm.denoiser
        if self.steps == 20:
            start = torch.randn(LATENT, generator=generator).to(self.device)
            z = reference.sample_ddim(denoiser, respaced(schedule, 20, "quadratic"), start, self.e[0], 1.5)
        else:
            noises = torch.cat(
                [torch.stack([torch.randn(LATENT, generator=generator) for _ in range(350)]), torch.zeros(1, LATENT)]
            )
            z = reference.sample(denoiser, schedule, noises.to(self.device), self.e[0], 1.5)
        with torch.no_grad():
            return reference.logits(
                reference.weights(self.hnet, self.ldm.standardizer.decode(z)), self.images, self.answers, NET
            )

    def plain(self):
        self.plain_logits().argmax(-1).tolist()

    def compare(self):
        mine = self.logits()
        self.make_plain()
        return [(mine, self.plain_logits())]

    def limit(self):
        return self.steps * 2 * (DENOISER + 128 * 128) + network_flops(25, 5) + last_layer_flops(1), LAST_LAYER


ROWS = {
    "a": MetaTraining,
    "b": Storing,
    "c": Autoencoding,
    "d": Contrasting,
    "e": Diffusing,
    "sample_g1": Sampling,
    "sample_g1.5": Sampling,
    "f": ZeroShot,
    "latency_20": Latency,
    "latency_350": Latency,
}
