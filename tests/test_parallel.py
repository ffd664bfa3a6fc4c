"""Two processes train one network: with the numbers of one, and only the first one writes. The others run
`parallel_program.py` under torchrun, with gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import parallel_program
import pytest
import torch

from hyperclip_nb.core.devices import own_gpu
from hyperclip_nb.core.files import load_tensors
from hyperclip_nb.core.parallel import Group, some_rows
from hyperclip_nb.core.runs import Run
from hyperclip_nb.core.seeds import ShareNoise, draw_rows, noise_like, seeded
from hyperclip_nb.core.training import TrainConfig, fit
from hyperclip_nb.guidance.hyperclip import contrastive_loss

PROGRAM = Path(parallel_program.__file__)
NAMES = ("hnet", "cond_hnet", "hvae", "hyperclip", "hyperldm")


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess:
    "The program in several processes."
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), PROGRAM, *arguments]
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def parts(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_tensors(folder / "run" / f"{name}.safetensors")[0] for name in (*NAMES, "stored")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "One process: its losses, and its parts."
    folder = tmp_path_factory.mktemp("alone")
    return parallel_program.main(folder), parts(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Two processes."
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(2, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, [json.loads((folder / f"losses-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_losses_of_one(alone, two, name):
    losses, _ = alone
    for found in two[2]:
        torch.testing.assert_close(found["losses"][name], losses[name], rtol=1e-5, atol=1e-5)
    for key, value in parts(two[0])[name].items():
        torch.testing.assert_close(value, alone[1][name][key], rtol=1e-3, atol=1e-4, msg=lambda text: f"{key}: {text}")


def test_two_processes_share_the_views_that_are_stored(alone, two):
    here, there = (of["stored"]["latents"] for of in (alone[1], parts(two[0])))
    assert torch.equal(here, there) and len({float(view.sum()) for view in here}) == 3


def test_all_build_a_part_once_and_only_the_first_one_writes(two):
    folder, printed, found = two
    assert [one["built"] for one in found] == [[*NAMES]] * 2
    run = Run.open(folder / "run")
    run.verify()
    assert {*run.manifest.files} == {*(f"{name}.safetensors" for name in (*NAMES, "stored")), "table.md"}
    assert (folder / "run" / "table.md").read_text() == "written by 0\n"
    assert "printed by 0" in printed and "printed by 1" not in printed
    assert not [*(folder / "run").glob("*.resume.safetensors")]


def test_a_training_goes_on_with_another_number_of_processes(alone, tmp_path):
    done = torchrun(2, tmp_path, 5)  # the states after four steps are there
    assert done.returncode == 0, done.stderr[-3000:]
    assert len([*(tmp_path / "run").glob("*.resume.safetensors")]) == len(NAMES)
    losses = parallel_program.main(tmp_path)
    for name in NAMES:
        torch.testing.assert_close(losses[name], alone[0][name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_disjoint_and_make_up_the_batch(size):
    x = torch.arange(7)
    shares = [Group(rank, size).share((x, None, -x)) for rank in range(size)]
    assert sorted(int(i) for (own, _, _), _ in shares for i in own) == [*range(7)]
    assert all(torch.equal(own, -other) and nothing is None and n == 7 for (own, nothing, other), n in shares)


@pytest.mark.parametrize("size", [2, 3])
def test_rows_of_noise_belong_to_their_row_whatever_the_number_of_processes(size):
    whole, own = noise_like(torch.zeros(7, 2), seeded(0)), torch.zeros(7, 2)
    integers = lambda n, g: torch.randint(100, (n,), generator=g)
    for rank in range(size):
        rows = Group(rank, size).own
        own[rows] = noise_like(own[rows], noise := ShareNoise(seeded(0), rows, 7))
        first = seeded(0)
        noise_like(torch.zeros(7, 2), first)
        assert torch.equal(draw_rows(integers, len(own[rows]), noise), integers(7, first)[rows])
    assert torch.equal(own, whole)


def test_the_contrastive_losses_of_shares_add_up():
    a, b = (torch.nn.functional.normalize(torch.randn(7, 4, generator=seeded(i)), dim=-1) for i in range(2))
    shares = [
        contrastive_loss(a, b, 5.0, Group(rank, 3).own) * len(range(7)[Group(rank, 3).own]) / 7 for rank in range(3)
    ]
    torch.testing.assert_close(sum(shares), contrastive_loss(a, b, 5.0))


def test_a_ragged_batch_is_shared_task_by_task(ragged):
    whole = ragged.ragged(ragged.all_ids, "all")
    for rank in range(3):
        own = some_rows(whole, Group(rank, 3).own)
        assert torch.equal(own.index, whole.index[rank::3]) and len(own) == len(own.index)
        for part in own.parts:
            same = next(p for p in whole.parts if int(part.index[0]) in p.index.tolist())
            row = same.index.tolist().index(int(part.index[0]))
            assert torch.equal(part.images[0], same.images[row])


def test_a_batch_that_is_too_small_for_the_processes_is_refused():
    with pytest.raises(ValueError, match="at least 3 rows, one for each process, got 2"):
        Group(0, 3).share(torch.zeros(2))


def test_a_loss_that_draws_by_itself_is_refused_in_a_group(monkeypatch):
    "It would draw the same numbers for different rows."
    monkeypatch.setattr("hyperclip_nb.core.training.processes", lambda: Group(0, 2))
    w = torch.zeros(2, requires_grad=True)
    loss = lambda x, generator: (x @ w + torch.randn(len(x), generator=generator)).mean()
    with pytest.raises(TypeError, match="generator"):
        next(fit(w, loss, lambda generator: torch.ones(4, 2), TrainConfig(steps=1), rows=some_rows))


@pytest.mark.parametrize("name, got", [((), "cuda"), ((1,), "cuda:0"), ((4,), "cuda:3"), ((2, 6), "cuda:1")])
def test_processes_that_one_started_take_turns_among_the_gpus(name, got, monkeypatch):
    monkeypatch.setattr("hyperclip_nb.core.devices.current_process", lambda: SimpleNamespace(_identity=name))
    assert own_gpu("cuda", 4) == torch.device(got)
    assert own_gpu("cuda", 1) == torch.device("cuda") and own_gpu("cpu", 4) == torch.device("cpu")
