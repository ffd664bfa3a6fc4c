"Opening tasks with their features: nothing leaks, nothing is lost in silence, and mixed batches hold what they should."

import json
import os
import warnings
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bank import Toy, load

from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.coco_tasks import draw_coco_tasks, group_objects
from hyperclip_nb.dataset.features import BankIndex, build_bank
from hyperclip_nb.dataset.sources import COCO_TEMPLATE, MixedEpisodes, coco_pool, open_tasks, read_tasks
from hyperclip_nb.dataset.tasks import Task, save_tasks
from hyperclip_nb.hypernet.metatrain import Episodes


def task(number: int, images: list[int]) -> Task:
    "Two answers in turn; half of the pictures to support."
    examples = tuple((f"0/{image}", k % 2) for k, image in enumerate(images))
    return Task(
        question=f"what is {number}?",
        answers=("a", "b"),
        prompts=(f"{number} is a", f"{number} is b"),
        support=examples[: len(examples) // 2],
        query=examples[len(examples) // 2 :],
    )


def tasks_on_disk(folder, sizes=(("train", 8), ("test", 3)), pictures=12, seed=0):
    rng, numbers = np.random.default_rng(seed), iter(range(10**6))
    splits = {
        name: [task(next(numbers), rng.permutation(60)[:pictures].tolist()) for _ in range(n)]
        for name, n in dict(sizes).items()
    }
    for name, part in splits.items():
        save_tasks(folder / f"{name}.json", part)
    return splits


def bank_of(folder, splits, **options):
    return build_bank(
        folder, Toy(), [t for part in splits.values() for t in part], options.pop("load", load), workers=0, **options
    )


def images(tasks):
    return {image for task in tasks for image in task.images}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    pictures=st.integers(4, 40),
    validation=st.sampled_from([0.1, 0.3, 0.6]),
    disjoint=st.booleans(),
)
def test_splits(seed, pictures, validation, disjoint, tmp_path_factory):
    folder, told = tmp_path_factory.mktemp("data"), []
    written = tasks_on_disk(folder / "tasks", pictures=pictures, seed=seed)
    bank_of(folder / "bank", written)
    try:
        split = "image-disjoint" if disjoint else "standard"
        splits, bank = open_tasks(folder / "tasks", folder / "bank", split, validation, seed, told.append)
    except FileError as error:
        few = "expected at least 2 train tasks" in str(error)
        assert disjoint if few else "none remain in" in str(error) and (disjoint or round(8 * validation) in (0, 8))
        return
    assert splits["test"] == written["test"]
    assert len(splits["val"]) == round(8 * validation) and all(t in written["train"] for t in splits["val"])
    assert not {t.question for t in splits["train"]} & {t.question for t in splits["val"]}
    held_out = images(splits["val"] + splits["test"])
    if disjoint:
        assert not images(splits["train"]) & held_out
        before = sum(len(t.images) for t in written["train"] if t not in splits["val"])
        after = sum(len(t.images) for t in splits["train"])
        assert bool(told) == (before != after) and all(f"{before - after} example" in line for line in told)
    else:
        assert splits["train"] == [t for t in written["train"] if t not in splits["val"]] and told == []
    bank.image_rows(sorted(images(t for part in splits.values() for t in part)))


def test_own_validation_tasks_are_used(tmp_path):
    written = tasks_on_disk(tmp_path / "tasks", {"train": 4, "val": 2, "test": 2})
    bank_of(tmp_path / "bank", written)
    assert open_tasks(tmp_path / "tasks", tmp_path / "bank")[0] == written


def test_unreadable_pictures_leave_the_tasks(tmp_path):
    written, told, broken = tasks_on_disk(tmp_path / "tasks"), [], {f"0/{i}" for i in range(0, 60, 7)}

    def partly(ids):
        if hit := broken.intersection(ids):
            raise ValueError(f"can't read {min(hit)}")
        return load(ids)

    bank_of(tmp_path / "bank", written, skip_bad=True, load=partly)
    splits, bank = open_tasks(tmp_path / "tasks", tmp_path / "bank", validation=0.3, report=told.append)
    assert not broken & images(t for part in splits.values() for t in part)
    lost = sum(sum(image in broken for image in t.images) for part in written.values() for t in part)
    assert lost and sum(int(line.split(": ")[1].split()[0]) for line in told) == lost


def test_a_question_without_a_prompt_gets_one_in_english(tmp_path):
    (tmp_path / "tasks.json").write_text(
        json.dumps(
            {
                "What kind of boat is that?": {
                    "train": [["a.jpg", "x"], ["b", "y"]],
                    "test": [["c", "x"]],
                    "answers": ["x", "y"],
                }
            }
        )
    )
    for path in tmp_path, tmp_path / "tasks.json":
        assert read_tasks(path)["test"][0].prompts == ("the kind of boat is x", "the kind of boat is y")


@pytest.mark.parametrize(
    "files, words",
    [
        ([], "found none of them"),
        (["tasks.json", "meta_train.json"], "found meta_train.json, tasks.json"),
        (["tasks.json", "test.json"], "found test.json, tasks.json"),
        (["train.json"], "found no test tasks"),
        (["tasks.json"], "found no train tasks"),
    ],
)
def test_layouts_that_are_refused(tmp_path, files, words):
    written = tasks_on_disk(tmp_path / "elsewhere")
    bank_of(tmp_path / "bank", written)
    (tmp_path / "tasks").mkdir()
    for i, name in enumerate(files):
        save_tasks(tmp_path / "tasks" / name, written["train"][i : i + 1])
    with pytest.raises(FileError, match=words):
        open_tasks(tmp_path / "tasks", tmp_path / "bank")


def test_a_question_on_two_sides_is_refused(tmp_path):
    written = tasks_on_disk(tmp_path)
    save_tasks(tmp_path / "val.json", written["test"][1:])
    with pytest.raises(FileError, match="'what is 9\\?' is in val and in test"):
        read_tasks(tmp_path)


@pytest.mark.parametrize(
    "part, change",
    [
        ("images", lambda t: task(0, list(range(60, 72)))),
        (
            "prompts",
            lambda t: Task(
                question=t.question, answers=t.answers, prompts=("one", "two"), support=t.support, query=t.query
            ),
        ),
        (
            "questions",
            lambda t: Task(question="another?", answers=t.answers, prompts=t.prompts, support=t.support, query=t.query),
        ),
    ],
)
def test_features_of_other_tasks_are_refused(tmp_path, part, change):
    written = tasks_on_disk(tmp_path / "tasks")
    bank_of(tmp_path / "bank", written)
    save_tasks(tmp_path / "tasks" / "train.json", [change(written["train"][0]), *written["train"][1:]])
    with pytest.raises(FileError, match=f"{part} are not there, such as"):
        open_tasks(tmp_path / "tasks", tmp_path / "bank")


# The extended tasks


@settings(max_examples=30, deadline=None)
@given(
    own=st.integers(1, 50),
    others=st.integers(0, 300),
    extra=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    tasks=st.integers(1, 64),
    seed=st.integers(0, 99),
)
def test_shares_of_a_batch(own, others, extra, tasks, seed):
    ids = MixedEpisodes(own=own, extra=extra, tasks=tasks).ids(own + others, torch.Generator().manual_seed(seed))
    assert len(ids.unique()) == len(ids) and ids.min() >= 0 and ids.max() < own + others
    drawn = min(round(extra * tasks), others)
    assert len(ids) and int((ids >= own).sum()) == drawn and int((ids < own).sum()) == min(tasks - drawn, own)


def test_all_tasks_are_drawn_alike():
    episodes, generator, counts = MixedEpisodes(own=10, tasks=8), torch.Generator().manual_seed(0), Counter()
    for _ in range(3000):
        counts.update(episodes.ids(30, generator).tolist())
    assert all(abs(counts[i] - 3000 * (4 / 10 if i < 10 else 4 / 20)) < 5 * 3000**0.5 / 2 for i in range(30))


def same(one, other):
    "Two batches, or two ragged ones, hold the same."
    return len(one.parts) == len(other.parts) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one.parts, other.parts)
        for name in a.__dataclass_fields__
    )


@pytest.mark.parametrize("sizes", [{}, {"tasks": 3, "support": 4, "query": 2}, {"support": None, "query": None}])
def test_without_extra_tasks_it_is_episodes(ragged, sizes):
    "What draws for `fit_meta` lives in a later notebook; the two must not drift apart."
    draws = [
        what.draw(ragged, torch.Generator().manual_seed(3))
        for what in (Episodes(**sizes), MixedEpisodes(own=5, extra=0, **sizes))
    ]
    assert all(same(*pair) for pair in zip(*draws))


@pytest.mark.parametrize(
    "wrong", [{"own": 0}, {"extra": 1.0}, {"extra": -0.1}, {"tasks": 0}, {"support": None}, {"query": 0}]
)
def test_impossible_shares_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        MixedEpisodes(**{"own": 5, **wrong})


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 5)), min_size=300, max_size=600),
    seed=st.integers(0, 9),
)
def test_the_pool_has_all_that_a_draw_needs(pairs, seed):
    rows = np.array(pairs)
    objects = group_objects([f"c{k}" for k in range(6)], [f"i{i}" for i in range(200)], rows[:, 0], rows[:, 1])
    pool = coco_pool(objects)
    index = BankIndex.of([pool])
    assert set(index.images) == {f"i{i}" for i, _ in pairs} and index.questions == []
    truth = {(f"i{i}", f"c{k}") for i, k in pairs}
    assert all((image, pool.answers[k]) in truth for image, k in pool.support)
    try:
        drawn = draw_coco_tasks(objects, 20, seed, support=2, query=2, template=COCO_TEMPLATE)
    except ValueError:
        return
    wanted = BankIndex.of(drawn)
    assert set(wanted.images) <= set(index.images) and set(wanted.prompts) <= set(index.prompts)


@pytest.mark.parametrize("other", ["what is 0 ?", "What is  0?", "WHAT IS 0?\u200b", "what is ０?"])
def test_a_question_in_two_splits_but_for_case_and_spaces_is_mentioned(tmp_path, other):
    splits = tasks_on_disk(tmp_path)
    again = msgspec.structs.replace(splits["test"][0], question=other)
    save_tasks(tmp_path / "test.json", [again, *splits["test"][1:]])
    with pytest.warns(UserWarning, match=r"1 question\(s\) are in two splits but for case and spaces.*not held out"):
        assert len(read_tasks(tmp_path)["test"]) == 3


def test_different_questions_are_not_mentioned(tmp_path):
    tasks_on_disk(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_tasks(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tasks_of_other_editors_are_read(tmp_path, encoding):
    splits = tasks_on_disk(tmp_path)
    for name in "train.json", "test.json":
        (tmp_path / name).write_bytes((tmp_path / name).read_text().encode(encoding))
    assert read_tasks(tmp_path) == splits


def test_deep_and_foreign_tasks_are_refused(tmp_path):
    for content in b'{"q?":' + b"[" * 3000 + b"]" * 3000 + b"}", '{"Où?": 1}'.encode("latin-1"):
        (tmp_path / "tasks.json").write_bytes(content)
        with pytest.raises(FileError, match="tasks.json"):
            read_tasks(tmp_path)
    (tmp_path / "tasks.json").unlink()
    os.mkfifo(tmp_path / "tasks.json")
    with pytest.raises(FileError):
        read_tasks(tmp_path / "tasks.json")


def test_too_little_is_refused_before_anything_is_trained(tmp_path):
    splits = tasks_on_disk(tmp_path / "tasks", (("train", 8), ("val", 2), ("test", 1)))
    bank_of(tmp_path / "bank", splits)
    with pytest.raises(FileError, match="expected at least 2 test tasks.*found 1; write more of them"):
        open_tasks(tmp_path / "tasks", tmp_path / "bank")
    splits = tasks_on_disk(tmp_path / "tasks", (("train", 8), ("val", 2), ("test", 3)))
    one_cell = [msgspec.structs.replace(t, cell="car/color") for t in splits["test"][:2]]
    save_tasks(tmp_path / "tasks" / "test.json", [*one_cell, splits["test"][2]])
    bank_of(tmp_path / "more", splits)
    with pytest.raises(FileError, match="found 2 of 3 in 'car/color'"):
        open_tasks(tmp_path / "tasks", tmp_path / "more")
