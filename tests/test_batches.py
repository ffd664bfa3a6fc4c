import pytest
import torch
from conftest import ToyBank, toy_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.dataset.batches import TaskSet, scale_features

sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(2, 6)), min_size=1, max_size=6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(sizes)
def test_a_batch_holds_exactly_its_tasks_examples(shape):
    tasks = toy_tasks(shape)
    bank = ToyBank(tasks)
    tensors = TaskSet(tasks, bank)
    for part in ("support", "query", "all"):
        batch = tensors.batch(tensors.all_ids, part)
        for t, task in enumerate(tasks):
            examples = {"support": task.support, "query": task.query, "all": task.support + task.query}[part]
            mask = batch.mask[t]
            assert mask.sum() == len(examples)
            assert batch.labels[t][mask].tolist() == [label for _, label in examples]
            torch.testing.assert_close(
                batch.images[t][mask], scale_features(bank.images[bank.image_rows([i for i, _ in examples])])
            )
            assert (batch.labels[t][~mask] == 0).all() and (batch.images[t] != 0).any(
                -1
            ).all()  # a zero vector has no direction
            assert batch.answer_mask[t].sum() == len(task.answers)
            assert torch.equal(batch.answers[t][batch.answer_mask[t]], bank.prompts[bank.prompt_rows(task.prompts)])


def test_a_random_subset_is_drawn_without_repetition_and_from_the_part(ragged):
    batch = ragged.batch(ragged.all_ids, "support", examples=4, generator=seeded())
    assert batch.mask.sum(1).tolist() == [4, 3, 4, 4, 4]
    for t, task in enumerate(ragged.tasks):
        pool = scale_features(ragged.bank.images[ragged.bank.image_rows([i for i, _ in task.support])])
        hits = (batch.images[t][batch.mask[t]][:, None] == pool[None]).all(-1)
        assert (hits.sum(1) == 1).all() and (hits.sum(0) <= 1).all()


def test_a_task_that_there_is_not_is_named(ragged):
    ids = torch.tensor([0, 5])
    for use in (
        ragged.batch,
        ragged.ragged,
        ragged.buckets,
        lambda ids: ragged.split(ids, 2, 2, seeded()),
        lambda ids: ragged.shots(ids, 1, seeded()),
    ):
        with pytest.raises(ValueError, match=r"ids: expected tasks 0 to 4, got \[0, 5\]"):
            use(ids)


def test_every_example_is_equally_likely(ragged):
    generator, seen = seeded(1), torch.zeros(9)
    pool = scale_features(ragged.bank.images[ragged.bank.image_rows([i for i, _ in ragged.tasks[0].support])])
    for _ in range(600):
        batch = ragged.batch(torch.tensor([0]), "support", examples=3, generator=generator)
        seen += (batch.images[0][:, None] == pool[None]).all(-1).any(0)
    assert ((seen / 600 - 1 / 3).abs() < 0.08).all()  # four standard deviations


def test_split_gives_disjoint_sets_that_cover_small_tasks(ragged):
    support, query = ragged.split(ragged.all_ids, 6, 6, seeded())
    for t, task in enumerate(ragged.tasks):
        a, b = support.images[t][support.mask[t]], query.images[t][query.mask[t]]
        assert not (a[:, None] == b[None]).all(-1).any()
        assert len(a) + len(b) == min(12, len(task.support) + len(task.query))


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(1, 4), st.integers(0, 10))
def test_shots_are_exact_per_answer_and_seeded(shape, shots, seed):
    tasks = toy_tasks(shape)
    tensors = TaskSet(tasks, ToyBank(tasks))
    batch = tensors.shots(tensors.all_ids, shots, seeded(seed))
    for t, task in enumerate(tasks):
        there = torch.tensor([label for _, label in task.support]).bincount(minlength=len(task.answers))
        drawn = batch.labels[t][batch.mask[t]].bincount(minlength=len(task.answers))
        assert torch.equal(drawn, there.clamp(max=shots))
    assert torch.equal(batch.images, tensors.shots(tensors.all_ids, shots, seeded(seed)).images)


def test_buckets_partition_and_bound_the_padding():
    tasks = toy_tasks([(n, 1, 2) for n in (1, 2, 3, 5, 8, 13, 21, 34, 55, 3, 3)])
    tensors = TaskSet(tasks, ToyBank(tasks))
    groups = tensors.buckets(tensors.all_ids, "all", waste=0.3)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(tasks)))
    for ids in groups:
        sizes = tensors.sizes("all")[ids]
        assert sizes.sum() >= 0.7 * sizes.max() * len(ids)
    assert all(
        tensors.sizes("all")[ids].max() * len(ids) <= 112
        for ids in tensors.buckets(tensors.all_ids, "all", waste=1.0, limit=112)
    )


def test_bad_requests_are_refused(ragged):
    with pytest.raises(ValueError, match="generator"):
        ragged.batch(ragged.all_ids, examples=2)
    with pytest.raises(ValueError, match="'support', 'query' or 'all'"):
        ragged.batch(ragged.all_ids, "train")
    with pytest.raises(ValueError, match="'bert'"):
        ragged.embeddings("bert")
    with pytest.raises(ValueError, match="at least one task"):
        TaskSet([], ragged.bank)


def test_scaling_changes_lengths_and_no_cosine(ragged):
    x = ragged.bank.images
    unit = scale_features(x)
    torch.testing.assert_close(unit.square().mean(-1), torch.ones(len(x)))
    torch.testing.assert_close(torch.cosine_similarity(x, unit), torch.ones(len(x)))
    assert torch.equal(scale_features(x, "stored"), x)
    with pytest.raises(ValueError, match="'big'"):
        scale_features(x, "big")
