import pytest
import torch
import torch.nn.functional as F
from conftest import EMBED

from hyperclip_nb.basenet.adapter import AdapterNet, adapter_logits
from hyperclip_nb.basenet.network import set_accuracy, task_accuracy, task_loss

net = AdapterNet(EMBED, 5)


def random_weights(n, seed=0):
    return torch.randn(n, net.size, generator=torch.Generator().manual_seed(seed))


def one_task(w, x, a):
    "The formula of the paper for one task, with plain matrices."
    m = {k: v[0] for k, v in net.split(w[None]).items()}
    y = x + F.relu(x @ m["W1"].T / EMBED**0.5 + m["b1"]) @ m["W2"].T / 5**0.5 + m["b2"]
    return 100 * F.cosine_similarity(y[:, None], a[None], dim=-1)


def test_ragged_tasks_give_the_same_as_unpadded_ones(ragged):
    w = random_weights(len(ragged))
    batch = ragged.batch(ragged.all_ids, "all")
    logits, loss, accuracy = (
        net.logits(w, batch),
        task_loss(w, batch, net),
        task_accuracy(w, batch, net),
    )
    for t in range(len(ragged)):
        x, y, a = batch.images[t][batch.mask[t]], batch.labels[t][batch.mask[t]], batch.answers[t][batch.answer_mask[t]]
        alone = one_task(w[t], x, a)
        torch.testing.assert_close(logits[t][batch.mask[t]][:, batch.answer_mask[t]], alone, atol=1e-4, rtol=1e-4)
        assert (logits[t][:, ~batch.answer_mask[t]] == -torch.inf).all()
        torch.testing.assert_close(loss[t], F.cross_entropy(alone, y), atol=1e-4, rtol=1e-4)
        assert accuracy[t] == (alone.argmax(-1) == y).float().mean()


def test_gradients_are_finite_in_spite_of_masked_answers(ragged):
    w = random_weights(len(ragged)).requires_grad_()
    task_loss(w, ragged.batch(ragged.all_ids), net).sum().backward()
    assert w.grad.isfinite().all() and (w.grad != 0).any(1).all()


def test_zero_weights_are_zero_shot_clip(ragged):
    batch = ragged.batch(ragged.all_ids)
    logits = adapter_logits(torch.zeros(1, net.size), batch.images, batch.answers, net)
    expected = 100 * F.cosine_similarity(batch.images[:, :, None], batch.answers[:, None], dim=-1)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_shared_weights_equal_repeated_ones(ragged):
    w, batch = random_weights(1), ragged.batch(ragged.all_ids)
    torch.testing.assert_close(net.logits(w, batch), net.logits(w.repeat(len(ragged), 1), batch))
    torch.testing.assert_close(
        set_accuracy(w, ragged, net, "all"), task_accuracy(w, ragged.batch(ragged.all_ids, "all"), net)
    )


def test_initial_weights_are_near_the_identity_and_seeded():
    draw = lambda: net.initial(torch.Generator().manual_seed(3))
    assert torch.equal(draw(), draw())
    x, a = torch.randn(1, 40, EMBED), torch.randn(1, 6, EMBED)
    before, after = (adapter_logits(w, x, a, net) for w in (torch.zeros(1, net.size), draw()[None]))
    assert (before.argmax(-1) == after.argmax(-1)).float().mean() > 0.8
    m = net.split(draw()[None])
    assert m["W1"].std().sub(1).abs() < 0.3 and (m["b1"] == 0).all()


@pytest.mark.parametrize("shape", [(3,), (2, 7), (2, 3, 4)])
def test_wrong_shapes_are_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=rf"{net.size}.*{shape[0]}"):
        net.split(torch.zeros(shape))
