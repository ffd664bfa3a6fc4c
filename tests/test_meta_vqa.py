"Meta-VQA against an independent slow reading of its rules, against the published tasks, and against broken files."
import json
import os
import random
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.meta_vqa import ANNOTATIONS, FILES, QUESTIONS, build_meta_vqa, check_meta_vqa, load_meta_vqa
from hyperclip_nb.prompts import question_to_prompt

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
                annotations.append({"question_type": "what", "multiple_choice_answer": answer, "image_id": image,
                                    "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
                                    "answer_type": kind, "question_id": number})
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
    questions = [f"What is in box {i}?" for i in range(rng.randint(1, 8))] + ["Is it red or blue?", "Is it red or?", "Why?"]
    entries = [(rng.choice(["train", "val"]), rng.randint(1, 150), rng.choice(questions),
                rng.choice(["number", "other", "other", "yes/no"]), rng.choice(["a", "b", "a cat", "2", "x y", f"{rng.random()}"]))
               for _ in range(rng.randint(0, 600))]
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
        mine = [(part, image, question, "other", answer) for answer, images in answers.items() for part, image in images]
        noise += [(part, next(fresh), question, "other", f"singleton {part}") for part in ("train", "val")]
        noise += [(part, image, question, "number", "a second entry") for part, image, *_ in rng.sample(mine, 3)]
        noise += [("train", next(fresh), question, "yes/no", "yes"), ("train", next(fresh), f"{question} or", "other", "left")]
        noise += [("val", next(fresh), f"Rare {place}?", "other", rng.choice("ab")) for _ in range(3)]
        entries += mine
        # a repeated image must come later than its first entry; train entries come before val ones by file
        entries += noise
    return entries


def rebuilt(published, folder, seed=0):
    return build_meta_vqa(write_vqa(folder / "vqa", entries_behind(published, random.Random(seed))), folder / "out")


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
