import pytest
import torch
from conftest import EMBED, ToyBank, toy_tasks

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.network import task_loss
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.hypernet.hypernetworks import HNet, MNet
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, adapt, fit_meta
from hyperclip_nb.hypernet.store import store_adaptations

net = AdapterNet(EMBED, 5)


def small_hnet(seed=0, **kw):
    return HNet(net, 6, (9,), output_gain=1.0, generator=torch.Generator().manual_seed(seed), **kw).double()


def double(tasks: TaskSet) -> TaskSet:
    return TaskSet(tasks.tasks, tasks.bank, dtype=torch.float64)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("make", [small_hnet, lambda: MNet(net).double()])
def test_batched_adaptation_equals_a_loop_over_tasks_with_autograd(ragged, make, optimizer):
    model, tasks = make(), double(ragged)
    lr = 0.1 if optimizer == "sgd" else 0.02
    together = adapt(
        model, model.z0.detach(), tasks.batch(tasks.all_ids), Adaptation(steps=7, lr=lr, optimizer=optimizer)
    )
    for t in range(len(tasks)):
        batch = tasks.batch(torch.tensor([t]))
        z = model.z0.detach().clone().requires_grad_()
        steps = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)([z], lr=lr)
        for _ in range(7):
            steps.zero_grad()
            task_loss(model(z[None]), batch, net).sum().backward()
            steps.step()
        torch.testing.assert_close(together[t], z.detach(), atol=1e-5, rtol=1e-5)


def outer_loss(model, tasks, order, steps=3):
    support, query = tasks.batch(tasks.all_ids, "support"), tasks.batch(tasks.all_ids, "query")
    z = adapt(model, model.z0.expand(len(tasks), -1), support, Adaptation(steps=steps, lr=0.3), order)
    return task_loss(model(z), query, net).mean()


def test_second_order_meta_gradient_equals_finite_differences(ragged):
    model, tasks = small_hnet(), double(ragged)
    outer_loss(model, tasks, "second").backward()
    for p in (model.z0, model.head.columns, model.body[0].weight):
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)
        with torch.no_grad():
            values = []
            for sign in (1, -2, 1):
                p.add_(sign * 1e-6 * direction)
                values.append(outer_loss(model, tasks, "none").item())
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((p.grad * direction).sum().item(), slope, atol=1e-6, rtol=1e-4)


def test_first_order_meta_gradient_is_the_gradient_at_the_end_of_the_path(ragged):
    model, tasks = small_hnet(), double(ragged)
    outer_loss(model, tasks, "first").backward()
    support, query = tasks.batch(tasks.all_ids, "support"), tasks.batch(tasks.all_ids, "query")
    moved = adapt(model, model.z0.detach(), support, Adaptation(steps=3, lr=0.3)) - model.z0.detach()
    reference = small_hnet()
    task_loss(reference(reference.z0 + moved), query, net).mean().backward()
    for (name, p), q in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-9, rtol=1e-7, msg=name)


def test_a_range_of_steps_gives_each_task_its_own(ragged):
    model, batch = small_hnet(), double(ragged).batch(ragged.all_ids)
    draw = lambda: adapt(
        model, model.z0.detach(), batch, Adaptation(steps=(1, 4), lr=0.3), generator=torch.Generator().manual_seed(5)
    )
    fixed = torch.stack([adapt(model, model.z0.detach(), batch, Adaptation(steps=k, lr=0.3)) for k in range(1, 5)])
    drawn = draw()
    assert torch.equal(drawn, draw())
    used = (fixed == drawn).all(-1)
    assert (used.sum(0) == 1).all() and used.any(1).sum() > 1
    with pytest.raises(ValueError, match="generator"):
        adapt(model, model.z0.detach(), batch, Adaptation(steps=(1, 4)))


@pytest.mark.parametrize("kind", ["multitask", "mnet_maml", "hnet_maml", "conditional", "conditional_maml"])
def test_every_algorithm_learns(ragged, kind):
    model = (
        MNet(net)
        if kind in ("multitask", "mnet_maml")
        else HNet(net, EMBED if "cond" in kind else 6, (16,), output_gain=1.0)
    )
    embeddings = ragged.embeddings() if "cond" in kind else None
    adaptation = Adaptation(steps=3, lr=0.01) if "maml" in kind else None
    steps = fit_meta(
        model,
        ragged,
        TrainConfig(steps=60, lr=1e-1 if kind == "mnet_maml" else 1e-2, seed=1),
        adaptation=adaptation,
        embeddings=embeddings,
        episodes=Episodes(tasks=5, support=4, query=4),
    )
    losses = run(steps)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_the_anchor_is_the_loss_at_the_start(ragged):
    "With no inner steps, adapted and unadapted loss are one, so an anchor of 1 doubles the loss."
    first = lambda **kw: next(fit_meta(small_hnet(), double(ragged), TrainConfig(steps=1), **kw)).loss
    plain = first()
    assert first(adaptation=Adaptation(steps=0), anchor=1.0) == pytest.approx(2 * plain)
    assert first(adaptation=Adaptation(steps=0)) == pytest.approx(plain)


def test_the_same_seed_gives_the_same_run(ragged):
    def train(seed):
        model = HNet(net, 6, (9,), dropout=0.2, output_gain=1.0)
        return run(fit_meta(model, ragged, TrainConfig(steps=5, seed=seed), adaptation=Adaptation(steps=2))), model.z0

    (a, za), (b, zb), (c, _) = train(0), train(0), train(1)
    assert a == b and torch.equal(za, zb) and a != c


def test_stored_adaptations_are_the_adaptations(ragged):
    model, tasks = small_hnet(), double(ragged)
    how = Adaptation(steps=4, lr=0.3)
    stored = store_adaptations(model, tasks, how, views=3, seed=2)
    assert stored.shape == (3, len(tasks), 6)
    assert torch.equal(stored, store_adaptations(model, tasks, how, views=3, seed=2))
    assert not torch.equal(stored[0], stored[1])
    whole = store_adaptations(model, tasks, how, views=1, fraction=(1.0, 1.0))[0]
    torch.testing.assert_close(whole, adapt(model, model.z0.detach(), tasks.batch(tasks.all_ids, "all"), how))


def test_buckets_do_not_change_what_is_stored():
    tasks = toy_tasks([(n, 2, 3) for n in (2, 30, 4, 25, 3, 8)])
    tasks = TaskSet(tasks, ToyBank(tasks))
    whole = lambda limit: store_adaptations(
        small_hnet().float(), tasks, Adaptation(steps=3), views=1, fraction=(1.0, 1.0), limit=limit
    )
    torch.testing.assert_close(whole(10_000), whole(33), atol=1e-6, rtol=1e-5)


def test_bad_settings_are_refused(ragged):
    with pytest.raises(ValueError, match="K >= 0"):
        Adaptation(steps=(3, 2))
    with pytest.raises(ValueError, match="above 0"):
        Adaptation(lr=0.0)
    with pytest.raises(ValueError, match="embeddings"):
        fit_meta(small_hnet(), ragged, TrainConfig(), embeddings=torch.zeros(2, 6))
    with pytest.raises(ValueError, match="view"):
        store_adaptations(small_hnet(), ragged, Adaptation(), views=0)
    with pytest.raises(ValueError, match="latents"):
        small_hnet()(torch.zeros(2, 7).double())
