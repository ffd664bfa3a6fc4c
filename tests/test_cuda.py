"""What happens on a GPU, found out without one: see `pretend_cuda`.

Every training step, adaptation, walk and sampler runs on tensors that say they are on a GPU. Three things are asked of
each: it gives the numbers that it gives on the CPU; no operator mixes devices (that raises); and the host does not wait
for the device in an inner loop. An inner loop is what is done more often when more steps are asked for: with twice the
steps, the host waits as often as before.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ToyBank, toy_tasks
from pretend_cuda import CudaTensor, DeviceError, Gpu, pretend_cuda
from torch import Tensor

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.network import set_accuracy
from hyperclip_nb.core.blocks import NumbersError, Standardizer
from hyperclip_nb.core.devices import captured
from hyperclip_nb.core.energy import descend
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import TrainConfig, fit, keep_best, last, progress, run
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.diffusion import denoisers
from hyperclip_nb.diffusion.denoisers import DENOISERS, DenoiserConfig
from hyperclip_nb.diffusion.hyperldm import HyperLDM, LDMConfig, train_hyperldm
from hyperclip_nb.evaluation.calibration import Predictions, fit_temperature
from hyperclip_nb.evaluation.fewshot import score_learner
from hyperclip_nb.evaluation.scoring import TrainedMethod, accuracy_of, measure, on_validation, predictions
from hyperclip_nb.guidance.guide import Guidance, guide
from hyperclip_nb.guidance.hyperclip import ContrastConfig, HyperCLIP, HyperCLIPConfig, train_hyperclip
from hyperclip_nb.guidance.question_regression import QuestionRegression, Whitening, train_question_regression
from hyperclip_nb.hypernet.curvature import latent_curvature, lift
from hyperclip_nb.hypernet.film import FiLM
from hyperclip_nb.hypernet.finetune import draw_views, finetune
from hyperclip_nb.hypernet.hvae import HVAE, HVAEConfig, HVAELoss, hvae_latents, train_hvae
from hyperclip_nb.hypernet.hypernetworks import HNet, MNet
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, adapt, adaptation_path, fit_meta
from hyperclip_nb.hypernet.store import store_adaptations

E, Z, TASKS = 12, 6, 10
NET = AdapterNet(E, 3)
SIZES = [
    (9, 4, 3),
    (3, 2, 2),
    (14, 7, 4),
    (5, 5, 2),
    (8, 3, 3),
    (20, 9, 5),
    (6, 4, 2),
    (7, 3, 3),
    (11, 6, 2),
    (4, 3, 2),
]
normal = lambda *shape, seed=0: torch.randn(*shape, generator=seeded(seed, "test"))


@dataclass
class World:
    "Tasks, latents and questions on a device."

    device: str

    def __post_init__(self):
        tasks = toy_tasks(SIZES)
        self.tasks = TaskSet(tasks, ToyBank(tasks), self.device)
        self.e, self.latents = self.on(normal(TASKS, E)), self.on(normal(3, TASKS, Z, seed=1))
        self.weights = self.on(0.3 * normal(2, TASKS, NET.size, seed=2))
        self.seen = draw_views(self.tasks, 2, (0.5, 0.7))

    def on(self, x):
        return x.to(self.device)

    def hnet(self, size: int = Z, **options) -> HNet:
        return self.on(HNet(NET, size, (8, 8), generator=seeded(3, "hnet"), **options))

    def hvae(self, **options) -> HVAE:
        config = HVAEConfig(latent_size=Z, hidden=(8,), **options)
        return self.on(HVAE.make(NET, self.weights, self.weights[0, 0], config))

    def hyperclip(self, **options) -> HyperCLIP:
        weights = self.weights.flatten(0, 1) if options.get("components") else None
        return self.on(HyperCLIP.make(NET, weights, E, HyperCLIPConfig(hidden=(8,), **options)))

    def ldm(self, kind: str = "residual", **options) -> HyperLDM:
        sizes = DenoiserConfig(hidden=16, depth=2, time_size=8, **options)
        made = HyperLDM.make(E, Z, Standardizer(self.latents), denoiser=sizes, kind=DENOISERS[kind])
        made.denoiser.to(self.device)
        made.standardizer.to(self.device)
        return made


def meta(make: Callable[[World], Any], **options):
    "A meta-training of a generator."

    def steps(world: World, count: int):
        given = {name: value(world) if callable(value) else value for name, value in options.items()}
        model = make(world)
        return [*fit_meta(model, world.tasks, TrainConfig(steps=count, lr=1e-2), **given)], model

    return steps


def hvae_training(loss: HVAELoss, **options):
    def steps(world: World, count: int):
        model = world.hvae(**options)
        how = TrainConfig(steps=count, lr=1e-2)
        return [*train_hvae(model, world.weights, world.tasks, world.seen, how, loss)], model

    return steps


def hyperclip_training(generator: str = "hnet", **options):
    def steps(world: World, count: int):
        model, generate = world.hyperclip(**options), getattr(world, generator)().requires_grad_(False)
        contrast, how = ContrastConfig(batch=6, latent_noise=0.1, embedding_noise=0.1), TrainConfig(steps=count)
        return [*train_hyperclip(model, generate, world.latents, world.e, how, contrast)], model

    return steps


def hyperldm_training(kind: str = "residual", weighted: bool = False, posterior: bool = False, **options):
    def steps(world: World, count: int):
        ldm, how = world.ldm(kind, **options), TrainConfig(steps=count, lr=1e-2)
        curvature = lift(latent_curvature(world.hnet(), world.latents, world.tasks)) if weighted else None
        std = 0.1 * world.latents.abs() if posterior else None
        config = LDMConfig(batch=8, embedding_noise=0.1, ema_from=0.2)
        return [*train_hyperldm(ldm, world.latents, world.e, how, config, curvature, std)], ldm.denoiser

    return steps


def regression_training(world: World, count: int):
    questions = world.on(Whitening(world.e, 5))(world.e)
    model = world.on(QuestionRegression(questions, world.latents, [str(i // 2) for i in range(TASKS)], 3, 2))
    return [*train_question_regression(model, TrainConfig(steps=count, lr=1e-2), batch=4)], model


WHOLE = Episodes(tasks=6, support=None, query=None)
SOME = Episodes(tasks=6, support=4, query=3)
INNER = Adaptation(steps=3, lr=0.1)
TRAININGS = {
    "multitask": meta(lambda w: w.on(MNet(NET)), episodes=SOME),
    "multitask, whole sets": meta(lambda w: w.on(MNet(NET)), episodes=WHOLE),
    "MNet-MAML": meta(lambda w: w.on(MNet(NET)), episodes=SOME, adaptation=INNER),
    "HNet-MAML, first order": meta(World.hnet, episodes=WHOLE, adaptation=INNER, order="first", anchor=0.5),
    "HNet-MAML, second order": meta(World.hnet, episodes=SOME, adaptation=INNER, order="second"),
    "HNet-MAML, a range of steps": meta(
        World.hnet, episodes=SOME, adaptation=Adaptation(steps=(1, 4), lr=0.1, optimizer="adam"), order="first"
    ),
    "conditional multitask": meta(
        lambda w: w.hnet(E, output_gain=0.2), episodes=SOME, embeddings=lambda w: w.e, embedding_noise=0.1
    ),
    "FiLM": meta(lambda w: w.on(FiLM(NET, E, (8,))), episodes=WHOLE, embeddings=lambda w: w.e),
    "conditional HNet-MAML": meta(lambda w: w.hnet(E), episodes=SOME, embeddings=lambda w: w.e, adaptation=INNER),
    "HVAE": hvae_training(HVAELoss(batch=6)),
    "HVAE of components": hvae_training(HVAELoss(batch=6), components=7, decodes="components", scale="global"),
    "HVAE, task's loss": hvae_training(HVAELoss(loss="task", mix=0.1, beta=0.01, batch=6, examples=3), components=7),
    "HyperCLIP": hyperclip_training(),
    "HyperCLIP of components": hyperclip_training("hvae", components=5, size=8),
    "HyperLDM": hyperldm_training(),
    "HyperLDM over posteriors, first denoiser": hyperldm_training("published", posterior=True),
    "HyperLDM, weighted by curvature": hyperldm_training("published_second", weighted=True, null="learned"),
    "question regression": regression_training,
}


def host(x: Any) -> Tensor:
    "A tensor of the pretended GPU on the CPU."
    return x.detach().x if isinstance(x.detach(), CudaTensor) else x.detach()


def waits_of_more_steps(gpu: Gpu, work: Callable[[World, int], Any], world: World) -> Counter:
    "Where the host waits more often when more steps are asked for: nowhere, if no inner loop waits."
    few, many = (gpu.of(lambda: work(world, steps)) for steps in (2, 5))
    return Counter(many) - Counter(few)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_step_has_the_same_numbers_on_a_gpu_and_never_waits_for_it(name):
    work = TRAININGS[name]
    here, model = work(World("cpu"), 4)
    with pretend_cuda() as gpu:
        world = World("cuda")
        there, moved, waits = *work(world, 4), waits_of_more_steps(gpu, work, world)
        assert not waits and gpu.operators > 100
        torch.testing.assert_close([u.loss for u in there], [u.loss for u in here], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close([u.grad_norm for u in there], [u.grad_norm for u in here], rtol=1e-3, atol=1e-5)
        for (key, a), b in zip(model.state_dict().items(), moved.state_dict().values(), strict=True):
            assert isinstance(b.detach(), CudaTensor), key
            torch.testing.assert_close(host(b), a, rtol=1e-3, atol=2e-4, msg=lambda text: f"{key}: {text}")


def adapting(make: Callable[[World], Any], ragged: bool = True, **how):
    "An adaptation of latents."

    def work(world: World, count: int) -> Tensor:
        model = make(world).requires_grad_(False)
        batch = (world.tasks.ragged if ragged else world.tasks.batch)(world.tasks.all_ids, "all")
        return adapt(model, model.z0.detach(), batch, Adaptation(steps=count, lr=0.1, **how))

    return work


def storing(world: World, count: int) -> Tensor:
    return store_adaptations(world.hnet().requires_grad_(False), world.tasks, Adaptation(steps=count, lr=0.1), views=2)


def fine_tuning(world: World, count: int) -> Tensor:
    return finetune(world.on(MNet(NET)), world.tasks, Adaptation(steps=count, lr=0.1), world.seen)


def walking(make: Callable[[World], Any], extra: bool = False, **options):
    "HyperCLIP guidance."

    def work(world: World, count: int) -> Tensor:
        model, generate = world.hyperclip(**options), make(world).requires_grad_(False)
        support = world.tasks.batch(world.tasks.all_ids)
        more = generate.fast_energy(support) if extra else None
        how = Guidance(steps=count, prior="bayes", gradient_noise=0.1)
        return last(guide(model.requires_grad_(False), generate, generate.z0, world.e, how, seeded(0), extra=more))

    return work


def langevin(world: World, count: int) -> Tensor:
    "Descent in weight space with noise."
    net, batch = world.on(MNet(NET)).requires_grad_(False), world.tasks.batch(world.tasks.all_ids)
    energy, start = lambda w: NET.loss(w, batch), net.z0.expand(TASKS, -1)
    return last(descend(energy, start, steps=count, lr=0.1, schedule="cosine", langevin=0.01, generator=seeded(0)))


def sampling(kind: str = "residual", bend: str | None = None, **options):
    "A sampler, with guidance, and with an energy if asked for."

    def work(world: World, count: int) -> Tensor:
        ldm = world.ldm(kind).requires_grad_(False)
        more: dict[str, Any] = {}
        if bend:
            generate, batch = world.hnet().requires_grad_(False), world.tasks.batch(world.tasks.all_ids)
            more = {"energy": generate.fast_energy(batch), "energy_rule": bend, "energy_scale": 0.3}
        return ldm.generate(world.e, generator=seeded(0), steps=count, check=False, **more, **options)

    return work


def from_a_start(world: World, count: int) -> Tensor:
    ldm, start = world.ldm().requires_grad_(False), world.latents[0]
    return ldm.generate(world.e, generator=seeded(0), steps=count, start=start, fraction=0.5, samples=2)


PATHS = {
    "adaptation of weights": adapting(lambda w: w.on(MNet(NET)), optimizer="adam"),
    "adaptation of HNet's latents": adapting(World.hnet),
    "adaptation of HNet's latents, one rectangle": adapting(World.hnet, ragged=False),
    "adaptation of the HVAE's latents": adapting(World.hvae),
    "adaptation of latents of components": adapting(lambda w: w.hvae(components=7, decodes="components")),
    "stored adaptations": storing,
    "fine-tuned weights": fine_tuning,
    "walk of HNet": walking(World.hnet),
    "walk of the HVAE, components": walking(World.hvae, components=5, size=8),
    "walk with few shots": walking(World.hnet, extra=True),
    "Langevin descent in weight space": langevin,
    **{f"DDPM, {kind}": sampling(kind, gamma=1.5, samples=2) for kind in DENOISERS},
    "DDPM, unguided, clamped": sampling(gamma=1.0, clamp=2.0, variance="posterior"),
    "DDIM": sampling(gamma=1.5, sampler="ddim"),
    "DDIM with fresh noise": sampling(gamma=0.0, sampler="ddim", eta=0.5),
    "DPM-Solver++": sampling(gamma=1.5, sampler="dpm"),
    **{f"few-shot sampler, {rule}": sampling(bend=rule, clamp=3.0) for rule in ("direct", "through", "rescaled")},
    "sampler from a start": from_a_start,
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_has_the_same_end_on_a_gpu_and_never_waits_for_it(name):
    work = PATHS[name]
    here = work(World("cpu"), 4)
    with pretend_cuda() as gpu:
        world = World("cuda")
        there, waits = work(world, 4), waits_of_more_steps(gpu, work, world)
        assert not waits
        assert isinstance(there, CudaTensor)
        torch.testing.assert_close(host(there), here.detach(), rtol=1e-3, atol=1e-4)


def test_weights_for_which_a_gpu_has_no_room_stay_on_the_cpu_and_an_hvae_learns_from_them_there():
    def losses(world: World) -> list[float]:
        world.weights = finetune(world.on(MNet(NET)), world.tasks, Adaptation(steps=2, lr=0.1), world.seen)
        assert isinstance(world.weights, CudaTensor) == (world.device == "cuda" and not small)
        model = world.on(HVAE.make(NET, world.weights, world.on(torch.zeros(NET.size)), HVAEConfig(latent_size=Z)))
        how = TrainConfig(steps=3, lr=1e-2)
        found = [*train_hvae(model, world.weights, world.tasks, world.seen, how, HVAELoss(batch=6))]
        assert all(host(x).isfinite().all() for x in hvae_latents(model, world.weights))
        return [u.loss for u in found]

    small = False
    here = losses(World("cpu"))
    for memory in 2**30, 1000:
        small = memory == 1000
        with pretend_cuda(memory):
            torch.testing.assert_close(losses(World("cuda")), here, rtol=1e-4, atol=1e-5)


SAMPLERS = [name for name in PATHS if "DDPM" in name or "DDIM" in name or "DPM" in name]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_whose_step_is_one_graph_gives_the_same_numbers(name, monkeypatch):
    monkeypatch.setattr(denoisers, "CAPTURED_FROM", 2)
    here = PATHS[name](World("cpu"), 5)
    with pretend_cuda() as gpu:
        there = PATHS[name](World("cuda"), 5)
        assert gpu.replays == 5
        torch.testing.assert_close(host(there), here, rtol=1e-3, atol=1e-4)


def launches_of_a_step(monkeypatch, recorded: bool, **how: Any) -> float:
    "Of our denoiser with its three layers."
    monkeypatch.setattr(denoisers, "CAPTURED_FROM", 1 if recorded else 10**6)
    with pretend_cuda() as gpu:
        world, counts = World("cuda"), []
        ldm = HyperLDM.make(E, Z, Standardizer(world.latents), denoiser=DenoiserConfig(hidden=16, depth=3))
        ldm = ldm.to("cuda").requires_grad_(False)
        for steps in 20, 40:
            before = gpu.launches
            ldm.generate(world.e, generator=seeded(0), steps=steps, check=False, **how)
            counts.append(gpu.launches - before)
    return (counts[1] - counts[0]) / 20


@pytest.mark.parametrize(
    "how, plain, recorded",
    [
        ({"gamma": 1.5}, 21, 6),
        ({"gamma": 1.0}, 20, 6),
        ({"gamma": 1.5, "clamp": 3.0}, 24, 9),
        ({"gamma": 1.5, "sampler": "ddim"}, 23, 8),
        ({"gamma": 1.5, "sampler": "dpm"}, 24, 9),
    ],
)
def test_how_many_launches_a_step_of_a_sampler_takes(monkeypatch, how, plain, recorded):
    "The first row is told in the notebook of devices, where it is said why a whole sampler is not one graph."
    assert [launches_of_a_step(monkeypatch, way, **how) for way in (False, True)] == [plain, recorded]


def test_a_graph_is_recorded_for_each_shape_and_reads_what_it_is_given():
    with pretend_cuda() as gpu, torch.no_grad():
        shift = torch.ones(3).to("cuda")
        step = captured(lambda x: (x + shift).relu_() * 2)
        for x in normal(4, 3), normal(4, 3, seed=1), normal(2, 3), normal(4, 3, seed=2):
            torch.testing.assert_close(host(step(x.to("cuda"))), (x + 1).relu() * 2)
        assert gpu.replays == 4 and len(step.kept) == 2
        first, second = step(shift[None]), step(2 * shift[None])
        assert not torch.equal(host(first), host(second))  # the next call leaves the last result alone
        with pytest.raises(DeviceError, match="capturing"):
            captured(lambda x: x * x.sum().item())(shift)
        with pytest.raises(DeviceError, match="same address at every replay"):
            captured(lambda x: x * torch.ones(3).to("cuda", non_blocking=True))(shift)
    with pretend_cuda() as gpu:
        step(torch.ones(4, 3).to("cuda").requires_grad_()).sum().backward()  # with gradients it is the function itself
        assert gpu.replays == 0


def scored(copies: int, batches: int):
    "Everything that scores a method, on several copies of the tasks, so that only the tasks of a batch become more."

    def work(device: str) -> tuple[list[Tensor], int]:
        world, tasks = World(device), toy_tasks(SIZES * copies)
        tasks = TaskSet(tasks, ToyBank(tasks), device)
        e, hnet = world.on(normal(len(tasks), E)), world.hnet(E).requires_grad_(False)
        x: Any = SimpleNamespace(sets=dict.fromkeys(("val", "test"), tasks), net=NET)
        x.embeddings = dict.fromkeys(x.sets, {"text": e})
        three = lambda questions, noise: torch.stack([hnet(s * questions["text"]) for s in (0.5, 1.0, 2.0)])
        method = TrainedMethod(three)
        limit = 10 * NET.size * -(-len(tasks) // batches)  # of `predictions`
        some = [*predictions(x, method, 0, "test", limit=limit)]
        temperature, validation = on_validation(x, method, 0)
        found = measure(x, method, 0, temperature=temperature)
        numbers = [accuracy_of(some, len(tasks)), validation, found.accuracy, found.raw.nll, found.tempered.bins]
        return numbers, len(some)

    return work


def test_the_host_waits_for_a_batch_of_tasks_and_for_no_task_when_a_method_is_scored():
    here, count = scored(1, 1)("cpu")
    with pretend_cuda() as gpu:
        there, _ = scored(1, 1)("cuda")
        for a, b in zip(here, there, strict=True):
            torch.testing.assert_close(host(b), a, rtol=1e-4, atol=1e-5)
        assert all(x.device.type == "cpu" for x in there)
        few, tasks, batches = (gpu.of(lambda: scored(*how)("cuda")) for how in ((1, 1), (5, 1), (1, 10)))
        assert len(tasks) == len(few)  # five times as many tasks in the same batches
        _, more = scored(1, 10)("cuda")
        assert more > count and len(batches) - len(few) == 2 * (
            more - count
        )  # are the logits, and what they say, finite?


def test_few_shot_curves_wait_for_a_scored_place_and_for_no_step_nor_factor():
    def curves(world: World, steps: tuple[int, ...], alphas: tuple) -> Tensor:
        hnet = world.hnet().requires_grad_(False)
        learner = lambda batch: adaptation_path(hnet, hnet.z0.detach(), batch, Adaptation(steps=max(steps), lr=0.1))
        return score_learner(learner, hnet, world.tasks, 2, steps, alphas=alphas, repeats=1)

    here = curves(World("cpu"), (0, 4), (None, 1.0))
    with pretend_cuda() as gpu:
        world = World("cuda")
        torch.testing.assert_close(curves(world, (0, 4), (None, 1.0)), here)
        waits = lambda *how: len(gpu.of(lambda: curves(world, *how)))
        one = waits((0, 4), (None,))
        assert waits((0, 40), (None,)) == waits((0, 4), (None, 1.0, 3.0, 10.0)) == one
        batches = len(world.tasks.buckets(world.tasks.all_ids, "support", limit=50_000))
        assert waits((0, 2, 4), (None,)) == one + batches


def test_scoring_and_encoding_have_the_same_numbers_on_a_gpu():
    def numbers(world: World) -> list[Tensor]:
        hnet, hvae = world.hnet().requires_grad_(False), world.hvae()
        z = world.latents[0]
        return [set_accuracy(lambda ids: hnet(z[ids]), world.tasks, NET), *hvae_latents(hvae, world.weights)]

    here = numbers(World("cpu"))
    with pretend_cuda():
        for a, b in zip(here, numbers(World("cuda")), strict=True):
            torch.testing.assert_close(host(b), a, rtol=1e-4, atol=1e-5)


def test_a_temperature_is_fitted_without_waiting_at_every_halving():
    def found(world: World) -> list[Predictions]:
        batch = world.tasks.batch(world.tasks.all_ids, "query")
        log_probs = NET.logits(world.weights[0], batch).log_softmax(-1)
        return [Predictions(log_probs, batch.labels, batch.mask, batch.index)]

    here = fit_temperature(found(World("cpu")))
    with pretend_cuda() as gpu:
        several = found(World("cuda"))
        assert fit_temperature(several) == pytest.approx(here, rel=1e-4)
        few, many = (gpu.of(lambda: fit_temperature(several, halvings)) for halvings in (10, 50))
        assert len(few) == len(many)


# ---- losses that are read later ----


def small_training(device: str, steps: int = 250, broken: int | None = None, clip: float = 0.01):
    "A line through points; from some step on its loss is not a number."
    w, x = torch.zeros(3).to(device).requires_grad_(), normal(20, 3).to(device)
    y = x @ torch.tensor([1.0, -2.0, 0.5]).to(device)
    done = iter(range(steps + 1))

    def loss(rows: Tensor, generator: Any) -> Tensor:
        bad = float("nan") if broken is not None and next(done) >= broken else 0.0
        return (x[rows] @ w - y[rows] + bad).square().mean()

    draw = lambda generator: torch.randint(20, (5,), generator=generator).to(device, non_blocking=True)
    return fit(w, loss, draw, TrainConfig(steps=steps, lr=1e-2, clip=clip)), w


def test_losses_are_read_in_blocks_and_are_those_of_the_cpu():
    here, w = small_training("cpu")
    losses = run(here)
    with pretend_cuda() as gpu:
        there, moved = small_training("cuda")
        before = len(gpu.waits)
        updates = [*there]
        assert len(gpu.waits) - before == 3  # after 100, 200 and 250 steps
        assert [u.step for u in updates] == [*range(1, 251)]
        torch.testing.assert_close([u.loss for u in updates], losses, rtol=1e-4, atol=1e-6)
        assert len(gpu.waits) - before == 3
        torch.testing.assert_close(host(moved), w.detach(), rtol=1e-4, atol=1e-6)


def test_a_progress_bar_in_a_log_file_asks_for_no_loss():
    with pretend_cuda() as gpu:
        there, _ = small_training("cuda", 50)
        before = len(gpu.waits)
        for _ in progress(there):
            pass
        assert len(gpu.waits) - before == 1


@pytest.mark.parametrize("broken", [0, 3, 7])
def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_step_before(broken):
    "Nobody looked for ten steps; the weights, their moments and the step are those before the bad one."
    good, w = small_training("cpu", 10)
    for _ in range(broken):
        next(good)
    state = good.state_dict()
    with pretend_cuda():
        there, moved = small_training("cuda", 10, broken)
        with pytest.raises(NumbersError, match=rf"step {broken + 1}: .* still those of step {broken}$"):
            run(there)
        torch.testing.assert_close(host(moved), w.detach(), rtol=1e-4, atol=1e-6)
        found = there.state_dict()
        assert int(found["step"]) == broken
        for name in found.keys() & state.keys() - {"step"} if broken else ():
            torch.testing.assert_close(host(found[name]), state[name], rtol=1e-4, atol=1e-6)


def test_a_state_is_read_before_it_is_stored_and_goes_on_on_the_other_device():
    whole, w = small_training("cpu", 10)
    run(whole)
    with pretend_cuda():
        there, _ = small_training("cuda", 10)
        for _ in range(4):
            next(there)
        state = {name: host(x).cpu() for name, x in there.state_dict().items()}
    rest, moved = small_training("cpu", 10)
    rest.load_state_dict(state)
    run(rest)
    torch.testing.assert_close(moved.detach(), w.detach(), rtol=1e-4, atol=1e-6)


def test_the_best_weights_are_kept():
    with pretend_cuda():
        model = torch.nn.Linear(3, 1).to("cuda")
        x = normal(8, 3).to("cuda")
        steps = fit(model, lambda x, g: model(x).square().mean(), lambda g: x, TrainConfig(steps=6, lr=0.1))
        best = keep_best(steps, model, lambda: -model(x).square().mean().item(), every=2)
        assert len(run(best)) == 6 and best.best_step == 6


# ---- can these tests fail? ----


@pytest.mark.parametrize(
    "fault, where",
    [
        (lambda z: z.sum().item(), "_local_scalar_dense"),
        (lambda z: float(z.max()), "_local_scalar_dense"),
        (lambda z: bool((z > 0).any()), "_local_scalar_dense"),
        (lambda z: z.tolist(), "tolist"),
        (lambda z: z.cpu(), "to the CPU"),
        (lambda z: z.nonzero(), "nonzero"),
        (lambda z: z[z > 0], "a boolean index"),
        (lambda z: z[torch.arange(2)], "an index on the CPU"),
        (lambda z: torch.equal(z, z), "equal"),
        (lambda z: z + torch.ones(Z).to(z), "to the GPU without non_blocking"),
        (lambda z: torch.tensor([1.0], device=z.device), "a tensor of Python's numbers"),
        (lambda z: z.clone().copy_(torch.zeros(TASKS, Z)), "copy_ between the devices"),
    ],
)
def test_a_wait_that_is_put_into_an_inner_loop_is_found(fault, where):
    with pretend_cuda() as gpu:
        world = World("cuda")
        batch = world.tasks.batch(world.tasks.all_ids)
        model = world.hnet().requires_grad_(False)

        def energy(z: Tensor) -> Tensor:
            fault(z)
            return NET.loss(model(z), batch)

        def waits(steps: int, energy) -> list[str]:
            return gpu.of(lambda: last(descend(energy, world.latents[0], steps=steps, lr=0.1)))

        assert not waits(3, lambda z: NET.loss(model(z), batch))
        assert len(waits(3, energy)) == 3 and where in waits(1, energy)[0] and "test_cuda.py" in waits(1, energy)[0]


@pytest.mark.parametrize(
    "fault",
    [
        lambda z: z + torch.ones(Z),
        lambda z: z @ torch.ones(Z, Z),
        lambda z: torch.cat([z, torch.ones(1, Z)]),
        lambda z: torch.where(torch.ones(Z, dtype=torch.bool), z, 0),
        lambda z: torch.randn(Z, generator=torch.Generator(), device=z.device),
        lambda z: z.clone().normal_(generator=torch.Generator()),
        lambda z: z.numpy(),
    ],
)
def test_two_devices_in_one_operator_are_found(fault):
    with pretend_cuda():
        z = normal(TASKS, Z).to("cuda")
        with pytest.raises((DeviceError, TypeError)):
            fault(z)


def test_a_parameter_is_a_parameter_there_and_copies_of_modules_are_their_own():
    with pretend_cuda():
        model = torch.nn.Linear(2, 1).to("cuda")
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.weight += 1
        assert isinstance(model.weight, torch.nn.Parameter) and model.weight.is_cuda
        torch.testing.assert_close(host(twin.weight), host(model.weight) + 1)
