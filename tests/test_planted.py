"The stand-in for Meta-VQA: features that name and seed decide, relations that were planted, words that tables carry."

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch

from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.features import FeatureBank, bank_note
from hyperclip_nb.dataset.planted import (
    ASKED,
    NOTE,
    NOUNS,
    SCALE,
    Planted,
    PlantedEncoder,
    kind_and_sign,
    made_up_tasks,
    plant,
)
from hyperclip_nb.dataset.sources import open_tasks, read_tasks
from hyperclip_nb.dataset.tasks import task_problems
from hyperclip_nb.evaluation.presets import Source

PUBLISHED = os.environ.get("HYPERCLIP_META_VQA")
SMALL = Planted(embed=24)


def everything(splits):
    return [task for part in splits.values() for task in part]


def test_made_up_tasks_are_sound_ragged_and_share_pictures():
    splits = made_up_tasks(60, seed=3)
    tasks = everything(splits)
    assert (len(splits["train"]), len(splits["test"])) == (42, 18) and splits == made_up_tasks(60, seed=3)
    assert not any(task_problems(task) for task in tasks) and len({task.question for task in tasks}) == 60
    sizes, widths = [len(task.images) for task in tasks], [len(task.answers) for task in tasks]
    assert min(sizes) > 20 and max(sizes) > 4 * min(sizes) and min(widths) == 2 and max(widths) > 8
    for task in tasks:  # Meta-VQA's rules: an answer is seen twice or more, 70 % of its pictures are support
        given = Counter(answer for _, answer in (*task.support, *task.query))
        learned = Counter(answer for _, answer in task.support)
        assert all(n > 1 and learned[answer] == round(0.7 * n) for answer, n in given.items())
    uses = Counter(image for task in tasks for image in task.images)
    assert 1.3 < sum(uses.values()) / len(uses) < 1.6
    assert made_up_tasks(60, seed=4) != splits
    for count in 3, len(ASKED) * len(NOUNS) + 1:
        with pytest.raises(ValueError, match=f"got {count}"):
            made_up_tasks(count)


def test_a_feature_is_decided_by_its_names_and_its_labels_alone():
    tasks = everything(made_up_tasks(20))
    uses = Counter(image for task in tasks for image in task.images)
    first = next(task for task in tasks if any(uses[image] == 1 for image in task.images))
    alone = [image for image in first.images if uses[image] == 1]
    some, all_of_them = PlantedEncoder([first], SMALL), PlantedEncoder(reversed(tasks), SMALL)
    assert torch.equal(some.encode_images(some.load(alone)), all_of_them.encode_images(all_of_them.load(alone)))
    assert torch.equal(some.encode_texts(first.prompts), all_of_them.encode_texts(first.prompts))
    other = PlantedEncoder([first], Planted(embed=24, seed=1))
    assert not torch.equal(some.encode_images(some.load(alone)), other.encode_images(other.load(alone)))
    assert some.fingerprint != all_of_them.fingerprint and some.fingerprint["note"] == NOTE


def test_a_picture_is_the_sum_of_its_labels_and_shifts_and_the_noise():
    tasks = everything(made_up_tasks(20))
    bare, noisy = Planted(embed=24, noise=0, nuisance=0), Planted(embed=24, noise=0.5, nuisance=0)
    encoder = PlantedEncoder(tasks, bare)
    x = encoder.encode_images(encoder.load(encoder.images)).double().numpy() / SCALE
    wanted = {image: np.zeros(24) for image in encoder.images}
    for task in tasks:
        for image, answer in (*task.support, *task.query):
            wanted[image] += encoder.directions[task.answers[answer]] + sum(encoder.shifts(task))
    np.testing.assert_allclose(x, np.stack([wanted[image] for image in encoder.images]), atol=1e-5)
    other = PlantedEncoder(tasks, noisy)
    noise = other.encode_images(other.load(other.images)).numpy() / SCALE - x
    assert abs(noise.std() - 0.5) < 0.01 and abs(noise.mean()) < 0.01


def test_the_sign_turns_the_shift_that_a_kind_shares():
    questions = [f"What color is the {noun}?" for noun in NOUNS]
    plus, minus = (next(q for q in questions if kind_and_sign(q)[1] == sign) for sign in (1, -1))
    assert kind_and_sign(plus)[0] == "what" and kind_and_sign("") == kind_and_sign("?")
    task = everything(made_up_tasks(20))[0]
    asked = lambda q: type(task)(**{f: getattr(task, f) for f in task.__struct_fields__} | {"question": q})
    encoder = PlantedEncoder([asked(plus), asked(minus)], SMALL)
    (shared, own), (turned, another) = (encoder.shifts(t) for t in encoder.tasks)
    np.testing.assert_allclose(shared, -turned)
    assert np.abs(shared).max() > 0.1 and not np.allclose(own, another) and not np.allclose(own, -another)


def test_a_stand_in_goes_the_way_of_every_other_bank(tmp_path):
    out = tmp_path / "some"
    splits, bank = plant(out, config=SMALL, count=30)
    assert read_tasks(out) == splits and bank_note(out / "features") == bank.manifest.encoder["note"] == NOTE
    opened, again = open_tasks(out, out / "features")
    assert {name: len(part) for name, part in opened.items()} == {"train": 19, "val": 2, "test": 9}
    assert torch.equal(again.images, bank.images) and again.images.dtype == torch.float16
    tasks = TaskSet(opened["test"], again)
    assert tasks.images.shape[1] == 24 and tasks.embeddings("clip").shape == (9, 24)
    plant(out, config=SMALL, count=30)  # called again, it finds everything done
    with pytest.raises(FileError, match="holds another bank"):
        plant(out, config=SMALL, count=31)
    assert read_tasks(out) == splits


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "train.json").write_text("mine")
    with pytest.raises(FileError, match="expected a stand-in or an empty folder, found 'train.json'"):
        plant(tmp_path, config=SMALL, count=30)
    assert (tmp_path / "train.json").read_text() == "mine" and len([*tmp_path.iterdir()]) == 1


def test_published_files_without_test_tasks_give_three_tenths_of_their_questions(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    records = {
        task.question: {
            "train": [(image, task.answers[answer]) for image, answer in task.support],
            "test": [(image, task.answers[answer]) for image, answer in task.query],
            "answers": task.answers,
        }
        for task in made_up_tasks(20)["train"]
    }
    (folder / "meta_train.json").write_text(json.dumps(records))
    splits, bank = plant(tmp_path / "out", folder, SMALL)
    assert {name: len(part) for name, part in splits.items()} == {"train": 10, "test": 4}
    assert {task.question for task in everything(splits)} == records.keys()
    assert len(bank.images) == len({image for task in everything(splits) for image in task.images})


def test_the_title_of_a_table_says_what_the_features_are(tmp_path):
    plant(tmp_path / "vqa", config=SMALL, count=10)
    source = Source(tasks=tmp_path / "vqa", features=tmp_path / "vqa" / "features")
    assert source.title == f"vqa ({NOTE})" and source.name == "vqa"
    assert Source().title == Source().name == "scenes"
    assert Source(tasks=tmp_path / "vqa", features=tmp_path / "none").title == "vqa"
    assert FeatureBank.open(tmp_path / "vqa" / "features").manifest.encoder["model"] == "planted"


@pytest.mark.skipif(not PUBLISHED, reason="HYPERCLIP_META_VQA is not set")
def test_zero_shot_is_misled_on_the_published_tasks_and_right_without_the_shifts():
    tasks = read_tasks(PUBLISHED)["train"][:120]
    encoder = PlantedEncoder(tasks, Planted(embed=96))
    x = dict(zip(encoder.images, encoder.encode_images(encoder.load(encoder.images)).numpy()))
    right = {0: [], 1: []}
    for task in tasks:
        prompts = encoder.encode_texts(task.prompts).numpy()
        prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
        images = np.stack([x[image] for image, _ in task.query]) / SCALE
        for taken, found in right.items():
            answered = ((images - taken * sum(encoder.shifts(task))) @ prompts.T).argmax(1)
            found.append(np.mean(answered == [answer for _, answer in task.query]))
    assert 0.38 < np.mean(right[0]) < 0.52 and np.mean(right[1]) > 0.8
