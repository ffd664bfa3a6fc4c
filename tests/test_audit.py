import pytest
import torch
from conftest import EMBED, ToyBank, toy_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.evaluation.audit import (
    Audit,
    audit_latents,
    audit_predictions,
    compare_answers,
    networks_from,
    rank_share,
    same_group,
    two_nearest,
)
from hyperclip_nb.hypernet.hypernetworks import HNet

net = AdapterNet(EMBED, 5)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def audit_one(points, train, **kw) -> Audit:
    return audit_latents({"it": points}, train, **kw)["it"]


def clusters(count, seed) -> Tensor:
    "Draws from a distribution that is no ball: three clusters of different width, dimensions of different scale."
    which = torch.randint(3, (count,), generator=seeded(seed))
    return (5 * normal(3, 4, seed=99)[which] + normal(count, 4, seed=seed + 1) * (1 + which[:, None])) * torch.tensor(
        [1.0, 10, 0.1, 3]
    )


def test_fresh_draws_are_not_flagged_and_both_numbers_are_calibrated():
    audits = [audit_one(clusters(300, 2 * seed), clusters(300, 2 * seed + 5000)) for seed in range(30)]
    closer, copied = (torch.tensor(values) for values in zip(*[(audit.closer, audit.copied()) for audit in audits]))
    assert abs(closer.mean() - 0.5) < 0.03 and closer.max() < 0.65
    assert abs(copied.mean() - 0.05) < 0.03 and copied.max() < 0.2


@given(seed=st.integers(0, 1000), noise=st.sampled_from([0.0, 0.01, 0.05]))
@settings(max_examples=15, deadline=None)
def test_copies_are_flagged_even_with_some_noise(seed, noise):
    train = clusters(300, seed)
    chosen = torch.randint(300, (100,), generator=seeded(seed))
    audit = audit_one(train[chosen] + noise * train.std(0) * normal(100, 4, seed=seed), train)
    # With noise of 0.05, three times as many as of fresh draws; at least 0.21 for the seeds that were tried.
    assert audit.closer > 0.8 and audit.copied() > (0.99 if noise < 0.05 else 0.15)
    if noise == 0:
        assert (audit.nearest[:, 0] == 0).all() and (audit.ratio == 0).all() and audit.closer > 0.99


def test_noise_at_the_generators_std_is_what_a_copier_would_give():
    train = clusters(300, 0)
    spread = 0.05 * train.std(0).expand(300, -1)
    copier = train + spread * normal(300, 4, seed=9)
    audit = audit_one(copier, train, noise=spread, generator=seeded(1))
    assert audit.nearest[:, 0].median().item() == pytest.approx(audit.noised[:, 0].median().item(), rel=0.15)
    fresh = audit_one(clusters(300, 77), train, noise=spread, generator=seeded(1))
    assert fresh.nearest[:, 0].median() > 2 * fresh.noised[:, 0].median()


def test_the_unit_of_a_dimension_does_not_matter():
    train, points, unit = clusters(60, 0), clusters(20, 1), torch.tensor([1.0, 100, 0.01, 3])
    torch.testing.assert_close(audit_one(points, train).nearest, audit_one(points * unit, train * unit).nearest)


def test_distances_are_those_of_a_loop():
    train, points, groups = normal(9, 3), normal(4, 3, seed=1), list("aabbccdde")
    audit, scaled = audit_one(points, train, groups=groups), train / train.std(0)
    for t in range(4):
        torch.testing.assert_close(audit.nearest[t], (points[t] / train.std(0) - scaled).norm(dim=1).sort().values[:2])
    for a in range(9):
        others = torch.stack([scaled[b] for b in range(9) if groups[b] != groups[a]])
        torch.testing.assert_close(audit.among[a], (scaled[a] - others).norm(dim=1).sort().values[:2])


def test_rank_share_counts_pairs():
    assert rank_share(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 4])) == pytest.approx(
        (0.5 + 1 + 2 * 1 + 1) / 6 * 6 / 6
    )
    assert rank_share(torch.zeros(3), torch.ones(2)) == 1 and rank_share(torch.ones(2), torch.ones(4)) == 0.5


@pytest.fixture
def hnet() -> HNet:
    return HNet(net, 4, (9,), output_gain=2.0).eval().requires_grad_(False)


@pytest.fixture
def tasks() -> TaskSet:
    tasks = toy_tasks([(5, 6, 3), (4, 9, 2), (5, 3, 5), (6, 6, 3)])
    return TaskSet(tasks, ToyBank(tasks))


@pytest.mark.parametrize("numbers", [10**9, 3 * net.size])
def test_prediction_distance_is_the_mean_total_variation(hnet, tasks, numbers):
    z, train = normal(4, 4), normal(7, 4, seed=1)
    distances = lambda **ids: (
        compare_answers(hnet, {"": networks_from(hnet, z)}, tasks, train, numbers=numbers, **ids)[""].distances
    )
    assert distances().shape == (4, 7)
    for t in range(4):
        batch = tasks.batch(torch.tensor([t]), "query")
        predict = lambda latent: net.logits(hnet(latent[None]), batch)[0].softmax(-1)
        for a in range(7):
            torch.testing.assert_close(distances()[t, a], (predict(z[t]) - predict(train[a])).abs().sum(1).mean() / 2)


def test_errors_overlap_as_sets_do_and_probabilities_of_several_networks_are_averaged(hnet, tasks):
    z, train = normal(3, 4, 4), normal(7, 4, seed=1)
    found = compare_answers(hnet, {"three": networks_from(hnet, z)}, tasks, train)["three"]
    for t in range(4):
        batch = tasks.batch(torch.tensor([t]), "query")
        predict = lambda latent: net.logits(hnet(latent[None]), batch)[0].softmax(-1)
        wrong = lambda p: {n for n, (a, b) in enumerate(zip(p.argmax(-1).tolist(), batch.labels[0].tolist())) if a != b}
        p = torch.stack([predict(latent) for latent in z[:, t]]).mean(0)
        assert found.accuracy[t].item() == pytest.approx(100 * (1 - len(wrong(p)) / len(p)))
        for a in range(7):
            other = predict(train[a])
            torch.testing.assert_close(found.distances[t, a], (p - other).abs().sum(1).mean() / 2)
            either = wrong(p) | wrong(other)
            expected = len(wrong(p) & wrong(other)) / max(1, len(either))
            assert found.errors[t, a].item() == pytest.approx(expected)


def test_distances_of_long_vectors_are_those_of_short_ones():
    train, points = normal(30, 600), normal(5, 600, seed=1)
    found = audit_one(torch.cat([points, train[:1]]), train)
    scaled = train / train.std(0)
    torch.testing.assert_close(found.nearest[0], (points[0] / train.std(0) - scaled).norm(dim=1).sort().values[:2])
    assert found.nearest[-1, 0] < 1e-4


def test_copies_are_flagged_by_their_predictions_and_fresh_latents_are_not():
    hnet = HNet(net, 4, (9,), output_gain=3.0).double().eval().requires_grad_(False)
    tasks = toy_tasks([(4, 30, 3)] * 60)
    tasks = TaskSet(tasks, ToyBank(tasks), dtype=torch.float64)
    train = normal(60, 4, seed=5).double()
    audit = lambda z: audit_predictions(hnet, {"it": z}, tasks, train, tasks, noise=0.01, generator=seeded(0))["it"]
    copies, fresh = audit(train[torch.randperm(60, generator=seeded(3))]), audit(normal(60, 4, seed=6).double())
    assert copies.copied() == 1 and copies.nearest[:, 0].max() < 1e-9 and copies.closer > 0.95
    assert fresh.copied() < 0.2 and abs(fresh.closer - 0.5) < 0.2
    assert fresh.noised[:, 0].median() < fresh.among[:, 0].median() / 3
    few = audit_predictions(hnet, {"it": train}, tasks, train, tasks, probes=7, generator=seeded(0))["it"]
    assert len(fresh.among) == 60 and len(few.among) == 7 and few.noised is None


def test_groups_are_left_out_together():
    assert same_group(list("abab")).tolist() == [[True, False, True, False], [False, True, False, True]] * 2
    assert same_group(list("aab"), torch.tensor([2])).tolist() == [[False, False, True]]
    twins = normal(20, 3).repeat(2, 1)  # every training latent twice: alone they look like copies of each other
    names = [str(i % 20) for i in range(40)]
    assert (audit_one(twins, twins).among[:, 0] == 0).all() and (
        audit_one(twins, twins, groups=names).among[:, 0] > 0
    ).all()


def test_bad_input_is_refused(hnet, tasks):
    with pytest.raises(ValueError, match=r"\[N, 2\]"):
        Audit(torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least 2"):
        two_nearest(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="at least 2"):
        two_nearest(torch.zeros(1, 3), torch.tensor([[True, True, False]]))
    with pytest.raises(ValueError, match="generator"):
        audit_one(normal(3, 2), normal(5, 2), noise=0.1)
