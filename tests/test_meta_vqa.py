"Meta-VQA against an independent slow reading of its rules, against the published tasks, and against broken files."

import json
import os
import random
import shutil
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.meta_vqa import ANNOTATIONS, FILES, QUESTIONS, build_meta_vqa, load_meta_vqa
from hyperclip_nb.dataset.meta_vqa_check import check_meta_vqa
from hyperclip_nb.dataset.prompts import question_to_prompt
from hyperclip_nb.dataset.tasks import image_disjoint

PUBLISHED = os.environ.get("HYPERCLIP_META_VQA")
needs_published = pytest.mark.skipif(not PUBLISHED, reason="HYPERCLIP_META_VQA is not set")


def write_vqa(folder: Path, entries) -> Path:
    "entries: (part, image id, question, answer type, answer) in annotation order -> the four official files."
    folder.mkdir(parents=True, exist_ok=True)
    ids = count(1000)
    for part in "train", "val":
        annotations, questions = [], []
        for entry_part, image, question, kind, answer in entries:
            if entry_part == part:
                number = next(ids)
                annotations.append(
                    {
                        "question_type": "what",
                        "multiple_choice_answer": answer,
                        "image_id": image,
                        "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
                        "answer_type": kind,
                        "question_id": number,
                    }
                )
                questions.append({"image_id": image, "question": question, "question_id": number})
        random.Random(0).shuffle(questions)  # the order of the questions file must not matter
        (folder / ANNOTATIONS.format(part)).write_text(json.dumps({"info": {}, "annotations": annotations}))
        (folder / QUESTIONS.format(part)).write_text(json.dumps({"info": {}, "questions": questions}))
    return folder


def reference(entries) -> dict[str, dict]:
    "The rules of PAPER.md said a second time, with lists and scans only."
    questions = []
    for part in "train", "val":
        for p, _, q, kind, _ in entries:
            if p == part and kind != "yes/no" and q not in questions:
                questions.append(q)
    tasks, counts = {}, {}
    for q in questions:
        kept = []
        for part in "train", "val":
            for p, image, q2, kind, answer in entries:
                name = f"COCO_{part}2014_" + str(image).zfill(12)
                if (p, q2) == (part, q) and kind in ("number", "other") and name not in [n for n, _ in kept]:
                    kept.append((name, answer))
        answers = []
        for _, answer in kept:
            if answer not in answers and sum(a == answer for _, a in kept) >= 2:
                answers.append(answer)
        remaining = [pair for pair in kept if pair[1] in answers]
        if len(remaining) <= 20 or len(answers) < 2 or "or" in q.split():
            continue
        task = {"train": [], "test": [], "answers": answers}
        for answer in answers:
            names = [n for n, a in remaining if a == answer]
            random.Random(2021).shuffle(names)
            for i, name in enumerate(names):
                task["train" if i < round(0.7 * len(names)) else "test"].append([name, answer])
        tasks[q], counts[q] = task, {a: sum(b == a for _, b in remaining) for a in answers}
    names = list(tasks)
    random.Random(2021).shuffle(names)
    cut = round(0.7 * len(names))
    return {"train": {q: tasks[q] for q in names[:cut]}, "test": {q: tasks[q] for q in names[cut:]}, "counts": counts}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_build_follows_the_rules(seed, tmp_path_factory):
    rng = random.Random(seed)
    questions = [f"What is in box {i}?" for i in range(rng.randint(1, 8))] + [
        "Is it red or blue?",
        "Is it red or?",
        "Why?",
    ]
    entries = [
        (
            rng.choice(["train", "val"]),
            rng.randint(1, 150),
            rng.choice(questions),
            rng.choice(["number", "other", "other", "yes/no"]),
            rng.choice(["a", "b", "a cat", "2", "x y", f"{rng.random()}"]),
        )
        for _ in range(rng.randint(0, 600))
    ]
    folder = tmp_path_factory.mktemp("vqa")
    report = build_meta_vqa(write_vqa(folder, entries), folder / "out")
    want = reference(entries)
    for name in "train", "test", "counts":
        text = (folder / "out" / FILES[name]).read_text()
        assert text == json.dumps(want[name])
    assert report.reading.annotations == len(entries)
    assert report.tasks == {"train": len(want["train"]), "test": len(want["test"])}
    entry_total = report.reading.yes_no + report.reading.repeated + sum(len(v) for v in report.reading.answers.values())
    assert entry_total == len(entries), "every annotation is either used or counted as left out"


def unshuffle(items: list) -> list:
    "What a list was before `random.Random(2021).shuffle`."
    order = list(range(len(items)))
    random.Random(2021).shuffle(order)
    original = [None] * len(items)
    for item, place in zip(items, order):
        original[place] = item
    return original


def entries_behind(published: dict, rng: random.Random):
    "VQA v2 entries that lead to these meta-train tasks, made-up meta-test tasks between them, and noise of every kind."
    total = next(n for n in range(len(published), 3 * len(published) + 9) if round(0.7 * n) == len(published))
    order = unshuffle([*published, *[None] * (total - len(published))])
    entries, fresh = [], count(700_000)
    for place, question in enumerate(order):
        noise = []
        if question is None:
            question = f"What is made up number {place}?"
            answers = {a: [("train", next(fresh)) for _ in range(rng.randint(2, 15))] for a in ("one", "two", "three")}
            answers["four"] = [("val", next(fresh)) for _ in range(21)]
        else:
            task, answers = published[question], {}
            for answer in task["answers"]:
                names = unshuffle([n for n, a in task["train"] + task["test"] if a == answer])
                answers[answer] = [(n.split("_")[1][:-4], int(n[-12:])) for n in names]
        mine = [
            (part, image, question, "other", answer) for answer, images in answers.items() for part, image in images
        ]
        noise += [(part, next(fresh), question, "other", f"singleton {part}") for part in ("train", "val")]
        noise += [(part, image, question, "number", "a second entry") for part, image, *_ in rng.sample(mine, 3)]
        noise += [
            ("train", next(fresh), question, "yes/no", "yes"),
            ("train", next(fresh), f"{question} or", "other", "left"),
        ]
        noise += [("val", next(fresh), f"Rare {place}?", "other", rng.choice("ab")) for _ in range(3)]
        entries += mine
        # a repeated image must come later than its first entry; train entries come before val ones by file
        entries += noise
    return entries


def miniature(seed: int = 0, questions: int = 40) -> list:
    rng, images = random.Random(seed), count(1)
    return [
        (part, next(images), f"What is on thing {q}?", "other", rng.choice(["a cat", "a dog", "snow", "2"]))
        for part in ("train", "val")
        for q in range(questions)
        for _ in range(rng.randint(15, 40))
    ]


def test_the_inversion_leads_back(tmp_path):
    "The proof below, on tasks that are at hand everywhere."
    build_meta_vqa(write_vqa(tmp_path / "vqa", miniature()), tmp_path / "first")
    text = (tmp_path / "first" / "meta_train.json").read_text()
    entries = entries_behind(json.loads(text), random.Random(1))
    build_meta_vqa(write_vqa(tmp_path / "again", entries), tmp_path / "second")
    assert (tmp_path / "second" / "meta_train.json").read_text() == text


@needs_published
def test_published_train_tasks_come_back_bit_for_bit(tmp_path):
    text = (Path(PUBLISHED) / "meta_train.json").read_text()
    templates = json.loads((Path(PUBLISHED) / "prompt_meta.json").read_text())
    entries = entries_behind(json.loads(text), random.Random(0))
    report = build_meta_vqa(write_vqa(tmp_path / "vqa", entries), tmp_path / "out", templates)
    assert report.tasks == {"train": 870, "test": 373}
    assert (tmp_path / "out" / "meta_train.json").read_text() == text
    prompts = json.loads((tmp_path / "out" / "prompt_meta.json").read_text())
    assert {q: prompts[q] for q in templates} == templates and len(prompts) == 1243
    assert not check_meta_vqa(tmp_path / "out").problems


@needs_published
def test_figures_of_the_paper_hold():
    count_train = check_meta_vqa(PUBLISHED).counts["meta-train"]
    assert (count_train.tasks, count_train.largest[1], count_train.widest[1]) == (870, 1242, 203)
    assert count_train.images == 64_665 - 24_925 + 11_499
    splits = load_meta_vqa(PUBLISHED, validation=0.1)
    assert {name: len(tasks) for name, tasks in splits.items() if name != "test"} == {"train": 783, "val": 87}
    train, _ = image_disjoint(splits["train"], splits["val"])
    assert not {i for t in train for i in t.images} & {i for t in splits["val"] for i in t.images}


def test_templates_win_and_rules_fill_in(tmp_path):
    build_meta_vqa(
        write_vqa(tmp_path / "vqa", miniature()), tmp_path / "out", {"What is on thing 3?": "thing 3 carries {}"}
    )
    tasks = {task.question: task for part in load_meta_vqa(tmp_path / "out").values() for task in part}
    assert len(tasks) == 40
    for question, task in tasks.items():
        template = "thing 3 carries {}" if question == "What is on thing 3?" else question_to_prompt(question)
        assert task.prompts == tuple(template.format(answer) for answer in task.answers)


def test_a_template_without_a_hole_is_refused(tmp_path):
    vqa = write_vqa(tmp_path / "vqa", miniature())
    for template in "no hole", "{} and {}":
        with pytest.raises(ValueError, match="exactly one"):
            build_meta_vqa(vqa, tmp_path / "out", {"What is on thing 3?": template})
    assert not (tmp_path / "out").exists()


def test_empty_answers_stop_unless_they_are_wanted(tmp_path):
    entries = [(part, i, "What is it?", "other", "" if i % 2 else "x") for part in ("train", "val") for i in range(30)]
    with pytest.raises(
        FileError, match=r"annotations\.json: \$\.annotations\[1\]\.multiple_choice_answer: expected an answer, got ''"
    ):
        build_meta_vqa(write_vqa(tmp_path / "vqa", entries), tmp_path / "out")
    assert build_meta_vqa(tmp_path / "vqa", tmp_path / "out", allow_empty=True).pairs == 60


def test_a_missing_file_is_named(tmp_path):
    write_vqa(tmp_path, miniature())
    (tmp_path / QUESTIONS.format("val")).unlink()
    with pytest.raises(FileError, match=QUESTIONS.format("val")):
        build_meta_vqa(tmp_path, tmp_path / "out")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "annotations",
                    "questions",
                    "question_id",
                    "image_id",
                    "answer_type",
                    "multiple_choice_answer",
                    "question",
                    "x",
                ]
            ),
            x,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_comes_is_read_or_refused_with_a_place(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa")
    write_vqa(folder, [("train", 1, "What?", "other", "a"), ("val", 2, "Où est le {chat}?", "number", "2")])
    path = folder / data.draw(st.sampled_from([ANNOTATIONS, QUESTIONS])).format(
        data.draw(st.sampled_from(["train", "val"]))
    )
    text = path.read_text()
    cut = data.draw(st.integers(0, len(text) - 1))
    replacement = data.draw(st.one_of(st.just(text[:cut]), JSON.map(json.dumps), st.binary(max_size=20)))
    path.write_bytes(replacement if isinstance(replacement, bytes) else replacement.encode())
    try:
        build_meta_vqa(folder, folder / "out")
    except FileError as error:
        assert str(folder) in str(error)
        assert not (folder / "out").exists()


@settings(max_examples=60, deadline=None)
@given(
    content=st.one_of(
        st.dictionaries(
            st.sampled_from(["Q?", "", "R?"]),
            JSON
            | st.fixed_dictionaries(
                {
                    "train": st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", ""])), max_size=3),
                    "test": st.lists(st.tuples(st.sampled_from("cd"), st.sampled_from(["x", "y"])), max_size=3),
                    "answers": st.lists(st.sampled_from(["x", "y", ""]), max_size=3),
                }
            ),
        ),
        JSON,
    )
)
def test_check_lists_problems_and_load_refuses(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("meta")
    (folder / FILES["train"]).write_text(json.dumps(content))
    check = check_meta_vqa(folder)
    assert check.problems == [p for p in check.problems if str(folder / FILES["train"]) in p]
    if check.problems and not any(
        "expected more than 20" in p or "image name" in p or "in train, got" in p or "at least twice" in p
        for p in check.problems
    ):
        with pytest.raises(FileError):
            load_meta_vqa(folder)
    print(check)


# --- four files, one set


def other_build(folder):
    entries = [
        ("train" if i % 2 else "val", i, f"What color is car {k}?", "other", "xy"[i // 3 % 2])
        for k in range(9)
        for i in range(30)
    ]
    return write_vqa(folder, entries)


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_build_that_breaks_off_is_no_set(tmp_path, monkeypatch, stop):
    "Over an older build, at any of its writes: the reader has the old set, the new one, or refuses; never a mixture."
    build_meta_vqa(write_vqa(tmp_path / "a", miniature()), tmp_path / "out")
    old = load_meta_vqa(tmp_path / "out")
    build_meta_vqa(other_build(tmp_path / "b"), tmp_path / "new")
    new, replace, calls = load_meta_vqa(tmp_path / "new"), os.replace, []

    def full(*args):
        calls.append(args)
        if len(calls) == stop:
            raise OSError(28, "No space left on device")
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr("hyperclip_nb.core.files.os.replace", full)
        with pytest.raises(OSError):
            build_meta_vqa(tmp_path / "b", tmp_path / "out")
    try:
        seen = load_meta_vqa(tmp_path / "out")
    except FileError as error:
        assert "did not finish" in str(error) and check_meta_vqa(tmp_path / "out").problems
    else:
        assert seen == old and stop == 1
    build_meta_vqa(tmp_path / "b", tmp_path / "out")
    assert load_meta_vqa(tmp_path / "out") == new


def test_files_of_two_builds_are_refused(tmp_path):
    build_meta_vqa(write_vqa(tmp_path / "a", miniature()), tmp_path / "out")
    build_meta_vqa(other_build(tmp_path / "b"), tmp_path / "new")
    shutil.copy(tmp_path / "new" / FILES["test"], tmp_path / "out" / FILES["test"])
    with pytest.raises(FileError, match="meta_test.json: expected the file that was built with the others"):
        load_meta_vqa(tmp_path / "out")


@pytest.mark.parametrize("content", ["{}", '{"complete": "mine"}', "mine"])
def test_a_file_of_another_kind_under_the_name_of_ours_is_left_alone(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "meta_vqa.json").write_text(content)
    with pytest.raises(FileError, match="meta_vqa.json"):
        build_meta_vqa(write_vqa(tmp_path / "a", miniature()), tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {"meta_vqa.json": content}


def test_published_files_are_read_and_never_overwritten(tmp_path):
    build_meta_vqa(write_vqa(tmp_path / "a", miniature()), tmp_path / "out")
    (tmp_path / "out" / "meta_vqa.json").unlink()  # as downloaded
    load_meta_vqa(tmp_path / "out")
    before = (tmp_path / "out" / FILES["train"]).read_bytes()
    with pytest.raises(FileError, match="expected no other task files, found meta_train.json"):
        build_meta_vqa(other_build(tmp_path / "b"), tmp_path / "out")
    assert (tmp_path / "out" / FILES["train"]).read_bytes() == before


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda a: a.pop("multiple_choice_answer"), "multiple_choice_answer"),  # OK-VQA
        (lambda a: a.update(answer_type="unanswerable"), "unanswerable"),  # VizWiz
        (lambda a: a.update(question_id="x1"), "question_id"),  # A-OKVQA, TextVQA
        (lambda a: a.update(image_id="COCO_val2014_000000000005"), "image_id"),
        (lambda a: a.update(multiple_choice_answer=2), "multiple_choice_answer"),
    ],
)
def test_relatives_of_vqa_are_refused_by_name(tmp_path, change, words):
    path = write_vqa(tmp_path / "vqa", miniature()) / ANNOTATIONS.format("train")
    content = json.loads(path.read_text())
    change(content["annotations"][1])
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match=rf"(?s)annotations.json: .*{words}.*VQA v2's own four files"):
        build_meta_vqa(tmp_path / "vqa", tmp_path / "out")
