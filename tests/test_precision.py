"Fewer digits: what a GPU makes of single precision with TF32, rounded on a CPU, and bfloat16; stated tolerances."

import pytest
import torch
from test_cuda import NET, PATHS, TRAININGS, World
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyperclip_nb.core.devices import matrix_products
from hyperclip_nb.evaluation.recipe import NEEDS, Recipe, fields_of

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.addmm_, aten.baddbmm, aten.baddbmm_, aten.mv, aten.addmv}


def rounded(x: Tensor) -> Tensor:
    "To ten bits of mantissa, to the nearest; halves away from zero, as the hardware does."
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class TF32(TorchDispatchMode):
    "Rounds what is multiplied; sums stay as they are."

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        packet = function.overloadpacket
        if packet in PRODUCTS and arguments[0].dtype == torch.float32:
            self.products += 1
            first = len(arguments) - 2 if packet in (aten.mm, aten.bmm, aten.mv) else 1
            arguments = (*arguments[:first], *map(rounded, arguments[first : first + 2]), *arguments[first + 2 :])
        return function(*arguments, **(named or {}))


def difference(a: Tensor, b: Tensor) -> float:
    "Root mean square, as a share of the numbers' own."
    return ((a - b).norm() / b.norm()).item()


def test_rounding_is_that_of_ten_bits():
    x = torch.randn(1_000, generator=torch.Generator().manual_seed(0))
    error = ((rounded(x) - x) / x).abs()
    assert 2**-12 < error.max() <= 2**-11 and torch.equal(rounded(rounded(x)), rounded(x))
    assert rounded(torch.tensor([1 + 2**-10, 1 + 2**-12])).tolist() == [1 + 2**-10, 1.0]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_with_tf32(name):
    exact, _ = TRAININGS[name](World("cpu"), 4)
    with TF32() as mode:
        near, _ = TRAININGS[name](World("cpu"), 4)
    losses = [torch.tensor([u.loss for u in updates], dtype=torch.float64) for updates in (near, exact)]
    assert mode.products and 0 < difference(*losses) < 0.005


@pytest.mark.parametrize("name", PATHS)
def test_a_path_with_tf32(name):
    exact = PATHS[name](World("cpu"), 4)
    with TF32() as mode:
        near = PATHS[name](World("cpu"), 4)
    assert mode.products and 0 < difference(near.detach(), exact.detach()) < 0.03


@pytest.mark.parametrize("how", ["parameters", "autocast"])
@pytest.mark.parametrize("generator", ["hnet", "hvae"])
def test_a_generator_in_bfloat16(generator, how):
    world = World("cpu")
    model, z = getattr(world, generator)().requires_grad_(False), world.latents[0]
    exact, batch = model(z), world.tasks.batch(world.tasks.all_ids, "query")
    if how == "parameters":
        near = model.to(torch.bfloat16)(z.to(torch.bfloat16)).float()
    else:
        with torch.autocast("cpu", torch.bfloat16):
            near = model(z).float()
    assert 0 < difference(near, exact) < 0.05
    logits = [NET.logits(w, batch).nan_to_num(neginf=0.0) for w in (near, exact)]
    assert difference(*logits) < 0.05


@pytest.mark.parametrize("how", ["parameters", "autocast"])
@pytest.mark.parametrize("kind", ["residual", "published", "published_second"])
def test_a_denoiser_in_bfloat16(kind, how):
    world = World("cpu")
    net, z, t = world.ldm(kind).denoiser.requires_grad_(False), world.latents[0], torch.tensor(7)
    exact = net(z, t, world.e)
    if how == "parameters":
        near = net.to(torch.bfloat16)(z.to(torch.bfloat16), t, world.e.to(torch.bfloat16)).float()
    else:
        with torch.autocast("cpu", torch.bfloat16):
            near = net(z, t, world.e).float()
    assert 0 < difference(near, exact) < 0.05


def test_the_switch_is_put_back_and_the_setting_belongs_to_every_part():
    switch = torch.backends.cuda.matmul
    for before in False, True:
        with matrix_products("tf32" if before else "float32"):
            with pytest.raises(KeyError), matrix_products("float32" if before else "tf32"):
                assert switch.allow_tf32 is not before
                raise KeyError
            assert switch.allow_tf32 is before
    assert not switch.allow_tf32 and Recipe().precision == "float32"
    assert all("precision" in fields_of(part) for part in NEEDS)
