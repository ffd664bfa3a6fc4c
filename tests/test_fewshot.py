import pytest
import torch
from conftest import EMBED, ToyBank, toy_tasks
from msgspec.structs import replace
from torch import Tensor

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.basenet.network import set_accuracy, task_accuracy
from hyperclip_nb.core.blocks import Standardizer
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.diffusion.denoisers import DenoiserConfig
from hyperclip_nb.diffusion.hyperldm import HyperLDM
from hyperclip_nb.diffusion.schedule import DiffusionConfig
from hyperclip_nb.evaluation.fewshot import (
    Mixture,
    choose_steps,
    ensemble_latents,
    few_shot_guidance,
    few_shot_scores,
    few_shot_table,
    log_frequencies,
    mixture_logits,
    score_learner,
    support_draws,
)
from hyperclip_nb.hypernet.hypernetworks import HNet
from hyperclip_nb.hypernet.metatrain import Adaptation, adapt, task_energy

net, HOW = AdapterNet(EMBED, 5), Adaptation(steps=3, lr=0.3)


def normal(*shape, seed=0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


@pytest.fixture
def hnet() -> HNet:
    return HNet(net, 4, (9,), output_gain=1.0).eval().requires_grad_(False)


@pytest.fixture
def uneven() -> TaskSet:
    "Tasks of several sizes, so that they come in several buckets."
    tasks = toy_tasks([(30, 6, 3), (4, 9, 2), (25, 3, 5), (6, 6, 3), (33, 4, 4), (5, 2, 2)])
    return TaskSet(tasks, ToyBank(tasks))


def examples(batch, t: int) -> set[tuple]:
    "The images of a task of a batch, with their labels."
    return {
        (*image.tolist(), int(label))
        for image, label in zip(batch.images[t][batch.mask[t]], batch.labels[t][batch.mask[t]])
    }


def by_task(tasks, shots, **kw) -> dict[int, set[tuple]]:
    return {
        int(i): examples(batch, t) for batch in support_draws(tasks, shots, **kw) for t, i in enumerate(batch.index)
    }


def test_draws_are_exact_per_answer_seeded_and_nested(uneven):
    for n in (1, 2, 5):
        for batch in support_draws(uneven, n, seed=3):
            for t, i in enumerate(batch.index.tolist()):
                task = uneven.tasks[i]
                there = torch.tensor([label for _, label in task.support]).bincount(minlength=len(task.answers))
                assert torch.equal(
                    batch.labels[t][batch.mask[t]].bincount(minlength=len(task.answers)), there.clamp(max=n)
                )
    one, two, again, other = (by_task(uneven, n, seed=s) for n, s in ((1, 3), (2, 3), (1, 3), (1, 4)))
    assert one.keys() == set(range(len(uneven))) and one == again and one != other
    assert all(one[i] < two[i] for i in one if len(uneven.tasks[i].support) > 6)
    assert all(one[i] <= two[i] for i in one)


def test_every_repeat_sees_every_task_once(uneven):
    seen = torch.cat([batch.index for batch in support_draws(uneven, 2, repeats=3, limit=20)])
    assert torch.equal(seen.bincount(), torch.full((len(uneven),), 3))
    seen = torch.cat([batch.index for batch in support_draws(uneven, "all", repeats=3)])
    assert torch.equal(seen.sort().values, uneven.all_ids)  # there is nothing to repeat
    first, second = (
        by_task(uneven, 1, repeats=1),
        by_task(uneven, 1, repeats=2),
    )  # the last repeat stays in the dictionary
    assert first != second


def test_images_as_they_come_are_counted_in_all_seeded_and_nested(uneven):
    five, again, two = (by_task(uneven, f"{n}_as_they_come", seed=s) for n, s in ((5, 3), (5, 3), (2, 3)))
    assert five == again and all(two[i] <= five[i] for i in five)
    support = by_task(uneven, "all")
    for i, task in enumerate(uneven.tasks):
        assert len(five[i]) <= min(5, len(task.support)) and five[i] <= support[i]
    drawn = [batch for r in range(300) for batch in support_draws(uneven, "5_as_they_come", seed=r)]
    task = next(i for i, task in enumerate(uneven.tasks) if len(task.support) == 33)
    labels = torch.cat([b.labels[b.index == task][b.mask[b.index == task]] for b in drawn]).bincount().double()
    there = torch.tensor([label for _, label in uneven.tasks[task].support]).bincount().double()
    torch.testing.assert_close(labels / labels.sum(), there / there.sum(), atol=0.05, rtol=0)


def test_no_shots_are_an_empty_support_set(uneven, hnet):
    (total,) = {int(batch.mask.sum()) for batch in support_draws(uneven, 0)}
    start = normal(len(uneven), 4)
    plain = 100 * set_accuracy(hnet(start), uneven, net).double()
    assert total == 0 and torch.allclose(score_learner(lambda b: [start[b.index]], hnet, uneven, 0)[0], plain)


def test_frequencies_are_smoothed_counts_and_none_changes_nothing(uneven, hnet):
    batch = uneven.batch(uneven.all_ids, "support")
    for t, task in enumerate(uneven.tasks):
        counts = torch.tensor([label for _, label in task.support]).bincount(minlength=len(task.answers)).float()
        for α in (1.0, 30.0):
            wanted = ((counts + α) / (counts + α).sum()).log()
            torch.testing.assert_close(log_frequencies(batch, α)[t, : len(counts)], wanted)
            assert not log_frequencies(batch, α)[t, len(counts) :].any()
    assert not log_frequencies(batch, None).any()
    start = normal(len(uneven), 4)
    path = lambda b: [start[b.index], start[b.index] + 0.1]
    table = score_learner(path, hnet, uneven, "all", (0, 1), alphas=(None, 1.0, 1e9))
    assert table.shape == (6, len(uneven))
    assert torch.equal(table[[0, 2]], table[[0, 0]]) and torch.equal(table[[3, 5]], table[[3, 3]])  # a huge α is none
    assert torch.equal(table[[0, 3]], score_learner(path, hnet, uneven, "all", (0, 1)))


def test_a_mixture_is_the_weighted_mean_of_probabilities(uneven, hnet):
    batch, z = uneven.batch(uneven.all_ids, "query"), normal(3, len(uneven), 4)
    shares = normal(3, len(uneven), seed=1)
    found = mixture_logits(Mixture(z, shares), hnet, batch).exp()
    each = torch.stack([net.logits(hnet(one), batch).softmax(-1) for one in z])
    torch.testing.assert_close(found, (shares.softmax(0)[..., None, None] * each).sum(0))
    alone = mixture_logits(Mixture(z[:1], torch.zeros(1, len(uneven))), hnet, batch)
    torch.testing.assert_close(alone.softmax(-1), mixture_logits(z[0], hnet, batch).softmax(-1))


@pytest.mark.parametrize("shots", [1, "all"])
@pytest.mark.parametrize("shared", [True, False])
def test_scores_equal_a_loop_over_tasks(uneven, hnet, shots, shared):
    start = normal(4) if shared else normal(len(uneven), 4)
    scores = few_shot_scores(hnet, start, uneven, [shots], HOW, repeats=2, seed=5)[shots]
    draws = list(support_draws(uneven, shots, repeats=2 if shots == 1 else 1, seed=5))
    for t in range(len(uneven)):
        found = []
        for batch in draws:
            (row,) = (batch.index == t).nonzero(as_tuple=True)
            if not len(row):
                continue
            z = adapt(hnet, start if shared else start[t][None], batch.select(row), HOW)
            found.append(100 * task_accuracy(hnet(z), uneven.batch(torch.tensor([t]), "query"), net).item())
        assert scores[t].item() == pytest.approx(sum(found) / len(found), abs=1e-4)


def test_one_descent_serves_all_numbers_of_steps(uneven, hnet):
    start, steps = normal(len(uneven), 4), (0, 2, 5)
    table = few_shot_table(hnet, start, uneven, (0, 1, "all"), HOW, steps, repeats=2)
    zero = 100 * set_accuracy(hnet(start), uneven, net).double()
    assert (
        torch.equal(table[0], zero.expand(3, -1))
        and torch.allclose(table[1][0], zero)
        and torch.allclose(table["all"][0], zero)
    )
    for k, row in zip(steps, table[1]):
        torch.testing.assert_close(
            row, few_shot_scores(hnet, start, uneven, [1], Adaptation(steps=k, lr=0.3), repeats=2)[1]
        )
    chosen = {0: 0, 1: 5, "all": 2}
    scores = few_shot_scores(hnet, start, uneven, (0, 1, "all"), HOW, chosen, repeats=2)
    assert (
        torch.allclose(scores[1], table[1][2])
        and torch.allclose(scores["all"], table["all"][1])
        and torch.equal(scores[0], zero)
    )


def test_steps_are_chosen_by_the_mean_and_fewest_among_equals():
    table = {
        0: torch.tensor([[50.0, 50], [50, 50]]),
        1: torch.tensor([[40.0, 50], [70, 30]]),
        "all": torch.tensor([[50.0, 50], [0, 100]]),
    }
    assert choose_steps(table, (2, 7)) == {0: 2, 1: 7, "all": 2}


def test_examples_help_and_more_help_more():
    "Labels that another latent's network gave, so that examples teach."
    blank, z = toy_tasks([(40, 20, 3)] * 8), normal(8, 20, seed=2)
    tasks = TaskSet(blank, ToyBank(blank))
    generator = HNet(net, 20, (30,), output_gain=3.0).eval().requires_grad_(False)
    answers = lambda part: net.logits(generator(z), tasks.batch(tasks.all_ids, part)).argmax(-1).tolist()
    labels = {part: answers(part) for part in ("support", "query")}
    relabel = lambda task, given: {
        part: tuple((i, label) for (i, _), label in zip(getattr(task, part), given[part])) for part in given
    }
    taught = [
        replace(task, **relabel(task, {part: rows[t] for part, rows in labels.items()})) for t, task in enumerate(blank)
    ]
    tasks, how = TaskSet(taught, tasks.bank), Adaptation(steps=30, lr=0.1)
    scores = few_shot_scores(generator, generator.z0, tasks, (0, 1, 5, "all"), how, repeats=3)
    means = [score.mean().item() for score in scores.values()]
    assert means == sorted(means) and means[-1] > means[0] + 10


@pytest.fixture
def ldm() -> HyperLDM:
    schedule, size = (
        DiffusionConfig(timesteps=20, schedule="cosine", prediction="v"),
        DenoiserConfig(hidden=8, depth=2, time_size=8),
    )
    return HyperLDM.make(3, 4, Standardizer(2 * normal(50, 4, seed=1) + 1), schedule, size)


def test_guidance_at_factor_zero_is_plain_sampling_and_else_lowers_the_support_loss(ragged, hnet, ldm):
    e, batch = normal(len(ragged), 3), ragged.batch(ragged.all_ids)
    draw = lambda factor, **kw: few_shot_guidance(
        ldm, hnet, e, batch, generator=seeded(7), factor=factor, samples=3, **kw
    )
    plain, energy = ldm.generate(e, generator=seeded(7), samples=3), task_energy(hnet, batch)
    torch.testing.assert_close(draw(0.0), plain)
    assert draw(1.0).shape == (3, len(ragged), 4)
    loss = lambda z: torch.stack([energy(sample) for sample in z]).mean()
    assert loss(draw(0.3)) < loss(plain) and loss(draw(1.0)) < loss(draw(0.3))
    assert loss(draw(1.0, rule="published")) < loss(plain)
    with pytest.raises(ValueError, match="each of the 5 tasks"):
        few_shot_guidance(ldm, hnet, e[:2], batch, generator=seeded(7))


def test_a_learner_can_be_anything_that_reads_a_support_set(uneven, hnet, ldm):
    e = normal(len(uneven), 3)
    guided = lambda batch: few_shot_guidance(ldm, hnet, e[batch.index], batch, generator=seeded(0))
    scores = score_learner(guided, hnet, uneven, 2, repeats=2)
    assert scores.shape == (1, len(uneven)) and (scores >= 0).all() and (scores <= 100).all()
    with pytest.raises(ValueError, match="path of 4 steps, got one of 0"):
        score_learner(guided, hnet, uneven, 2, (4,))


def test_ensembles_of_latents():
    z = normal(5, 7, 4)
    torch.testing.assert_close(ensemble_latents(z), sum(z) / 5)
    for t in range(7):
        far = [sum((z[k, t] - z[j, t]).norm() for j in range(5)) for k in range(5)]
        assert torch.equal(ensemble_latents(z, "medoid")[t], z[far.index(min(far)), t])
    with pytest.raises(ValueError, match="medoid"):
        ensemble_latents(z, "median")


def test_bad_input_is_refused(uneven, hnet):
    for shots, repeats in ((-1, 1), ("some", 1), (1, 0), (1.5, 1), ("0_as_they_come", 1), ("5_at_once", 1)):
        with pytest.raises(ValueError, match="expected shots of 0 or more"):
            next(support_draws(uneven, shots, repeats))
    with pytest.raises(ValueError, match="range"):
        few_shot_scores(hnet, normal(4), uneven, [1], Adaptation(steps=(1, 3)))
