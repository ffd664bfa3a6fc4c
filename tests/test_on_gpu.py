"""On a real GPU: the numbers of the CPU, and no wait in an inner loop. `test_cuda.py` asks the same without one."""

import warnings
from pathlib import Path

import pytest
import torch
from test_cuda import PATHS, TRAININGS, World, small_training

from hyperclip_nb.core.blocks import NumbersError
from hyperclip_nb.core.training import run

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def waits(work, steps: int) -> list[str]:
    "Where the host waited."
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work(World("cuda"), steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in noted if "synchroniz" in str(w.message)]


@pytest.mark.parametrize("name", TRAININGS)
def test_training_steps(name):
    (here, model), (there, moved) = (TRAININGS[name](World(device), 4) for device in ("cpu", "cuda"))
    torch.testing.assert_close([u.loss for u in there], [u.loss for u in here], rtol=1e-3, atol=1e-4)
    for (key, a), b in zip(model.state_dict().items(), moved.state_dict().values(), strict=True):
        assert b.is_cuda, key
        torch.testing.assert_close(b.cpu(), a, rtol=1e-2, atol=1e-3, msg=lambda text: f"{key}: {text}")


@pytest.mark.parametrize("name", PATHS)
def test_paths(name):
    here, there = (PATHS[name](World(device), 4) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here.detach(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", [*TRAININGS, *PATHS])
def test_no_wait_in_an_inner_loop(name):
    work = {**TRAININGS, **PATHS}[name]
    waits(work, 2)  # what is set up once
    few, many = waits(work, 2), waits(work, 5)
    assert len(many) <= len(few), sorted(set(many))


@pytest.mark.parametrize("broken", [0, 3])
def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_step_before(broken):
    good, w = small_training("cpu", 10)
    for _ in range(broken):
        next(good)
    there, moved = small_training("cuda", 10, broken)
    with pytest.raises(NumbersError, match=rf"step {broken + 1}: "):
        run(there)
    torch.testing.assert_close(moved.detach().cpu(), w.detach(), rtol=1e-4, atol=1e-5)
