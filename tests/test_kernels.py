import pytest
import torch
from conftest import EMBED, ToyBank, toy_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.fast.kernels import GeneratedLoss, first_order_loss
from hyperclip_nb.basenet.fast.layers import WideLinear
from hyperclip_nb.basenet.network import set_accuracy, task_accuracy, task_loss
from hyperclip_nb.core.training import TrainConfig
from hyperclip_nb.dataset.batches import Ragged, TaskSet, stretches
from hyperclip_nb.hypernet.hvae import HVAE, HVAEConfig
from hyperclip_nb.hypernet.hypernetworks import HNet, MNet, WeightGenerator
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, adapt, fit_meta, task_energy

net = AdapterNet(EMBED, 5)


def double(tasks: TaskSet) -> TaskSet:
    return TaskSet(tasks.tasks, tasks.bank, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(2, 6)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_gradient_by_hand_is_that_of_autograd(sizes, seed):
    tasks = toy_tasks(sizes)
    tasks = TaskSet(tasks, ToyBank(tasks, seed), dtype=torch.float64)
    for batch in tasks.batch(tasks.all_ids), tasks.ragged(tasks.all_ids, "all"):
        w, outer = draw(len(tasks), net.size, seed=seed).requires_grad_(), draw(len(tasks), seed=seed + 1)
        expected = task_loss(w, batch, net)
        (gradient,) = torch.autograd.grad(expected @ outer, w)
        loss = first_order_loss(w, batch, net)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss @ outer, w)[0], gradient, atol=1e-9, rtol=1e-7)


def test_gradient_may_overwrite_the_weights(ragged):
    batch, w = double(ragged).batch(ragged.all_ids), draw(len(ragged), net.size)
    apart, buffer = torch.empty_like(w), w.clone()
    losses = net.loss_and_gradient(w, batch, apart), net.loss_and_gradient(buffer, batch, buffer)
    assert torch.equal(*losses) and torch.equal(apart, buffer) and not torch.equal(apart, w)


def test_a_buffer_full_of_nan_does_not_matter(ragged):
    batch, w = double(ragged).batch(ragged.all_ids), draw(len(ragged), net.size)
    out = torch.full_like(w, torch.nan)
    net.loss_and_gradient(w, batch, out)
    assert out.isfinite().all()


def hvae(activation="relu", decoder=(9,), **options):
    w0 = draw(net.size)
    config = HVAEConfig(latent_size=6, hidden=(), decoder_hidden=decoder, activation=activation, **options)
    return HVAE.make(net, w0 + 0.5 * draw(2, 7, net.size, seed=1), w0, config).double()


GENERATORS = {
    "hnet": lambda: HNet(net, 6, (9,), output_gain=1.0),
    "deep hnet": lambda: HNet(net, 6, (40, 7), output_gain=1.0),
    "linear hnet": lambda: HNet(net, 6, (), output_gain=1.0),
    "mnet": lambda: MNet(net),
    "hvae": hvae,
    "smooth hvae": lambda: hvae("silu"),
    "linear hvae": lambda: hvae(decoder=()),
    "hvae of components": lambda: hvae(components=5, decodes="components"),
    "frozen hvae of components": lambda: hvae("silu", components=12, decodes="components").requires_grad_(False),
}


@pytest.mark.parametrize("model", GENERATORS)
def test_loss_of_generated_weights_is_that_of_the_plain_way(ragged, model):
    "From one start and from many, along a path on which units wake up, and where nothing is rectified."
    tasks, generate = double(ragged), GENERATORS[model]().double()
    batch, size = tasks.ragged(tasks.all_ids), generate.latent_size
    fast, plain = task_energy(generate, batch, once=True), task_energy(generate, batch)
    one = draw(1, size).expand(len(tasks), size)
    for z in one, one + 0.1 * draw(len(tasks), size, seed=1), draw(len(tasks), size, seed=2), one, 0 * one:
        z = z.clone().requires_grad_()
        torch.testing.assert_close(fast(z), plain(z))
        torch.testing.assert_close(*(torch.autograd.grad(energy(z).sum(), z)[0] for energy in (fast, plain)))


@pytest.mark.parametrize("model", GENERATORS)
def test_an_outer_loss_trains_the_generator(ragged, model):
    "All gradients are those of the plain loss."
    tasks, nets = double(ragged), [GENERATORS[model]().double() for _ in range(2)]
    batch, weight, size = tasks.ragged(tasks.all_ids), draw(len(tasks), seed=5), nets[0].latent_size
    energies = task_energy(nets[0], batch, once=True, trains=True), task_energy(nets[1], batch)
    for start in draw(1, size).expand(len(tasks), -1), draw(len(tasks), size, seed=1):
        found = []
        for made, energy in zip(nets, energies):
            made.zero_grad()
            z = start.clone().requires_grad_()
            loss = energy(z)
            (loss @ weight).backward()
            found.append([loss.detach(), z.grad, *(p.grad for p in made.parameters() if p.grad is not None)])
        for mine, plain in zip(*found, strict=True):
            torch.testing.assert_close(mine, plain)


def test_a_generator_of_ones_own_takes_the_plain_way_to_the_same_numbers(ragged):
    "Whoever writes a generator need not know that fast forms exist."
    hnet, tasks = HNet(net, 6, (9,), output_gain=1.0).double(), double(ragged)

    class Own:
        latent_size, net = 6, hnet.net

        def __call__(self, z):
            return hnet(z)

    batch, how, own = tasks.batch(tasks.all_ids), Adaptation(steps=3, lr=0.3), Own()
    assert isinstance(own, WeightGenerator)
    torch.testing.assert_close(adapt(own, hnet.z0.detach(), batch, how), adapt(hnet, hnet.z0.detach(), batch, how))


@pytest.mark.parametrize("scaled", [False, True])
def test_weights_of_a_generated_loss_are_the_generators(ragged, scaled):
    "All tasks' where latents differ, one row where they are alike; the next call overwrites them."
    tasks, made = double(ragged), (hvae() if scaled else HNet(net, 6, (9,), output_gain=1.0).double())
    batch = tasks.ragged(tasks.all_ids)
    body, scaler = (made.decoder[:-1], made.scaler) if scaled else (made.body, None)
    loss = GeneratedLoss(made.head, batch, net, scaler=scaler)
    assert isinstance(made.head, WideLinear)
    with torch.no_grad():
        for z, rows in (draw(1, 6).expand(len(tasks), -1), 1), (draw(len(tasks), 6, seed=1), len(tasks)):
            w = loss.weights(body(z))
            assert len(w) == rows and not w.requires_grad
            torch.testing.assert_close(w.expand(len(tasks), -1), made(z))
            loss(body(z))
    assert not torch.allclose(w, made(z))


def test_an_overwritten_gradient_is_not_used(ragged):
    batch = double(ragged).ragged(ragged.all_ids)
    hnet = HNet(net, 6, (9,)).double()
    kernel, u = GeneratedLoss(hnet.head, batch, net, trains=True), draw(len(ragged), 9).relu()
    first = kernel(u)
    kernel(u + 1).sum().backward()
    with pytest.raises(RuntimeError, match="before the loss is called again"):
        first.sum().backward()


def test_gradients_of_one_network_for_all_tasks(ragged):
    batch, w = double(ragged).batch(ragged.all_ids), draw(1, net.size)
    out, apart = (
        torch.empty(len(ragged), net.size, dtype=w.dtype),
        torch.empty(len(ragged), net.size, dtype=w.dtype),
    )
    losses = net.loss_and_gradient(w, batch, out), net.loss_and_gradient(w.repeat(len(ragged), 1), batch, apart)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(out, apart)


def test_a_second_derivative_is_refused(ragged):
    batch, w = double(ragged).batch(ragged.all_ids), draw(len(ragged), net.size).requires_grad_()
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(first_order_loss(w, batch, net).sum(), w, create_graph=True)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), waste=st.floats(0, 0.9), limit=st.integers(1, 200))
def test_stretches_cover_everything_and_keep_their_promises(sizes, waste, limit):
    found = [*stretches(sizes, waste, limit)]
    assert [found[0][0], *(end for _, end in found)] == [*(begin for begin, _ in found), len(sizes)]
    for begin, end in found:
        padded = max(sizes[begin:end]) * (end - begin)
        assert end - begin == 1 or (sum(sizes[begin:end]) >= (1 - waste) * padded - 1e-9 and padded <= limit)


def test_ragged_holds_what_the_padded_batch_holds(ragged):
    seed = lambda: torch.Generator().manual_seed(3)
    share = torch.tensor([1.0, 0.5, 0.4, 0.8, 0.6])
    whole, cut = (
        make(ragged.all_ids, "all", fraction=share, generator=seed()) for make in (ragged.batch, ragged.ragged)
    )
    assert isinstance(cut, Ragged) and len(cut) == 5 and len(cut.parts) > 1
    position = 0
    for part in cut.parts:
        for i, task in enumerate(part.index.tolist()):
            assert torch.equal(part.images[i][part.mask[i]], whole.images[task][whole.mask[task]])
            assert torch.equal(part.labels[i][part.mask[i]], whole.labels[task][whole.mask[task]])
            assert torch.equal(part.answers[i][part.answer_mask[i]], whole.answers[task][whole.answer_mask[task]])
            assert cut.index[position] == task
            position += 1
    w = draw(5, net.size).float()
    torch.testing.assert_close(task_loss(w[cut.index], cut, net), task_loss(w, whole, net)[cut.index])
    torch.testing.assert_close(task_accuracy(w[:1], cut, net), task_accuracy(w[:1], whole, net)[cut.index])
    assert ragged.ragged(torch.tensor([1, 0, 2]), sort=False).index.tolist() == [1, 0, 2]


def test_set_accuracy_takes_a_function(ragged):
    w = draw(len(ragged), net.size).float()
    given = set_accuracy(w, ragged, net, "all")
    assert torch.equal(given, set_accuracy(lambda ids: w[ids], ragged, net, "all", numbers=1))


def test_meta_training_on_whole_sets_has_the_plain_gradient(ragged):
    hnet, how = HNet(net, 6, (9,), output_gain=1.0), Adaptation(steps=3, lr=0.3)
    z0 = hnet.z0.detach().clone()
    plain, tasks = HNet(net, 6, (9,), output_gain=1.0), ragged
    next(
        fit_meta(
            hnet,
            tasks,
            TrainConfig(steps=1, clip=1e9),
            adaptation=how,
            order="first",
            episodes=Episodes(tasks=5, support=None, query=None),
        )
    )
    support = tasks.batch(tasks.all_ids, "support")
    moved = adapt(plain, z0, support, how)
    task_loss(plain(plain.z0 + (moved - z0)), tasks.batch(tasks.all_ids, "query"), net).mean().backward()
    for p, q in zip(hnet.parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="both None"):
        Episodes(support=None)
