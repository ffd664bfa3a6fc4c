import pytest
import torch
import torch.nn.functional as F
from conftest import EMBED, ToyBank, toy_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.basenet import WeightLayout, set_accuracy, task_accuracy, task_loss
from hyperclip_nb.batches import Ragged, TaskSet, stretches
from hyperclip_nb.hypernet import HNet
from hyperclip_nb.kernels import GeneratedLoss, adapter_gradient, adapter_loss, large_linear, squared_distance, wide_linear
from hyperclip_nb.metatrain import Adaptation, Episodes, adapt, fit_meta, support_energy
from hyperclip_nb.training import TrainConfig, fit

layout = WeightLayout(EMBED, 5)


def double(tasks: TaskSet) -> TaskSet: return TaskSet(tasks.tasks, tasks.bank, dtype=torch.float64)
def draw(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(2, 6)), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_gradient_by_hand_is_that_of_autograd(sizes, seed):
    tasks = toy_tasks(sizes)
    tasks = TaskSet(tasks, ToyBank(tasks, seed), dtype=torch.float64)
    for batch in tasks.batch(tasks.all_ids), tasks.ragged(tasks.all_ids, "all"):
        w, outer = draw(len(tasks), layout.size, seed=seed).requires_grad_(), draw(len(tasks), seed=seed + 1)
        expected = task_loss(w, batch, layout)
        (gradient,) = torch.autograd.grad(expected @ outer, w)
        loss = adapter_loss(w, batch, layout)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss @ outer, w)[0], gradient, atol=1e-9, rtol=1e-7)


def test_gradient_may_overwrite_the_weights(ragged):
    batch, w = double(ragged).batch(ragged.all_ids), draw(len(ragged), layout.size)
    apart, buffer = torch.empty_like(w), w.clone()
    losses = adapter_gradient(w, batch, layout, apart), adapter_gradient(buffer, batch, layout, buffer)
    assert torch.equal(*losses) and torch.equal(apart, buffer) and not torch.equal(apart, w)


def test_a_buffer_full_of_nan_does_not_matter(ragged):
    batch, w = double(ragged).batch(ragged.all_ids), draw(len(ragged), layout.size)
    out = torch.full_like(w, torch.nan)
    adapter_gradient(w, batch, layout, out)
    assert out.isfinite().all()


def test_loss_of_generated_weights_is_that_of_the_plain_way(ragged):
    tasks = double(ragged)
    hnet = HNet(layout, 6, (9,), output_gain=1.0).double()
    batch, z = tasks.ragged(tasks.all_ids), draw(len(tasks), 6).requires_grad_()
    fast, plain = support_energy(hnet, batch, once=True), support_energy(hnet, batch)
    for _ in range(2):
        torch.testing.assert_close(fast(z), plain(z))
        torch.testing.assert_close(*(torch.autograd.grad(energy(z).sum(), z)[0] for energy in (fast, plain)))
    assert isinstance(GeneratedLoss(hnet.head.weight, hnet.head.bias, batch, layout).buffer, torch.Tensor)


def test_a_second_derivative_is_refused(ragged):
    batch, w = double(ragged).batch(ragged.all_ids), draw(len(ragged), layout.size).requires_grad_()
    with pytest.raises(RuntimeError, match="once"): torch.autograd.grad(adapter_loss(w, batch, layout).sum(), w, create_graph=True)


@pytest.mark.parametrize("rows, outputs", [(1, 40), (1, 41), (2, 40), (5, 40)])
def test_wide_linear_is_linear(rows, outputs):
    u, weight, bias = draw(rows, 7).requires_grad_(), draw(outputs, 7, seed=1).requires_grad_(), draw(outputs, seed=2).requires_grad_()
    pair = wide_linear(u, weight, bias), F.linear(u, weight, bias)
    torch.testing.assert_close(*pair)
    for mine, theirs in zip(*(torch.autograd.grad(out.square().sum(), (u, weight, bias)) for out in pair)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rows, inputs, outputs", [(3, 7, 40), (2, 5_000, 3), (1, 2_048, 2)])
def test_large_linear_is_linear_to_the_second_derivative(rows, inputs, outputs):
    given = [draw(rows, inputs).requires_grad_(), draw(outputs, inputs, seed=1).requires_grad_(), draw(outputs, seed=2).requires_grad_()]
    pair = large_linear(*given), F.linear(*given)
    torch.testing.assert_close(*pair)
    for mine, theirs in zip(*(torch.autograd.grad(out.square().sum(), given, retain_graph=True) for out in pair)): torch.testing.assert_close(mine, theirs)
    slopes = [torch.autograd.grad(out.pow(3).sum(), given, create_graph=True) for out in pair]
    for mine, theirs in zip(*(torch.autograd.grad(sum(s.square().sum() for s in slope), given) for slope in slopes)): torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(large_linear(given[0][0], *given[1:]), F.linear(given[0][0], *given[1:]))


@pytest.mark.parametrize("uses", [1, 2])
def test_gradients_in_used_memory_train_the_same_network(uses):
    "Also where the layer is used twice in a step, and where somebody throws a gradient away in between."
    x, target = draw(6, 3_000), draw(6, 4)
    layers = [torch.nn.Linear(3_000, 4, dtype=torch.float64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())

    def training(layer, linear):
        out = lambda x: linear(x, layer.weight, layer.bias)
        return fit(layer, lambda x, generator: sum((out((i + 1) * x) - target).square().mean() for i in range(uses)),
                   lambda generator: x + torch.randn(x.shape, generator=generator, dtype=x.dtype), TrainConfig(steps=6, clip=0.5))

    places = set()
    for mine, plain in zip(training(layers[0], large_linear), training(layers[1], F.linear)):
        assert mine.loss == pytest.approx(plain.loss) and mine.grad_norm == pytest.approx(plain.grad_norm)
        torch.testing.assert_close(layers[0].weight.grad, layers[1].weight.grad)
        places.add(layers[0].weight.grad.data_ptr())
        if mine.step == 3: layers[0].weight.grad = None
    torch.testing.assert_close(layers[0].weight, layers[1].weight)
    if uses == 1: assert len(places) <= 2


def test_squared_distance_is_what_it_says():
    x, weight, bias, target = draw(4, 7).requires_grad_(), draw(50, 7, seed=1).requires_grad_(), draw(50, seed=2).requires_grad_(), draw(4, 50, seed=3)
    found = []
    for value in squared_distance(x, weight, bias, target), (F.linear(x, weight, bias) - target).square().sum(1):
        found.append([value, *torch.autograd.grad(value @ torch.arange(4.0).double(), (x, weight, bias))])
    for mine, plain in zip(*found): torch.testing.assert_close(mine, plain)
    with pytest.raises(RuntimeError): torch.autograd.grad(torch.autograd.grad(squared_distance(x, weight, bias, target).sum(), x, create_graph=True)[0].sum(), x)


def test_a_frozen_generator_says_the_same_and_is_saved_the_same(tmp_path):
    from hyperclip_nb.files import load_tensors, save_tensors
    hnet, frozen = HNet(layout, 6, (9,)), HNet(layout, 6, (9,)).freeze()
    z = draw(3, 6).float()
    for some in z, z[:1]: torch.testing.assert_close(frozen(some), hnet(some))
    assert not any(p.requires_grad for p in frozen.parameters())
    save_tensors(tmp_path / "h.safetensors", frozen.state_dict(), {})
    other = HNet(layout, 6, (9,), generator=torch.Generator().manual_seed(1))
    other.load_state_dict(load_tensors(tmp_path / "h.safetensors")[0])
    assert torch.equal(other.head.weight, hnet.head.weight)


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
    whole, cut = (make(ragged.all_ids, "all", fraction=share, generator=seed()) for make in (ragged.batch, ragged.ragged))
    assert isinstance(cut, Ragged) and len(cut) == 5 and len(cut.parts) > 1
    position = 0
    for part in cut.parts:
        for i, task in enumerate(part.index.tolist()):
            assert torch.equal(part.images[i][part.mask[i]], whole.images[task][whole.mask[task]])
            assert torch.equal(part.labels[i][part.mask[i]], whole.labels[task][whole.mask[task]])
            assert torch.equal(part.answers[i][part.answer_mask[i]], whole.answers[task][whole.answer_mask[task]])
            assert cut.index[position] == task
            position += 1
    w = draw(5, layout.size).float()
    torch.testing.assert_close(task_loss(w[cut.index], cut, layout), task_loss(w, whole, layout)[cut.index])
    torch.testing.assert_close(task_accuracy(w[:1], cut, layout), task_accuracy(w[:1], whole, layout)[cut.index])
    assert ragged.ragged(torch.tensor([1, 0, 2]), sort=False).index.tolist() == [1, 0, 2]


def test_set_accuracy_takes_a_function(ragged):
    w = draw(len(ragged), layout.size).float()
    given = set_accuracy(w, ragged, layout, "all")
    assert torch.equal(given, set_accuracy(lambda ids: w[ids], ragged, layout, "all", numbers=1))


def test_meta_training_on_whole_sets_watches_four_accuracies(ragged):
    seen = []
    hnet, how = HNet(layout, 6, (9,), output_gain=1.0), Adaptation(steps=3, lr=0.3)
    watch = lambda support, query, before, after: seen.append([task_accuracy(w, part, layout) for w in (before, after) for part in (support, query)])
    z0 = hnet.z0.detach().clone()
    plain, tasks = HNet(layout, 6, (9,), output_gain=1.0), ragged
    next(fit_meta(hnet, tasks, TrainConfig(steps=1, clip=1e9), adaptation=how, order="first", episodes=Episodes(tasks=5, support=None, query=None), watch=watch))
    support = tasks.batch(tasks.all_ids, "support")
    moved = adapt(plain, z0, support, how)
    task_loss(plain(plain.z0 + (moved - z0)), tasks.batch(tasks.all_ids, "query"), layout).mean().backward()
    for p, q in zip(hnet.parameters(), plain.parameters()): torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)
    expected = task_accuracy(plain(moved), support, layout).sort().values
    assert torch.equal(seen[0][2].sort().values, expected) and len(seen[0]) == 4
    with pytest.raises(ValueError, match="both None"): Episodes(support=None)
