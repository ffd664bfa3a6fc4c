"Classes as other people's code uses them: modules, types of numbers, threads, torch's transforms, errors at the door."

import copy
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hyperclip_nb as hc
from hyperclip_nb.core.blocks import NumbersError, Standardizer
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import fit, run
from hyperclip_nb.dataset.batches import TaskBatch
from hyperclip_nb.diffusion.denoisers import DENOISERS, DenoiserConfig
from hyperclip_nb.diffusion.hyperldm import LDMConfig
from hyperclip_nb.guidance.hyperclip import ContrastConfig, HyperCLIPConfig
from hyperclip_nb.hypernet.hvae import HVAEConfig, HVAELoss
from hyperclip_nb.hypernet.metatrain import Episodes

ROOT = Path(__file__).resolve().parent.parent

TYPES = torch.float32, torch.float64, torch.bfloat16


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed, "tests"))


def some_ldm(kind: str = "residual") -> hc.HyperLDM:
    size = DenoiserConfig(hidden=16, depth=2)
    diffusion = hc.DiffusionConfig(timesteps=20, schedule="cosine", prediction="v")
    return hc.HyperLDM.make(5, 3, Standardizer(2 * normal(40, 3) + 1), diffusion, size, DENOISERS[kind])


def test_hyperldm_is_a_module():
    "Moving it moves all of it, and its state is the denoiser's, as it was kept before, and the standardiser's."
    ldm, e = some_ldm(), normal(4, 5)
    assert isinstance(ldm, nn.Module)
    state = ldm.state_dict()
    assert {name.removeprefix("denoiser.") for name in state if name.startswith("denoiser.")} == {
        *ldm.denoiser.state_dict()
    }
    assert {name for name in state if not name.startswith("denoiser.")} == {"standardizer.mean", "standardizer.std"}
    again = some_ldm()
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.load_state_dict(state)
    sample = lambda model: model(e, generator=seeded(0), gamma=1.5, samples=2, check=False)
    assert torch.equal(sample(ldm), sample(again)) and sample(ldm).shape == (2, 4, 3)
    assert torch.equal(sample(ldm), ldm.generate(e, generator=seeded(0), gamma=1.5, samples=2, check=False))


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_hyperldm_samples_in_every_type(kind, sampler):
    "The same seed gives the same noise, so half precision differs by rounding only."
    e, single = normal(4, 5), some_ldm(kind)
    sample = lambda model, x: model(x, generator=seeded(0), gamma=1.5, sampler=sampler, check=False)
    exact = sample(single, e)
    half = copy.deepcopy(single).to(torch.bfloat16)
    assert sample(half, e).dtype == torch.bfloat16
    assert (sample(half, e).float() - exact).abs().max() < 0.1 * exact.abs().max()
    double = copy.deepcopy(single).double()
    assert sample(double, e).dtype == torch.float64 and sample(double, e).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        cast = sample(single, e)
    assert (cast.float() - exact).abs().max() < 0.1 * exact.abs().max() and not torch.equal(cast.float(), exact)


def trained(seed: int) -> list[float]:
    "Losses of a small network with dropout, whose loss draws from torch's global generator too."
    bare = lambda *sizes: nn.utils.skip_init(nn.Linear, *sizes)  # their own start would draw, too
    layers = nn.Sequential(bare(6, 32), nn.Dropout(0.5), bare(32, 1))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(normal(*parameter.shape, seed=seed))
    loss = lambda x, _: (layers(x + 0.1 * torch.randn(x.shape)) - 1).square().mean()
    batches = lambda generator: torch.randn(16, 6, generator=generator)
    return run(fit(layers, loss, batches, hc.TrainConfig(steps=60, seed=seed)))


def test_trainings_in_threads_are_those_one_after_another():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    alone = [trained(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(trained, (0, 1)))
    assert together == alone and alone[0] != alone[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_made_in_threads_are_those_one_after_another():
    make = lambda seed: DENOISERS["residual"](3, 5, DenoiserConfig(hidden=64), seed).state_dict()
    alone = [make(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(make, range(8)))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, together) for name in a)


@pytest.mark.parametrize("dtype", TYPES)
def test_tasks_in_every_type(ragged, dtype):
    "A set that is moved gathers what the batches of the other become when they are moved; `to` changes nothing else."
    moved, ids = ragged.to(dtype), ragged.all_ids
    for part in "support", "query", "all":
        for a, b in zip(vars(moved.batch(ids, part)).values(), vars(ragged.batch(ids, part).to(dtype)).values()):
            assert a.dtype == b.dtype and torch.equal(a, b)
    both = moved.ragged(ids, "all").to("cpu", torch.float32), ragged.ragged(ids, "all")
    assert [len(part) for part in both[0].parts] == [len(part) for part in both[1].parts]
    assert {part.images.dtype for part in both[0].parts} == {torch.float32}
    assert ragged.images.dtype == torch.float32 and moved.embeddings().dtype == dtype
    batch = moved.batch(ids)
    assert (batch.labels.dtype, batch.mask.dtype, batch.index.dtype) == (torch.int64, torch.bool, torch.int64)


NET = hc.AdapterNet(8, 4)


def generators() -> dict[str, nn.Module]:
    "An HNet and an HVAE of the same small base network."
    w = normal(2, 20, NET.size)
    hvae = hc.HVAE.make(NET, w, w[0, 0], HVAEConfig(latent_size=16, hidden=(12,)))
    return {"hnet": hc.HNet(NET, 16, hidden=(12,)), "hvae": hvae}


@pytest.mark.parametrize("kind", ["hnet", "hvae"])
class TestGenerators:
    def test_torch_func(self, kind):
        "vmap is the batch, jacrev is autograd's Jacobian, and parameters are a function's arguments like others."
        model, z = generators()[kind], normal(3, 16)
        one = lambda x: model(x[None])[0]
        assert torch.allclose(torch.vmap(one)(z), model(z), atol=1e-5)
        plain = torch.autograd.functional.jacobian(one, z[0])
        assert torch.allclose(torch.func.jacrev(one)(z[0]), plain, atol=1e-5) and plain.abs().max() > 0
        tangent = torch.func.jvp(model, (z[:1],), (z[1:2],))[1]
        assert torch.allclose(tangent[0], plain @ z[1], atol=1e-4)
        loss = lambda parameters: torch.func.functional_call(model, parameters, (z,)).square().sum()
        parameters = dict(model.named_parameters())
        mine = torch.func.grad(loss)(parameters)
        theirs = torch.autograd.grad(loss(parameters), parameters.values(), allow_unused=True)
        assert all(b is None or torch.allclose(a, b, atol=1e-3) for a, b in zip(mine.values(), theirs))
        two = {name: torch.stack([x, x + 0.1]) for name, x in model.state_dict().items()}  # an ensemble of models
        call = lambda state, x: torch.func.functional_call(model, state, (x,))
        assert torch.allclose(torch.vmap(call, (0, None))(two, z)[0], model(z), atol=1e-5)

    def test_compile(self, kind):
        "In one graph, with and without gradients, and the same gradients."
        model, z = generators()[kind], normal(3, 16).requires_grad_()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(z), model(z), atol=1e-5)
        mine, theirs = (torch.autograd.grad(f(z).square().sum(), z)[0] for f in (compiled, model))
        assert torch.allclose(mine, theirs, atol=1e-4)
        with torch.no_grad():
            assert torch.allclose(compiled(z[:1]), model(z[:1]), atol=1e-5)

    @pytest.mark.parametrize("dtype", TYPES)
    def test_types(self, kind, dtype):
        "Forward, back, and the single latent of a rectified layer, which takes a way of its own."
        exact, model, z = generators()[kind], generators()[kind].to(dtype), normal(3, 16).to(dtype)
        for some in z, z[:1]:
            with torch.no_grad():
                w = model(some)
            assert w.dtype == dtype and (w.float() - exact(some.float())).abs().max() < 0.1
        model(z).float().square().sum().backward()
        assert all(p.grad is None or (p.grad.dtype == dtype and p.grad.isfinite().all()) for p in model.parameters())

    def test_autocast(self, kind):
        model, z = generators()[kind], normal(3, 16)
        with torch.autocast("cpu", torch.bfloat16):
            w = model(z)
            with torch.no_grad():
                single = model(z[:1])
        assert not torch.equal(w.float(), model(z)) and (w.float() - model(z)).abs().max() < 0.1
        assert (single.float() - model(z[:1])).abs().max() < 0.1
        w.float().square().sum().backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_error_of_an_hvae_under_autocast():
    "What is computed by hand elsewhere is plain there."
    model, w = generators()["hvae"], normal(4, NET.size)
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_var = model.encode(w)
        error = model.squared_error(mean, model.read(w))
    mean, _ = model.encode(w)
    exact = ((model(mean) - w) / model.scaler.std).square().sum(1)
    assert (error.float() / exact - 1).abs().max() < 0.1 and log_var.isfinite().all()


def small_batch(dtype: torch.dtype = torch.float32) -> TaskBatch:
    "Three tasks of five pictures and four answers."
    true = lambda *shape: torch.ones(*shape) > 0
    labels = torch.randint(4, (3, 5), generator=seeded(1))
    x = normal(3, 5, 8), labels, true(3, 5), normal(3, 4, 8, seed=1), true(3, 4), torch.arange(3)
    return TaskBatch(*x).to(dtype)


@pytest.mark.parametrize("dtype", [*TYPES, "autocast"])
def test_the_adapter_in_every_type(dtype):
    "Its loss, its gradient by hand, and an adaptation, beside those of single precision."
    model, start = generators()["hnet"], hc.Adaptation(steps=3)

    def numbers(model, batch):
        w = model(model.z0.detach().expand(3, -1)).detach()
        loss = NET.loss(w, batch)
        gradient = torch.empty_like(w)
        again = NET.loss_and_gradient(w, batch, gradient)
        return loss, again, gradient, hc.adapt(model, model.z0.detach(), batch, start)

    exact = numbers(model, small_batch())
    if dtype == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = numbers(model, small_batch())
    else:
        found = numbers(copy.deepcopy(model).to(dtype), small_batch(dtype))
        assert {x.dtype for x in found} == {dtype}
    for mine, theirs in zip(found, exact):
        assert (mine.float() - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_the_adapter_under_torch_func_and_compile():
    w, batch = 0.1 * normal(3, NET.size), small_batch()
    loss = lambda w: NET.loss(w, batch)
    assert torch.allclose(torch.vmap(loss)(torch.stack([w, 2 * w]))[1], loss(2 * w), atol=1e-3)
    by_hand = torch.empty_like(w)
    NET.loss_and_gradient(w, batch, by_hand)
    assert torch.allclose(torch.func.grad(lambda w: loss(w).sum())(w), by_hand, atol=1e-3)
    assert torch.allclose(torch.compile(loss, fullgraph=True, backend="aot_eager")(w), loss(w), atol=1e-3)


NAN = float("nan")


def doors() -> dict[str, tuple]:
    "What is called with a wrong tensor, and a right one to spoil."
    hnet, hvae = generators().values()
    clip, ldm = hc.HyperCLIP(NET, 5, seed=0), some_ldm()
    questions, latents = normal(6, 5), normal(6, 16)
    regression = hc.QuestionRegression(questions, latents, list("aabbcc"), size=2)
    batch, start, draw = small_batch(), hnet.z0.detach(), seeded(0)
    quick = hc.TrainConfig(steps=1)
    return {
        "HNet": (hnet, normal(3, 16)),
        "HVAE": (hvae, normal(3, 16)),
        "HVAE.encode": (hvae.encode, normal(3, NET.size)),
        "adapter_logits: w": (lambda w: hc.adapter_logits(w, batch.images, batch.answers, NET), normal(3, NET.size)),
        "adapter_logits: images": (lambda x: hc.adapter_logits(hnet(latents[:3]), x, batch.answers, NET), batch.images),
        "adapt": (lambda z: hc.adapt(hnet, z, batch, hc.Adaptation(steps=1)), start),
        "descend": (lambda z: [*hc.descend(lambda z: z.square().sum(1), z, steps=1, lr=0.1)], normal(3, 4)),
        "HyperCLIP.encode_text": (clip.encode_text, normal(2, 5)),
        "HyperCLIP.encode_weights": (clip.encode_weights, normal(2, NET.size)),
        "guide: e": (lambda e: [*hc.guide(clip, hnet, start, e, hc.Guidance(steps=1))], normal(2, 5)),
        "guide: start": (lambda z: [*hc.guide(clip, hnet, z, questions, hc.Guidance(steps=1))], start),
        "QuestionRegression": (regression, questions),
        "HyperLDM": (lambda e: ldm(e, generator=draw, check=False), normal(4, 5)),
        "train_hyperldm: latents": (lambda z: hc.train_hyperldm(ldm, z, questions, quick), normal(6, 3)),
        "train_hyperldm: embeddings": (lambda e: hc.train_hyperldm(ldm, normal(6, 3), e, quick), questions),
    }  # fmt: skip


@pytest.mark.parametrize("door", doors())
def test_what_is_no_tensor_gets_a_sentence_at_the_door(door):
    "It names what was expected and what came; the right one passes."
    call, right = doors()[door]
    call(right)
    if door != "descend":  # takes latents of any size
        sizes = [*right.shape[:-1], right.shape[-1] - 1]
        with pytest.raises(ValueError, match=rf"expected .*{re.escape(str(sizes))}"):
            call(right[..., :-1])
    for wrong, told in (
        (None, "got None"),
        (right.tolist(), "got list"),
        (right.numpy(), "got ndarray"),
        (right.long(), "got torch.int64"),
    ):
        with pytest.raises(ValueError, match=f"expected .*{told}"):
            call(wrong)


@pytest.mark.parametrize("door", ["guide: e", "guide: start", "HyperLDM", "train_hyperldm: latents"])
def test_numbers_that_are_none_are_refused_at_the_door(door):
    call, right = doors()[door]
    for wrong in NAN, float("inf"):
        spoilt = right.clone()
        spoilt.view(-1)[1] = wrong
        with pytest.raises(NumbersError, match=f"expected finite numbers, got 1 of {right.numel()} that are not"):
            call(spoilt)


@pytest.mark.parametrize("kind", ["hnet", "hvae"])
def test_a_type_that_is_not_the_parameters_is_refused(kind):
    with pytest.raises(ValueError, match=r"z: expected latents \[T, 16\] of torch.float64, .* got torch.float32"):
        generators()[kind].double()(normal(3, 16))
    with pytest.raises(ValueError, match="images: expected features .* of torch.float32, .* got torch.bfloat16"):
        NET.loss(normal(3, NET.size), small_batch(torch.bfloat16))


CONFIGS = hc.TrainConfig, hc.Guidance, hc.Adaptation, hc.DiffusionConfig, DenoiserConfig, LDMConfig, Episodes
CONFIGS += HVAEConfig, HVAELoss, HyperCLIPConfig, ContrastConfig


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_settings_of_another_type_get_a_sentence(config):
    "Every field of every configuration, whatever it is set to; `None` passes where it is a default or an option."
    for field in fields(config):
        wrong = ["many", NAN, [1], object(), torch.zeros(2)]
        wrong += [None] * ("None" not in str(field.type))
        for value in wrong:
            with pytest.raises(ValueError, match=rf"{field.name}.*expected|expected.*{field.name}"):
                config(**{field.name: value})


SNIPPET = """
import torch

import hyperclip_nb as hc

config = hc.TrainConfig(steps=100, lr=1e-3)
path = hc.trajectory(hc.descend(lambda z: z.square().sum(1), torch.zeros(3, 8), steps=config.updates, lr=0.1))
net = hc.HNet(hc.AdapterNet(8, 4))
print(path.shape, net(path[-1]).shape)
"""
PLANTED = {
    "hc.HyperCLP": "Module has no attribute",
    'hc.TrainConfig(steps="many")': "incompatible type",
    'hc.descend(lambda z: z.sum(1), path[0], steps=3, lr=0.1, optimizer="adm")': "incompatible type",
}


def test_a_type_checker_finds_three_planted_errors(tmp_path):
    "And none in what is right: the package's types are those that its users see."
    pytest.importorskip("mypy", reason="needs a type checker: pip install mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET + "\n".join(PLANTED) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "mypy.ini"), str(snippet)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    found = {int(re.search(r":(\d+): error", line)[1]): line for line in said if ": error:" in line}
    first = SNIPPET.count("\n") + 1
    assert [*found] == [first, first + 1, first + 2], said
    assert all(words in found[first + i] for i, words in enumerate(PLANTED.values())), said
