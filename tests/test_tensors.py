"Tensors in memory as tasks: every example keeps its label, splits are fair, and other content is other data."

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_experiment import TINY
from toy_bank import TASKS, Toy, load

from hyperclip_nb.core.files import RunError, fingerprint
from hyperclip_nb.core.runs import Run
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.features import BankIndex, BankManifest, FeatureBank, build_bank
from hyperclip_nb.dataset.tensors import TensorBank, TensorTask, tensor_tasks
from hyperclip_nb.evaluation.experiment import Experiment


def embed(text, size=6):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(map(ord, text))))


def made(counts, shape=(4,), answers=3, **options):
    "Tasks of so many examples each, whose examples and labels are known: the first number is row + label / 10."
    g, total = torch.Generator().manual_seed(0), sum(counts) + 5
    examples, tasks, at = torch.randn(total, *shape, generator=g), [], 0
    for t, count in enumerate(counts):
        rows = torch.arange(at, at + count)[torch.randperm(count, generator=g)]
        labels = torch.arange(count) % answers
        examples.flatten(1)[rows, 0] = rows + labels / 10
        tasks.append(TensorTask(f"What is {t}?", [f"a{c}" for c in range(answers)], rows, labels, **options))
        at += count
    return examples, tasks


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(6, 30), min_size=1, max_size=5), st.sampled_from([(4,), (2, 3), (3, 2, 2)]), st.integers(2, 3)
)
def test_examples_of_any_shape_keep_their_labels_and_fall_on_one_side(counts, shape, answers):
    examples, tasks = made(counts, shape, answers)
    made_set = TaskSet.from_tensors(examples, tasks, embed_question=embed)
    for t, (task, compiled) in enumerate(zip(tasks, made_set.tasks)):
        sides = [{int(row) for row, _ in side} for side in (compiled.support, compiled.query)]
        assert not sides[0] & sides[1] and sides[0] | sides[1] == set(task.rows.tolist())
        for label in range(answers):
            n = int((task.labels == label).sum())
            support = sum(answer == label for _, answer in compiled.support)
            assert support == min(max(1, round(0.6 * n)), max(1, n - 1))
        batch = made_set.batch(torch.tensor([t]), "all")
        assert batch.images.shape == (1, counts[t], *shape) and batch.answers.shape == (1, answers, 0)
        first = batch.images.flatten(2)[0, :, 0]
        assert torch.equal(((first % 1) * 10).round().long(), batch.labels[0])
        assert set(first.long().tolist()) == sides[0] | sides[1]


def test_a_split_of_ones_own_is_kept_and_a_drawn_one_is_the_same_in_any_company():
    examples, tasks = made([20, 20, 20])
    own = torch.arange(20) % 4 == 0
    task = TensorTask("Own?", ["a0", "a1", "a2"], tasks[0].rows, tasks[0].labels, own)
    (kept,) = TaskSet.from_tensors(examples, [task], embed_question=embed).tasks
    assert [int(row) for row, _ in kept.support] == tasks[0].rows[own].tolist()
    together = TaskSet.from_tensors(examples, tasks, embed_question=embed).tasks
    alone = TaskSet.from_tensors(examples, tasks[1:2], embed_question=embed).tasks
    assert alone == together[1:2]
    assert alone != TaskSet.from_tensors(examples, tasks[1:2], embed_question=embed, seed=1).tasks


def test_arrays_lists_and_other_types_of_numbers_are_taken():
    examples, tasks = made([12])
    like = TaskSet.from_tensors(examples, tasks, embed_question=embed)
    listed = TensorTask(
        tasks[0].question, tasks[0].answers, tasks[0].rows.tolist(), tasks[0].labels.numpy().astype(np.int32)
    )
    same = TaskSet.from_tensors(
        examples.double().numpy(),
        [listed],
        embed_question=lambda text: embed(text).numpy(),
        embed_answer=lambda a: [1, 2],
    )
    assert same.tasks == like.tasks and same.images.dtype == torch.float32 and same.prompts.tolist() == [[1, 2]] * 3
    assert torch.equal(same.images, like.images) and torch.equal(same.embeddings("text"), like.embeddings("text"))
    tokens = TaskSet.from_tensors(torch.arange(40).view(20, 2), tasks, embed_question=embed)
    assert tokens.batch(tokens.all_ids).images.dtype == torch.int64 and tokens.embeddings("text").dtype == torch.float32


def test_a_regression_has_real_labels_and_no_answers():
    rows, labels = torch.arange(10), torch.linspace(-1, 1, 10)
    tasks = TaskSet.from_tensors(torch.randn(10, 2), [TensorTask("How high?", [], rows, labels)], embed_question=embed)
    batch = tasks.batch(tasks.all_ids, "all")
    assert batch.labels.dtype == torch.float32 and batch.answer_mask.shape == (1, 0)
    assert sorted(batch.labels[0].tolist()) == labels.tolist()
    both = [TensorTask("How high?", [], rows, labels), TensorTask("High?", ["no", "yes"], rows, rows % 2)]
    with pytest.raises(ValueError, match="answers in all of them or in none"):
        TaskSet.from_tensors(torch.randn(10, 2), both, embed_question=embed)


def test_each_text_is_embedded_once():
    examples, tasks = made([6, 6, 6])
    asked: list[str] = []

    def counted(text):
        asked.append(text)
        return embed(text)

    TaskSet.from_tensors(examples, [*tasks, *tasks], embed_question=counted, embed_answer=counted)
    assert sorted(asked) == sorted({"a0", "a1", "a2", *(task.question for task in tasks)})


# --- what identifies data


def content(changed=None):
    examples, tasks = made([12, 9])
    how = {"embed_question": embed, "embed_answer": lambda a: embed(a, 3)}
    if changed == "example":
        examples[tasks[0].rows[0], -1] += 1e-5
    if changed == "label":
        labels = tasks[0].labels.clone()
        labels[0] = (labels[0] + 1) % 3
        tasks[0] = TensorTask(tasks[0].question, tasks[0].answers, tasks[0].rows, labels)
    if changed == "question":
        tasks[0] = TensorTask("What is it?", tasks[0].answers, tasks[0].rows, tasks[0].labels)
    if changed == "prompt":
        how["embed_answer"] = lambda a: embed(a, 3) + (a == "a1") * 1e-5
    if changed == "embedding":
        how["embed_question"] = lambda q: embed(q) * (1 + 1e-6)
    return TaskSet.from_tensors(examples, tasks, **how)


def test_every_kind_of_content_changes_the_fingerprint():
    kinds = [None, "example", "label", "question", "prompt", "embedding"]
    assert len({content(kind).fingerprint for kind in kinds}) == len(kinds)
    assert content().fingerprint == content().fingerprint


def test_the_order_of_texts_is_not_content():
    examples, tasks = made([6])
    prompts, questions = {a: embed(a) for a in "abc"}, {q: embed(q) for q in "xyz"}
    backwards = lambda d: dict(reversed(d.items()))
    one = TensorBank(examples, prompts, {"clip": questions, "tokens": backwards(questions)})
    other = TensorBank(examples, backwards(prompts), {"tokens": questions, "clip": backwards(questions)})
    assert one.content == other.content
    assert torch.equal(one.prompts[one.prompt_rows("cab")], torch.stack([prompts[a] for a in "cab"]))
    with pytest.raises(ValueError, match="1 of 2 prompts are not in this bank, such as 'd'"):
        one.prompt_rows("ad")
    with pytest.raises(ValueError, match="ids: expected rows of 11 examples, got 11"):
        one.image_rows(["3", "11"])


def test_a_second_data_set_in_memory_does_not_get_the_first_ones_weights(tmp_path):
    def experiment(scale=1.0, **options):
        examples, tasks = made([9] * 8, (5,))
        listed, bank = tensor_tasks(scale * examples, tasks, embed, lambda a: embed(a, 5))
        bank.questions["clip"] = bank.questions["text"]
        splits = {"train": listed[:4], "val": listed[4:6], "test": listed[6:]}
        return Experiment(splits, bank, Run.create(tmp_path, {}), TINY, report=lambda text: None, **options)

    first = experiment().multitask(0).z0.clone()
    assert torch.equal(first, experiment(train=False).multitask(0).z0)
    with pytest.raises(RunError, match="multitask-0"):
        experiment(scale=1.001, train=False).multitask(0)
    assert not torch.equal(first, experiment(scale=1.001).multitask(0).z0)


def test_data_in_files_is_identified_as_ever(tmp_path):
    bank = build_bank(tmp_path / "bank", Toy(), TASKS, load, workers=0)
    splits = {"train": TASKS[:3], "val": TASKS[3:4], "test": TASKS[4:]}
    x = Experiment(splits, bank, Run.create(tmp_path / "run", {}), TINY)
    wanted = fingerprint({"features": bank.manifest.files, "tasks": msgspec.to_builtins(splits)})[:16]
    assert x.parts.data == wanted


def test_a_bank_of_files_that_has_none_is_identified_by_its_tensors(tmp_path):
    index, manifest = BankIndex.of(TASKS), BankManifest(encoder={}, dtype="float32", shard=1)
    draw = lambda n, seed: torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    of = lambda seed: FeatureBank(
        tmp_path, manifest, index, draw(len(index.images), seed), draw(len(index.prompts), 1), {"clip": draw(6, 2)}
    )
    prints = [TaskSet(TASKS, of(seed)).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
