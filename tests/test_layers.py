import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.fast import layers
from hyperclip_nb.basenet.fast.layers import (
    ActiveColumns,
    WideLinear,
    forget_gradients,
    large_linear,
    product,
    squared_distance,
    with_one,
)
from hyperclip_nb.core.files import load_tensors, save_tensors
from hyperclip_nb.core.training import TrainConfig, fit
from hyperclip_nb.hypernet.hypernetworks import HNet


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(inputs, outputs, rectified=False):
    "A wide layer and the `nn.Linear` that it stands for."
    plain = torch.nn.Linear(inputs, outputs, dtype=torch.float64)
    return WideLinear(plain.weight, plain.bias, rectified), plain


def grads(layer, z, of):
    found = torch.autograd.grad(of(layer(z.relu())), [z, *layer.parameters()])
    return [g.mT if isinstance(layer, WideLinear) and i == 1 else g for i, g in enumerate(found)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 60),
    asleep=st.integers(0, 12),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("rectified", [False, True])
def test_a_wide_layer_is_a_linear_layer(rectified, rows, inputs, outputs, asleep, seed):
    wide, plain = pair(inputs, outputs, rectified)
    z = draw(rows, inputs, seed=seed)
    z[:, :asleep] = -1
    z.requires_grad_()
    torch.testing.assert_close(wide(z.relu()), plain(z.relu()))
    with torch.no_grad():
        torch.testing.assert_close(wide(z.relu()), plain(z.relu()))
    for mine, theirs in zip(*(grads(layer, z, lambda out: out.pow(3).sum()) for layer in (wide, plain))):
        torch.testing.assert_close(mine, theirs)


def test_a_wide_layer_has_second_derivatives():
    wide, plain = pair(6, 40, True)
    z, found = draw(4, 6), []
    z[:, 2:] = -1
    for layer in wide, plain:
        here = z.clone().requires_grad_()
        slopes = torch.autograd.grad(layer(here.relu()).pow(3).sum(), [here, *layer.parameters()], create_graph=True)
        found.append([*torch.autograd.grad(sum(s.square().sum() for s in slopes), [here, *layer.parameters()])])
    torch.testing.assert_close(found[0][1].mT, found[1][1])
    for i in 0, 2:
        torch.testing.assert_close(found[0][i], found[1][i])


def test_zeros_that_are_no_relus_have_gradients():
    wide, plain = pair(8, 40)
    u = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(*(torch.autograd.grad(layer(u).sum(), u)[0] for layer in (wide, plain)))
    with pytest.raises(ValueError, match=r"inputs \[T, 8\], got \[3, 7\]"):
        wide(u[:, :7])


def test_columns_are_added_when_their_units_wake_up():
    columns, bias, u = draw(9, 30), draw(30, seed=1), torch.zeros(4, 9, dtype=torch.float64)
    active, seen = ActiveColumns(columns, bias), set()
    for unit in 5, 1, 5, 8, 0:
        u[:] = 0
        u[unit % 4, unit] = 2.0
        units, gathered = active(u)
        seen.add(unit)
        assert set(units.tolist()) == seen and len(units) == len(seen)
        assert torch.equal(gathered, torch.cat([bias[None], columns[units]]))
        torch.testing.assert_close(with_one(u[:, units]) @ gathered, u @ columns + bias)
    factor = draw(30, seed=2)
    units, gathered = ActiveColumns(columns, bias, scale=factor)(u)
    assert torch.equal(gathered, torch.cat([bias[None], factor * columns[units]]))
    units, gathered = ActiveColumns(columns, bias, rectified=False)(u)  # every column has a gradient to hand on
    assert torch.equal(u[:, units], u) and torch.equal(gathered, torch.cat([bias[None], columns]))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 9),
    inner=st.integers(1, 9),
    columns=st.integers(1, 300),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_wide_product_is_a_product(threads, monkeypatch, rows, inner, columns, seed, dtype):
    "By either library, of transposed and cut matrices, into given memory, and without a trace for autograd."
    monkeypatch.setattr(layers, "_LARGE", seed % 2 * 1_000)
    left, right = draw(rows, inner, seed=seed).to(dtype), draw(inner + 1, columns + 3, seed=seed + 1).to(dtype)[1:, 3:]
    out = torch.full((rows, columns + 5), torch.nan, dtype=dtype)
    found = product(left.requires_grad_(), right, out[:, 5:])
    torch.testing.assert_close(found, (left @ right).detach())
    assert found.data_ptr() == out[:, 5:].data_ptr() and out[:, :5].isnan().all() and not found.requires_grad
    torch.testing.assert_close(product(left.mT.contiguous().mT, right), found)
    assert torch.get_num_threads() == threads


def test_a_wide_product_takes_one_thread_of_numpys_and_gives_it_back(monkeypatch):
    blas = lambda: [library.num_threads for library in layers._numpy_threads().lib_controllers]
    seen, before, matmul, threads = [], blas(), layers.np.matmul, torch.get_num_threads()
    monkeypatch.setattr(layers, "_LARGE", 0)
    monkeypatch.setattr(layers.np, "matmul", lambda *given, **options: seen.append(blas()) or matmul(*given, **options))
    torch.set_num_threads(1)
    product(torch.ones(2, 3), torch.ones(3, 4))
    torch.set_num_threads(threads)
    assert blas() == before and seen == [[1] * len(before)]


@pytest.mark.parametrize("rows, inputs, outputs", [(3, 7, 40), (2, 5_000, 3), (1, 2_048, 2)])
def test_large_linear_is_linear_to_the_second_derivative(rows, inputs, outputs):
    given = [draw(rows, inputs).requires_grad_(), draw(outputs, inputs, seed=1).requires_grad_()]
    both = large_linear(*given), F.linear(*given)
    torch.testing.assert_close(*both)
    for mine, theirs in zip(*(torch.autograd.grad(out.square().sum(), given, retain_graph=True) for out in both)):
        torch.testing.assert_close(mine, theirs)
    slopes = [torch.autograd.grad(out.pow(3).sum(), given, create_graph=True) for out in both]
    for mine, theirs in zip(*(torch.autograd.grad(sum(s.square().sum() for s in slope), given) for slope in slopes)):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(large_linear(given[0][0], given[1]), F.linear(given[0][0], given[1]))


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("kind", ["many inputs", "many outputs"])
def test_gradients_in_used_memory_train_the_same_network(kind, uses):
    "Also where the layer is used twice in a step, and where somebody throws a gradient away in between."
    if kind == "many inputs":
        x, target, plain = draw(6, 3_000), draw(6, 4), torch.nn.Linear(3_000, 4, bias=False, dtype=torch.float64)
        mine = torch.nn.Linear(3_000, 4, bias=False, dtype=torch.float64)
        mine.load_state_dict(plain.state_dict())
        weight, out = (lambda: mine.weight), lambda x: large_linear(x, mine.weight)
    else:
        x, target, (mine, plain) = draw(6, 4), draw(6, 3_000), pair(4, 3_000)
        weight, out = (lambda: mine.columns), mine

    def training(layer, out):
        return fit(
            layer,
            lambda x, generator: sum((out((i + 1) * x) - target).square().mean() for i in range(uses)),
            lambda generator: x + torch.randn(x.shape, generator=generator, dtype=x.dtype),
            TrainConfig(steps=6, clip=0.5),
        )

    like = lambda tensor: tensor if kind == "many inputs" else tensor.mT
    places = set()
    for fast, slow in zip(training(mine, out), training(plain, plain)):
        assert fast.loss == pytest.approx(slow.loss) and fast.grad_norm == pytest.approx(slow.grad_norm)
        torch.testing.assert_close(like(weight().grad), plain.weight.grad)
        places.add(weight().grad.data_ptr())
        if fast.step == 3:
            weight().grad = None
    torch.testing.assert_close(like(weight()), plain.weight)
    if uses == 1:
        assert len(places) <= 2


def test_a_gradient_that_somebody_holds_is_not_overwritten():
    "Neither where gradients add up, nor where a variable or a view still refers to the last one."
    x, weight = draw(6, 3_000), torch.nn.Parameter(draw(4, 3_000))
    step = lambda factor: (factor * large_linear(x, weight)).sum().backward()
    once = torch.autograd.grad(F.linear(x, weight).sum(), weight)[0]
    step(1)
    step(2)  # adds to the first
    torch.testing.assert_close(weight.grad, 3 * once)
    for hold in (lambda grad: grad), (lambda grad: grad.mT):
        kept, weight.grad = hold(weight.grad), None
        before = kept.clone()
        step(5)
        assert torch.equal(kept, before)
        torch.testing.assert_close(weight.grad, 5 * once)
    place, kept, weight.grad = weight.grad.data_ptr(), None, None
    step(7)
    assert weight.grad.data_ptr() == place  # nobody held that one
    torch.testing.assert_close(weight.grad, 7 * once)
    forget_gradients(weight)
    assert weight.grad is None and not any(g is not None for w, g in layers._last_gradients.items() if w is weight)
    step(1)
    torch.testing.assert_close(weight.grad, once)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_gradient_that_can_be_differentiated_is_not_reused():
    x, weight = draw(6, 3_000), torch.nn.Parameter(draw(4, 3_000))
    large_linear(x, weight).pow(3).sum().backward(create_graph=True)
    first, weight.grad = weight.grad.square().sum(), None
    large_linear(x, weight).sum().backward()
    weight.grad = None
    first.backward()
    other = weight.detach().clone().requires_grad_()
    slope = torch.autograd.grad(F.linear(x, other).pow(3).sum(), other, create_graph=True)[0]
    torch.testing.assert_close(weight.grad, torch.autograd.grad(slope.square().sum(), other)[0])


def test_squared_distance_is_what_it_says():
    (wide, plain), x, target = pair(7, 50), draw(4, 7).requires_grad_(), draw(4, 50, seed=3)
    found = []
    for layer, value in (wide, squared_distance(x, wide, target)), (plain, (plain(x) - target).square().sum(1)):
        found.append([value, *torch.autograd.grad(value @ torch.arange(4.0).double(), [x, *layer.parameters()])])
    found[0][2] = found[0][2].mT
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs)
    wide.requires_grad_(False)
    (slope,) = torch.autograd.grad(squared_distance(x, wide, target) @ torch.arange(4.0).double(), x)
    torch.testing.assert_close(slope, found[1][1])
    wide.requires_grad_(True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(
            torch.autograd.grad(squared_distance(x, wide, target).sum(), x, create_graph=True)[0].sum(), x
        )


def test_a_generator_is_saved_and_read(tmp_path):
    net = AdapterNet(8, 5)
    hnet, other = HNet(net, 6, (9,)), HNet(net, 6, (9,), generator=torch.Generator().manual_seed(1))
    save_tensors(tmp_path / "h.safetensors", hnet.state_dict(), {})
    other.load_state_dict(load_tensors(tmp_path / "h.safetensors")[0])
    z = draw(3, 6).float()
    assert (
        torch.equal(other(z), hnet(z))
        and other.head.columns.is_contiguous()
        and other.head.weight.shape == (net.size, 9)
    )
    with torch.no_grad():
        for some in z, z[:1]:
            torch.testing.assert_close(other(some), F.linear(hnet.body(some), hnet.head.weight, hnet.head.bias))


def test_the_state_of_a_linear_layer_fits():
    wide, plain = pair(5, 30)
    before = {"body.weight": draw(5, 3), "head.weight": draw(30, 5, seed=1), "head.bias": draw(30, seed=2)}
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(3, 5, bias=False, dtype=torch.float64), "head": wide})
    model.load_state_dict(before)
    assert (
        torch.equal(wide.columns, before["head.weight"].mT) and wide.columns.is_contiguous() and "head.weight" in before
    )
    with pytest.raises(RuntimeError, match="Missing"):
        wide.load_state_dict({"bias": plain.bias})
    with pytest.raises(RuntimeError, match="size mismatch"):
        wide.load_state_dict({"weight": plain.weight.mT, "bias": plain.bias})
