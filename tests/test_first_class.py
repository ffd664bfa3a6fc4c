"Classes as other people's code uses them: modules, types of numbers, threads, torch's transforms, errors at the door."

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import hyperclip_nb as hc
from hyperclip_nb.core.blocks import Standardizer
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import fit, run
from hyperclip_nb.diffusion.denoisers import DENOISERS, DenoiserConfig
from hyperclip_nb.hypernet.hvae import HVAEConfig

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
