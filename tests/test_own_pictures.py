"One's own pictures, one's own model: from files to answers about a new question, at the command line and in Python."

import io
import json
import re
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_experiment import TINY

import hyperclip_nb as hc
from hyperclip_nb.cli.commands import main
from hyperclip_nb.core.files import FileError, RunError, write_json
from hyperclip_nb.dataset.tasks import Task, save_tasks
from hyperclip_nb.evaluation.presets import Preset, Source
from hyperclip_nb.evaluation.reproduce import reproduce

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220)}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def ask(*arguments) -> None:
    main(["adapt", *map(str, arguments)])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Pictures, task files, a local model of open_clip's kind, features, and a short run: as a person would make them."
    home, rng = tmp_path_factory.mktemp("mine"), np.random.default_rng(0)
    (home / "photos").mkdir()
    (home / "model").mkdir()
    for i in range(30):
        color = list(COLORS.values())[i % 3] + rng.normal(0, 25, (24, 32, 3))
        Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(home / "photos" / f"{i:02}.png")
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**CONFIG).state_dict(), home / "model" / "open_clip_model.safetensors")
    pictures = {"size": 16, "mean": [0.5] * 3, "std": [0.3] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    write_json(home / "model" / "open_clip_config.json", {"model_cfg": CONFIG, "preprocess_cfg": pictures})
    for name, things in {"train": "cup bowl hat coat bag mug jar tin", "val": "pot pan", "test": "box lid toy"}.items():
        tasks = []
        for thing in things.split():
            names = rng.permutation(30)[:14]
            examples = tuple((f"{i:02}.png", int(i % 3)) for i in names)
            prompts = tuple(f"The {thing} is {color}" for color in COLORS)
            tasks.append(
                Task(
                    question=f"What color is the {thing}?",
                    answers=tuple(COLORS),
                    prompts=prompts,
                    support=examples[:9],
                    query=examples[9:],
                )
            )
        save_tasks(home / "tasks" / f"{name}.json", tasks)
    main(
        ["features", "--tasks", str(home / "tasks"), "--images", str(home / "photos"), "--out", str(home / "bank")]
        + ["--model", f"local-dir:{home / 'model'}", "--workers", "0"]
    )
    preset = Preset(recipe=TINY, methods=("clip_zero_shot", "multitask", "hvae_hyperldm_g1.5"), shots=(), kinds=())
    reproduce(
        replace(preset, audit=False),
        out=home / "run",
        source=Source(tasks=home / "tasks", features=home / "bank"),
        seeds=1,
    )
    return home


def test_a_run_on_own_data_answers_a_new_question_about_own_pictures(home, capsys):
    ask("What color is the sock?", "--answers", "red,green", "--answers", "blue", "--run", home / "run",
        "--image", home / "photos" / "00.png", "--image", home / "photos")  # fmt: skip
    said = capsys.readouterr().out
    assert "What color is the sock?  (a new question)" in said
    lines = [line for line in said.splitlines() if ".png  " in line and "zero-shot CLIP: " in line]
    assert len(lines) == 31 and all(line.split("  ")[1].split()[0] in COLORS for line in lines)
    (folder,) = (home / "run" / "asked").iterdir()
    net = hc.Adapter.from_pretrained(folder)
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 300
    model = hc.export_run(hc.open_experiment(home / "run"))
    files = sorted((home / "photos").iterdir())
    predicted = net.predict(model.features(files))
    assert [line.split("  ")[1].split(" (")[0] for line in lines[1:]] == predicted
    sheet, again = hc.ask(hc.open_experiment(home / "run"), "What color is the sock?", list(COLORS), images=files)
    assert [sheet.answers[i] for i in sheet.after] == predicted and torch.equal(again.weights, net.weights)


def test_questions_from_a_file_and_from_standard_input(home, tmp_path, capsys, monkeypatch):
    file = tmp_path / "questions.csv"
    file.write_text('What color is the sock?,red,green\n"Is it old, or new?",old,"new, or nearly so"\nWhat is it?\n')
    where = ["--run", home / "run", "--image", home / "photos" / "03.png", "--out", tmp_path / "out"]
    ask("--questions", file, "--answers", "a cup,a hat", *where)
    kept = {hc.Adapter.from_pretrained(folder).question: folder for folder in (tmp_path / "out").iterdir()}
    assert {*kept} == {"What color is the sock?", "Is it old, or new?", "What is it?"}
    assert hc.Adapter.from_pretrained(kept["Is it old, or new?"]).answers == ["old", "new, or nearly so"]
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    ask("--questions", "-", "--answers", "a cup,a hat", *where[:-1], tmp_path / "again")
    assert {f.name for f in (tmp_path / "again").iterdir()} == {f.name for f in kept.values()}  # the same results
    capsys.readouterr()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["What?", "--answers", "a,b"], "expected pictures to answer about"),
        (["What?", "--answers", "a,b", "--image", "nowhere.jpg"], "nowhere.jpg: expected a picture"),
        (["What?", "--answers", "a,b", "--image", "{home}/tasks"], "tasks: expected pictures"),
        (["What?", "--answers", "a,b", "--image", "{home}/tasks/train.json"], "train.json (.*): expected a picture"),
        (["What?", "--image", "{home}/photos"], "at least two answers"),
        (["What?", "--weights", "scenes"], "both --run and --weights"),
        (["What?", "--questions", "x"], "not both"),
        (["--questions", "nowhere.csv"], "nowhere.csv: expected a file with a question on every line"),
        (
            ["What?", "--answers", "a,b", "--image", "{home}/photos", "--tasks", "{home}/photos"],
            "photos: expected meta_train.json",
        ),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(home, capsys, arguments, said):
    with pytest.raises(SystemExit) as end:
        ask(*[argument.format(home=home) for argument in arguments], "--run", home / "run")
    error = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and re.search(said, error), error


def test_an_exported_run_answers_without_its_data(home, tmp_path, capsys):
    main(["export", "--run", str(home / "run"), "--out", str(tmp_path / "kept")])
    card = (tmp_path / "kept" / "README.md").read_text()
    assert "zero-shot CLIP" in card and "tasks" in card
    ask("What color is the sock?", "--answers", "red,green,blue", "--weights", tmp_path / "kept",
        "--image", home / "photos" / "00.png", "--out", tmp_path / "out")  # fmt: skip
    assert "zero-shot CLIP: " in capsys.readouterr().out
    model = hc.TextToWeights.from_pretrained(tmp_path / "kept")
    assert model.config.world is None and model.encoder.name == f"local-dir:{home / 'model'}"
    assert model.prompts("What color is the sock?", ["red"]) == ("the sock is red",)
    config = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert config["encoder_source"]["model"] == f"local-dir:{home / 'model'}"


def test_a_run_that_does_not_say_where_its_data_are_is_told(home):
    manifest = json.loads((home / "run" / "manifest.json").read_text())
    source = manifest["config"].pop("source")
    old = home / "old"
    old.mkdir()
    for file in (home / "run").glob("*.safetensors"):
        (old / file.name).write_bytes(file.read_bytes())
    write_json(old / "manifest.json", manifest)
    with pytest.raises(RunError, match="manifest.json: expected"):
        hc.open_experiment(old)
    x = hc.open_experiment(old, tasks=source["tasks"], features=source["features"])
    assert x.sets["test"].tasks[0].answers == tuple(COLORS)


def test_a_bank_of_version_0_1_learns_how_its_encoder_is_loaded(home):
    path = home / "bank" / "manifest.json"
    manifest = json.loads(path.read_text())
    source = manifest.pop("source")
    write_json(path, manifest)
    x = hc.open_experiment(home / "run")
    with pytest.raises(ValueError, match="can't be loaded by its name"):
        hc.ask(x, "What color is the sock?", list(COLORS), images=[home / "photos" / "00.png"])
    main(
        ["features", "--tasks", str(home / "tasks"), "--images", str(home / "photos"), "--out", str(home / "bank")]
        + ["--model", f"local-dir:{home / 'model'}", "--workers", "0"]
    )
    assert json.loads(path.read_text())["source"] == source


def test_a_vanished_picture_is_named(home):
    with pytest.raises(FileError, match="gone.png: expected a picture"):
        hc.ask(hc.open_experiment(home / "run"), "What?", ["a", "b"], images=[home / "gone.png"])


def test_the_explorer_opens_a_run_on_own_data(home):
    "Its own questions with their pictures and right answers, a new question, a photograph that it has never seen."
    explore = pytest.importorskip("hyperclip_nb.explorer.widgets").explore
    box, sent = explore(run=home / "run", images=home / "photos"), []
    box.send = lambda content, buffers=None: sent.append((content, buffers))

    def told(**change):
        box.choice = {**box.world["usual"], **box.shown["choice"], **change, "turn": box.turn + 1}
        box.play()
        assert not box.said, box.said
        return box.shown

    tests = [task.question for task in box.explorer.experiment.sets["test"].tasks]
    assert [one[0] for one in box.world["held"]] == tests and box.world["menus"] is None
    shown = box.shown
    assert shown["question"] == tests[0] and shown["answers"] == list(COLORS) and len(shown["given"]) == 5
    assert {score["who"] for score in shown["scores"]} == {"clip", "multitask", "words"}
    assert "adapted to 9 labelled pictures" == box.more["target_score"]["label"] and shown["truth"]
    pixels = np.asarray(Image.open(io.BytesIO(box.sprite)))
    assert pixels.shape == (64, 5 * 64, 3) and pixels.std() > 20 and "picture" in box.pictures["alts"][0]
    few = told(question=tests[0].upper(), answers="Red, BLUE")
    assert few["answers"] == ["red", "blue"] and {*few["truth"]} <= {0, 1}
    new = told(question="What color is the sock?", answers="red, green, blue")
    assert new["truth"] is None and not new["scores"] and len(new["given"]) > 5
    box._heard(box, {"kind": "photograph", "name": "sock.png"}, [(home / "photos" / "04.png").read_bytes()])
    told(picture="photograph")
    model = hc.export_run(hc.open_experiment(home / "run"))
    assert box.own["photo"] and box.own["notes"] == []
    features = model.features([home / "photos" / "04.png"])
    assert torch.allclose(box.photo.features, features, atol=1e-5)
    box._heard(box, {"kind": "thumbnail", "row": 1}, [])
    assert sent[-1][1][0].startswith(b"\x89PNG")
    blind = explore(run=home / "run")  # nobody says where the files are
    assert np.asarray(Image.open(io.BytesIO(blind.sprite))).std() == 0 and blind.shown["given"] == shown["given"]
