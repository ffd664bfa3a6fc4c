"Batched descent against torch's optimisers, per-task loops, finite differences and known distributions."

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyperclip_nb.core.energy import (
    descend,
    energy_and_grad,
    gradient_noise,
    prior_energy,
    stop_at,
    sum_energies,
    trajectory,
)
from hyperclip_nb.core.seeds import noise_like, seeded
from hyperclip_nb.core.training import last


def rough(centre):
    "An energy with a different landscape for each task."
    return lambda z: ((z - centre).square() + 0.5 * (3 * z).sin()).sum(-1)


def setup(tasks=4, size=3, dtype=torch.float64):
    return torch.randn(tasks, size, generator=seeded(0, "c"), dtype=dtype), torch.randn(
        tasks, size, generator=seeded(0, "z"), dtype=dtype
    )


@pytest.mark.parametrize("name, make", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_each_task_goes_where_torchs_optimiser_takes_it_alone(name, make, schedule):
    centre, start = setup()
    path = trajectory(descend(rough(centre), start, steps=25, lr=0.05, optimizer=name, schedule=schedule))
    assert path.shape == (26, 4, 3) and torch.equal(path[0], start)
    for t in range(4):
        z = nn.Parameter(start[t].clone())
        optimizer = make([z], lr=0.05)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)
        for k in range(25):
            optimizer.zero_grad()
            rough(centre[t])(z).backward()
            optimizer.step()
            if schedule == "cosine":
                cosine.step()
            torch.testing.assert_close(path[k + 1, t], z.detach(), rtol=1e-8, atol=1e-10)


def test_the_path_is_not_kept():
    centre, start = setup()
    path = descend(rough(centre), start, steps=3, lr=0.1)
    next(path)
    old = weakref.ref(next(path))
    next(path)
    assert old() is None


def test_results_are_detached_and_independent_of_start():
    centre, start = setup()
    start = nn.Parameter(start)
    path = list(descend(rough(centre), start, steps=2, lr=0.1))
    assert not any(z.requires_grad for z in path)
    kept = path[0].clone()
    with torch.no_grad():
        start.zero_()
    assert torch.equal(path[0], kept)


def test_it_works_where_gradients_are_off():
    centre, start = setup()
    with torch.no_grad():
        off = last(descend(rough(centre), start, steps=5, lr=0.1))
    assert torch.equal(off, last(descend(rough(centre), start, steps=5, lr=0.1)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_second_order_equals_finite_differences(optimizer):
    centre, start = setup(2, 3)
    scale = torch.tensor(1.3, dtype=torch.float64)

    def outcome(start, scale):
        energy = sum_energies((scale, rough(centre)), (1, prior_energy(torch.zeros(3, dtype=torch.float64), 0.3)))
        return last(descend(energy, start, steps=6, lr=0.05, optimizer=optimizer, order="second"))

    assert torch.autograd.gradcheck(outcome, (start.requires_grad_(), scale.requires_grad_()))


def test_second_order_reaches_the_energy_even_from_a_fixed_start():
    scale = torch.tensor(2.0, requires_grad=True)
    z = last(descend(lambda z: scale * z.square().sum(-1), torch.ones(1, 1), steps=1, lr=0.1, order="second"))
    torch.testing.assert_close(torch.autograd.grad(z.sum(), scale)[0], torch.tensor(-0.2))


def test_second_order_adam_survives_a_gradient_of_zero():
    start = torch.zeros(2, 2, requires_grad=True)
    z = last(descend(lambda z: z.square().sum(-1), start, steps=3, lr=0.1, optimizer="adam", order="second"))
    assert torch.isfinite(torch.autograd.grad(z.sum(), start)[0]).all()


def test_first_order_is_maml_past_the_inner_steps():
    centre, start = setup()
    start.requires_grad_()
    outer = lambda z: (z - 1).square().sum()
    ends = last(descend(rough(centre), start, steps=5, lr=0.05, order="first"))
    (grad,) = torch.autograd.grad(outer(ends), start)
    adapted = last(descend(rough(centre), start, steps=5, lr=0.05)).requires_grad_()
    (expected,) = torch.autograd.grad(outer(adapted), adapted)
    assert torch.equal(ends, adapted) and torch.equal(grad, expected)


def test_a_hypernetworks_parameters_hear_only_of_second_order():
    net, start = nn.Linear(3, 5), torch.randn(4, 3, generator=seeded(0, "z"))
    for order, heard in (("none", False), ("first", False), ("second", True)):
        ends = last(descend(lambda z: net(z).square().sum(-1), start, steps=2, lr=0.1, order=order))
        assert ends.requires_grad == heard
        assert all(p.grad is None for p in net.parameters())


def test_langevin_samples_the_gaussian():
    a = torch.tensor([0.5, 4.0])
    energy = lambda z: (a * z * z).sum(-1) / 2
    z = last(descend(energy, torch.zeros(20_000, 2), steps=300, lr=0.05, langevin=2.0, generator=seeded(0, "l")))
    torch.testing.assert_close(z.var(0), 2.0 / (a * (1 - 0.05 * a / 2)), rtol=0.04, atol=0)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=0.06)


def test_shrinking_steps_keep_the_temperature_and_lose_the_bias():
    energy = lambda z: z.square().sum(-1) / 2
    for schedule in ("constant", "cosine"):
        expected = 0.0
        for k in range(100):
            rate = 0.5 if schedule == "constant" else 0.25 * (1 + math.cos(math.pi * k / 100))
            expected = (1 - rate) ** 2 * expected + 2 * rate
        ends = [
            last(
                descend(
                    energy,
                    torch.zeros(10_000, 2),
                    steps=100,
                    lr=0.5,
                    langevin=1.0,
                    schedule=schedule,
                    generator=seeded(0, "l"),
                )
            )
            for _ in range(2)
        ]
        assert torch.equal(*ends)
        assert ends[0].var().item() == pytest.approx(expected, rel=0.04)
    assert abs(expected - 1) < 0.1 < 1 / (1 - 0.25) - 1


@given(st.integers(0, 5), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_stop_at_picks_each_tasks_own_step(most, tasks):
    steps = torch.randint(0, most + 1, (tasks,), generator=seeded(most, tasks))
    path = torch.randn(most + 1, tasks, 2)
    assert torch.equal(stop_at(iter(path), steps), path[steps, torch.arange(tasks)])


def test_a_rate_per_task():
    centre, start = setup()
    rates = torch.tensor([[0.01], [0.02], [0.03], [0.04]], dtype=torch.float64)
    together = last(descend(rough(centre), start, steps=5, lr=rates))
    for t in range(4):
        alone = last(descend(rough(centre[t]), start[t : t + 1], steps=5, lr=rates[t].item()))
        torch.testing.assert_close(together[t : t + 1], alone)


def test_energies_compose_with_a_weight_per_task():
    centre, z = setup()
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    value, grad = energy_and_grad(sum_energies((0.5, rough(centre)), (1, prior_energy(centre, weights))), z)
    expected = 0.5 * rough(centre)(z) + weights / 2 * (z - centre).square().sum(-1)
    torch.testing.assert_close(value.detach(), expected)
    _, pull = energy_and_grad(prior_energy(centre, weights), z)
    torch.testing.assert_close(pull, weights[:, None] * (z - centre))


def test_gradient_noise_is_noise_in_the_gradient():
    z = torch.zeros(5000, 2)
    _, grad = energy_and_grad(gradient_noise(3.0, seeded(0, "n")), z)
    assert torch.equal(grad, 3 * noise_like(z, seeded(0, "n")))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(optimizer="rmsprop"), "rmsprop"),
        (dict(schedule="linear"), "linear"),
        (dict(order="third"), "third"),
        (dict(steps=-1), "-1"),
        (dict(lr=0.0), "lr > 0"),
        (dict(langevin=-1.0), "langevin >= 0"),
        (dict(langevin=1.0), "generator"),
        (dict(langevin=1.0, optimizer="adam", generator=torch.Generator()), "rescales gradients but not noise"),
        (dict(start=torch.zeros(2, 2, dtype=torch.long)), "int64"),
    ],
)
def test_wrong_calls_fail_before_the_first_step(wrong, message):
    right = dict(start=torch.zeros(2, 2), steps=1, lr=0.1)
    with pytest.raises(ValueError, match=message):
        descend(lambda z: z.sum(-1), **(right | wrong))


@pytest.mark.parametrize(
    "energy, message",
    [
        (lambda z: z.sum(), r"expected an energy of shape \[2\]"),
        (lambda z: z, r"got \[2, 3\]"),
        (lambda z: torch.zeros(2), "depends on z"),
        (lambda z: torch.ones(2, requires_grad=True) * 1, "depends on z"),
        (lambda z: z.detach().sum(-1), "depends on z"),
    ],
)
def test_wrong_energies_are_named(energy, message):
    with pytest.raises(ValueError, match=message):
        last(descend(energy, torch.zeros(2, 3), steps=1, lr=0.1))


def test_an_empty_sum_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        sum_energies()
