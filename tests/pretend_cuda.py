"""A GPU that is none: tensors that say `cuda`, hold their numbers on the CPU, and note where the host waits for them.

    with pretend_cuda() as gpu:
        x = torch.randn(3, device="cpu").to("cuda")     # noted in gpu.waits: a copy that the host waits for
        (x + torch.zeros(3))                            # raises, as on a GPU: two devices

What code does on a GPU is found out without one: which path it takes (`x.is_cuda`, `x.device`), with the right numbers;
whether all tensors of an operator are on one device; whether a generator is where its numbers go; and each place where
the host waits for the device (`item`, `bool`, `tolist`, `nonzero`, a boolean mask, `equal`, a copy between the two that
doesn't say `non_blocking`, an index on the CPU). What it can't find: wrong kernels, their speed, races between streams.

Why not torch's own fake tensors (`FakeTensorMode`)? They have no numbers, so nothing can be compared, and the first
`.item()` ends the run, even on the CPU; and with a CUDA build of torch 2.14 and no GPU they can't be differentiated
("hasPrimaryContext expects a valid device index").

A tensor is a wrapper of a CPU tensor; for torch's own machinery it is a tensor on the CPU, so that the backward pass
runs in this thread. That it is on a GPU is what its class says in Python, and what a mode makes of `device=`.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA, CPU, aten = torch.device("cuda", 0), torch.device("cpu"), torch.ops.aten
WAITS = {  # operators whose result, or its shape, the host must know
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
HERE = Path(__file__).name
OUTSIDE = "a copy between the devices while a graph is recorded: it would read the same address at every replay"


class DeviceError(RuntimeError):
    "What a GPU would refuse."


@dataclass
class Gpu:
    "What was noted."

    waits: list[str] = field(default_factory=list)  # "operator at file:line", one for each time the host waited
    operators: int = 0  # on the device
    launches: int = 0  # kernels, copies and graphs that the host starts: operators that make no view
    tape: list[tuple] | None = None  # of a graph that is being recorded
    replays: int = 0  # of graphs

    def of(self, work: Callable[[], Any]) -> list[str]:
        "The waits of some work."
        before = len(self.waits)
        work()
        return self.waits[before:]

    def wait(self, what: str) -> None:
        "Note that the host waited, and where in the package or in a test."
        if self.tape is not None:
            raise DeviceError(f"{what}: operation not permitted when stream is capturing")
        own = [
            frame
            for frame in traceback.extract_stack()
            if "site-packages" not in frame.filename
            and ("hyperclip_nb/" in frame.filename or "/tests/" in frame.filename)
            and Path(frame.filename).name != HERE
        ]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        self.waits.append(f"{what} at {place}")


_gpu = Gpu()


class CudaTensor(Tensor):
    "A CPU tensor that says it is on a GPU."

    x: Tensor  # its numbers

    @staticmethod
    def __new__(cls, x: Tensor, requires_grad: bool = False):
        return Tensor._make_wrapper_subclass(
            cls,
            x.shape,
            strides=x.stride(),
            storage_offset=x.storage_offset(),
            dtype=x.dtype,
            device=CPU,
            requires_grad=requires_grad,
        )

    def __init__(self, x: Tensor, requires_grad: bool = False):
        self.x = x

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"CudaTensor({self.x})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        named = named or {}
        if torch._C._current_graph_task_id() != -1:  # zeros that autograd made for a gradient that isn't there
            made = lambda x: x if isinstance(x, CudaTensor) or x.ndim == 0 or x.any() else CudaTensor(x)
            arguments, named = tree_map_only(Tensor, made, (arguments, named))
        given = [x for x in tree_flatten((arguments, named))[0] if isinstance(x, Tensor)]
        _check(function, given, arguments, named)
        _gpu.operators += 1
        if _gpu.tape is None and _starts_a_kernel(function):
            _gpu.launches += 1
        inner, inner_named = tree_map_only(CudaTensor, lambda t: t.x, (arguments, named))
        out = function(*inner, **inner_named)
        if function is aten.copy_.default and not isinstance(arguments[0], CudaTensor):
            return arguments[0]
        made = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        if _gpu.tape is not None:
            _gpu.tape.append((function, inner, inner_named, made))
        out = tree_map_only(Tensor, CudaTensor, out)
        return return_and_correct_aliasing(function, arguments, named, out)


def _starts_a_kernel(function) -> bool:
    "A view starts none, and neither does asking for memory."
    a_view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
    return not a_view and "empty" not in function._schema.name


def _check(function, given: list[Tensor], arguments: tuple, named: dict) -> None:
    "Raise for what a GPU would refuse, and note what the host waits for."
    outside = [x for x in given if not isinstance(x, CudaTensor)]
    if function in WAITS:
        _gpu.wait(str(function))
    elif function is aten.copy_.default:
        if outside and _gpu.tape is not None:
            raise DeviceError(OUTSIDE)
        blocking = not (arguments[2] if len(arguments) > 2 else named.get("non_blocking", False))
        if outside and (blocking or outside[0] is arguments[0]):
            _gpu.wait("copy_ between the devices")
    elif function in INDEXING:
        indices = [i for i in arguments[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            _gpu.wait("a boolean index")
        elif any(i is x for i in indices for x in outside):
            _gpu.wait("an index on the CPU")
        if any(x is not i for x in outside for i in indices if all(x is not j for j in indices) and x.ndim):
            raise DeviceError(f"{function}: expected all tensors on one device")
    elif function is not aten.fill_.Tensor and any(x.ndim or torch.Tag.pointwise not in function.tags for x in outside):
        raise DeviceError(f"{function}: expected all tensors on one device, got some on cuda and some on the CPU")
    for generator in named.values():
        if isinstance(generator, torch.Generator):
            raise DeviceError(f"{function}: expected a 'cuda' device type for generator but found 'cpu'")


class Graph:
    "In place of `torch.cuda.CUDAGraph`: does what was recorded again, in the same tensors, without its Python."

    def __init__(self):
        self.tape: list[tuple] = []

    def replay(self) -> None:
        _gpu.replays += 1
        _gpu.launches += 1
        for function, arguments, named, made in self.tape:
            again = [x for x in tree_flatten(function(*arguments, **named))[0] if isinstance(x, Tensor)]
            for mine, x in zip(made, again):
                if mine.data_ptr() != x.data_ptr():
                    mine.copy_(x)


@contextmanager
def _recording(graph: Graph) -> Iterator[None]:
    _gpu.tape = graph.tape
    try:
        yield
    finally:
        _gpu.tape = None


class _Move(torch.autograd.Function):
    "Between the devices, and back for the gradient."

    @staticmethod
    def forward(ctx, x: Tensor, there: bool, dtype: torch.dtype) -> Tensor:
        ctx.before = isinstance(x, CudaTensor), x.dtype
        inner = (x.x if isinstance(x, CudaTensor) else x).detach().to(dtype, copy=True)
        return CudaTensor(inner) if there else inner

    @staticmethod
    def backward(ctx, outer: Tensor):
        return _Move.apply(outer, *ctx.before), None, None


def _is_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _to(x: Tensor, *where, non_blocking=False, copy=False, device=None, dtype=None, other=None, **rest) -> Tensor:
    "`Tensor.to`, which may cross between the devices."
    where = [w for w in (*where, device, dtype, other) if w is not None]
    flags = [w for w in where if isinstance(w, bool)]
    non_blocking = non_blocking or (bool(flags) and flags[0])
    there, dtype = isinstance(x, CudaTensor), x.dtype
    for w in where:
        if isinstance(w, Tensor):
            there, dtype = isinstance(w, CudaTensor), w.dtype
        elif isinstance(w, torch.dtype):
            dtype = w
        elif isinstance(w, (str, torch.device)):
            there = _is_cuda(w)
    if there == isinstance(x, CudaTensor):
        return Tensor.to(x, dtype, copy=copy, **rest)
    if _gpu.tape is not None:
        raise DeviceError(OUTSIDE)
    _gpu.launches += 1
    if not there or not non_blocking:
        _gpu.wait("to the CPU" if isinstance(x, CudaTensor) else "to the GPU without non_blocking")
    return _Move.apply(x, there, dtype)


class _Devices(TorchFunctionMode):
    "Takes `device=` and `to` in hand."

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = dict(named or {})
        first = arguments[0] if arguments else None
        name = getattr(function, "__name__", "")
        if function is Tensor.to:
            return _to(*arguments, **named)
        if function in (Tensor.cpu, Tensor.cuda):
            return _to(first, "cpu" if function is Tensor.cpu else "cuda", **named)
        if isinstance(first, CudaTensor) and name in ("tolist", "numpy", "__array__"):
            if name != "tolist":
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
            _gpu.wait("tolist")
            return first.x.tolist()
        if isinstance(first, CudaTensor) and name == "quantile":  # inside, torch makes a tensor like this one
            return CudaTensor(function(first.x, *arguments[1:], **named))
        if _is_cuda(named.get("device")):
            if named.get("generator") is not None:
                raise DeviceError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
            if name in ("tensor", "as_tensor"):
                _gpu.wait("a tensor of Python's numbers")
            asked = named.pop("requires_grad", False)
            made = function(*arguments, **{**named, "device": CPU})
            return made if isinstance(made, CudaTensor) else CudaTensor(made).requires_grad_(asked)
        if named.get("device") is not None and any(isinstance(x, CudaTensor) for x in arguments):
            made = function(*arguments, **{**named, "device": CPU})  # zeros_like(x, device="cpu")
            return made.x if isinstance(made, CudaTensor) else made
        return function(*arguments, **named)


_apply = torch.nn.Module._apply


def _applied(self: torch.nn.Module, *arguments, **named) -> torch.nn.Module:
    "`Module.to`: its parameters change their class."
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _apply(self, *arguments, **named)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


_group = torch.optim.Optimizer._group_tensors_by_device_and_dtype


def _grouped(lists: list, *rest) -> dict:
    "As torch's optimisers group their tensors; what is grouped in C++ takes these for the CPU's."
    name = lambda key, given: (CUDA, key[1]) if isinstance(given[0][0][0], CudaTensor) else key
    return {name(key, found): found for key, found in _group(lists, *rest).items()}


@contextmanager
def pretend_cuda(
    memory: int = 2**40,  # bytes
) -> Iterator[Gpu]:
    "In this block `cuda` is there."
    global _gpu
    before, _gpu = _gpu, Gpu()
    state = lambda *device: torch.Generator().get_state()
    try:
        with (
            mock.patch.object(torch.cuda, "default_generators", (torch.Generator(),)),
            mock.patch.multiple(torch.cuda, CUDAGraph=Graph, graph=_recording, Stream=mock.MagicMock),
            mock.patch.multiple(torch.cuda, current_stream=mock.MagicMock(), stream=lambda stream: nullcontext()),
            mock.patch.object(torch.cuda, "mem_get_info", lambda device: (memory, memory)),
            mock.patch.object(torch.cuda, "get_rng_state", state),
            mock.patch.object(torch.cuda, "set_rng_state", lambda *state: None),
            mock.patch.object(torch.nn.Module, "_apply", _applied),
            mock.patch.object(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped)),
            _Devices(),
        ):
            yield _gpu
    finally:
        _gpu = before
