"From the downloads to a table of results, in files of the real formats: every command in between, with the small CLIP."

import errno
import json
import os
from pathlib import Path

import miniature
import pytest
import torch
from PIL import Image

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.cli.commands import main
from hyperclip_nb.core.files import FileError
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.dataset.coco_tasks import read_objects
from hyperclip_nb.dataset.encoders import ImageFolder
from hyperclip_nb.dataset.features import FeatureBank
from hyperclip_nb.dataset.small_clip import load_small_clip
from hyperclip_nb.dataset.small_clip_training import save_small_clip
from hyperclip_nb.dataset.sources import open_tasks, read_tasks, with_coco_tasks
from hyperclip_nb.hypernet.hypernetworks import MNet
from hyperclip_nb.hypernet.metatrain import Adaptation, fit_meta


def features(home: Path, *options, tasks="meta_vqa", out="features") -> None:
    main(
        [
            "features",
            "--tasks",
            str(home / tasks),
            "--images",
            str(home / "coco"),
            "--out",
            str(home / out),
            "--workers",
            "1",
            *map(str, options),
        ]
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "The three commands before an experiment, on the miniature."
    home = miniature.make(tmp_path_factory.mktemp("miniature"))
    main(["meta-vqa", "build", "--vqa", str(home / "vqa"), "--out", str(home / "meta_vqa")])
    main(["meta-vqa", "check", str(home / "meta_vqa")])
    features(home, "--model", "small", "--instances", home / "coco")
    return home


def test_the_files_have_the_real_shape(home):
    photo = home / "coco" / "train2014" / "COCO_train2014_000000000100.jpg"
    with Image.open(photo) as image:
        assert image.format == "JPEG" and image.size == (640, 480)
    written = {path.name for path in (home / "vqa").iterdir()} | {path.name for path in (home / "coco").glob("*.json")}
    official = "v2_mscoco_{}2014_annotations.json", "v2_OpenEnded_mscoco_{}2014_questions.json", "instances_{}2014.json"
    assert written == {name.format(part) for name in official for part in ("train", "val")}
    built = {path.name for path in (home / "meta_vqa").iterdir()}
    names = {"meta_train.json", "meta_test.json", "ques_ans_count.json", "prompt_meta.json", "meta_vqa.json"}
    assert built - {".lock"} == names
    question, record = next(iter(json.loads((home / "meta_vqa" / "meta_train.json").read_text()).items()))
    assert set(record) == {"train", "test", "answers"} and record["train"][0][0].startswith("COCO_")


def test_to_a_results_table(home, tmp_path):
    from test_experiment import TINY

    from hyperclip_nb.evaluation.presets import Preset, Source
    from hyperclip_nb.evaluation.reproduce import reproduce

    methods = "clip_zero_shot", "multitask", "cond_multitask", "hnet_hyperldm_g1.5"
    preset = Preset(recipe=TINY, methods=methods, shots=(0, 1, "all"), kinds=("hnet",), seeds=1, audit=False)
    source = Source(tasks=home / "meta_vqa", features=home / "features")
    results = reproduce(preset, out=tmp_path / "run", source=source)
    assert (results.dataset, results.tasks) == ("meta_vqa", {"train": 16, "val": 2, "test": 7})
    rows = {row.method: row for row in results.rows}
    assert {*methods, "majority", "few_shot", "cond_multitask+shuffled"} <= set(rows)
    assert all(0 <= row.accuracy <= 100 for row in rows.values())
    # The small CLIP knows what is in these pictures, although they went through JPEG files.
    assert rows["clip_zero_shot"].accuracy > rows["chance"].accuracy + 5
    assert "Zero-shot CLIP" in (tmp_path / "run" / "results.md").read_text()
    assert {row["method"] for row in json.loads((tmp_path / "run" / "results.json").read_text())["rows"]} == set(rows)


def test_the_third_command(home, tmp_path, capsys):
    "As the README says, with the smoke preset in place of the paper's."
    main(
        [
            "reproduce",
            "--preset",
            "smoke",
            "--tasks",
            str(home / "meta_vqa"),
            "--features",
            str(home / "features"),
            "--out",
            str(tmp_path / "run"),
            "--methods",
            "clip_zero_shot",
            "multitask",
            "hvae_hyperclip",
            "hvae_hyperldm_g1.5",
            "--workers",
            "1",
            "--split",
            "image-disjoint",
        ]
    )
    assert "HVAE + HyperLDM γ = 1.5" in capsys.readouterr().out
    assert (tmp_path / "run" / "figures" / "forest.png").exists()


def test_splits_of_the_miniature(home):
    told = []
    splits, _ = open_tasks(home / "meta_vqa", home / "features", validation=0.2, report=told.append)
    published = read_tasks(home / "meta_vqa")
    assert splits["test"] == published["test"] and told == []
    assert {t.question for t in splits["train"]} | {t.question for t in splits["val"]} == {
        t.question for t in published["train"]
    }


def test_image_disjoint(home):
    told = []
    splits, bank = open_tasks(
        home / "meta_vqa", home / "features", "image-disjoint", validation=0.1, report=told.append
    )
    held_out = {image for name in ("val", "test") for task in splits[name] for image in task.images}
    assert not held_out & {image for task in splits["train"] for image in task.images}
    assert splits["test"] == read_tasks(home / "meta_vqa")["test"]
    assert len(told) == 1 and told[0].startswith("train, pictures of held-out tasks: ")


def test_half_of_the_batches_from_instances(home):
    splits, bank = open_tasks(home / "meta_vqa", home / "features", validation=0.2)
    held_out = {image for name in ("val", "test") for task in splits[name] for image in task.images}
    with pytest.raises(
        ValueError, match="5 classes with 10 images"
    ):  # nearly all of the miniature's pictures are held out
        with_coco_tasks(splits, bank, home / "coco")
    mixed, episodes = with_coco_tasks({"train": splits["train"], "test": []}, bank, home / "coco", tasks=50)
    assert len(mixed) == len(splits["train"]) + 50
    model = MNet(AdapterNet(mixed.images.shape[1], 4))
    losses = run(
        fit_meta(model, mixed, TrainConfig(steps=3, lr=0.01), adaptation=Adaptation(steps=2, lr=0.1), episodes=episodes)
    )
    assert torch.tensor(losses).isfinite().all() and held_out


def test_rows_are_the_encoder_s(home):
    "What the command wrote is what the model says about the decoded file."
    bank, encoder = FeatureBank.open(home / "features").verify(), load_small_clip()
    load = ImageFolder(home / "coco", encoder.preprocessing)
    some = bank.index.images[::40]
    torch.testing.assert_close(
        bank.images[bank.image_rows(some)].float(), encoder.encode_images(load(some)), atol=3e-3, rtol=3e-3
    )
    objects = read_objects(home / "coco")
    assert {objects.images[i] for i in objects.members} <= set(bank.index.images)
    prompts = [task.prompts[0] for task in read_tasks(home / "meta_vqa")["test"]]
    torch.testing.assert_close(bank.prompts[bank.prompt_rows(prompts)], encoder.encode_texts(prompts))


def test_a_small_clip_of_one_s_own(home, tmp_path):
    "A folder with a checkpoint and its vocabulary takes the way of the shipped model, and gives the same rows."
    encoder = load_small_clip()
    save_small_clip(tmp_path / "mine", encoder.model, encoder.tokenizer, {})
    features(home, "--model", f"local-dir:{tmp_path / 'mine'}", "--instances", home / "coco", out="mine")
    ours, theirs = (FeatureBank.open(home / name) for name in ("mine", "features"))
    assert ours.index == theirs.index
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.prompts, theirs.prompts)


def test_a_small_clip_that_is_half_written_is_refused(tmp_path, monkeypatch):
    "Old and new files side by side are never taken for one model, and every write that breaks off can be repeated."
    encoder, mine = load_small_clip(), tmp_path / "mine"
    save = lambda record: save_small_clip(mine, encoder.model, encoder.tokenizer, record)
    save({})
    assert encoder.fingerprint == load_small_clip(folder=mine).fingerprint
    replace = os.replace
    with torch.no_grad():
        next(encoder.model.parameters()).add_(1)
    for left in range(4):  # renames that still go well
        went = []

        def broken(old, new):
            if len(went) == left:
                raise OSError(errno.ENOSPC, "No space left on device")
            went.append(new)
            replace(old, new)

        monkeypatch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="No space"):
            save({})
        monkeypatch.undo()
        assert len(list(mine.iterdir())) == 4
        if left:
            with pytest.raises(FileError, match="is not the file that small_clip.json describes"):
                load_small_clip(folder=mine)
        else:
            load_small_clip(folder=mine)
    save({})
    ours, theirs = (e.model.state_dict() for e in (encoder, load_small_clip(folder=mine)))
    assert all(torch.equal(x.half(), theirs[name].half()) for name, x in ours.items())


def test_other_tasks_are_refused(home, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        features(home, "--model", "small")  # without the instances that the bank was made with
    assert end.value.code == 2 and "holds another bank" in capsys.readouterr().err
    meta = json.loads((home / "meta_vqa" / "meta_train.json").read_text())
    question, record = next(iter(meta.items()))
    record["train"][0][0] = "COCO_train2014_000000999999"
    (tmp_path / "tasks").mkdir()
    for name in "meta_test.json", "prompt_meta.json":
        (tmp_path / "tasks" / name).write_text((home / "meta_vqa" / name).read_text())
    (tmp_path / "tasks" / "meta_train.json").write_text(json.dumps(meta))
    with pytest.raises(FileError, match="1 of their 2.. images are not there, such as 'COCO_train2014_000000999999'"):
        open_tasks(tmp_path / "tasks", home / "features")
