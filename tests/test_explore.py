"The explorer without a browser: what it shows is what is measured elsewhere, and bad input ends in a sentence."

import io
import json
import re
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from PIL import Image

from hyperclip_nb.basenet.network import set_accuracy
from hyperclip_nb.cli.app import page
from hyperclip_nb.cli.commands import main
from hyperclip_nb.core.blocks import BOUNDS
from hyperclip_nb.core.files import HyperclipError, RunError, load_tensors
from hyperclip_nb.core.runs import Run
from hyperclip_nb.evaluation.asking import task_for, weights_for_question
from hyperclip_nb.evaluation.experiment import scenes_experiment
from hyperclip_nb.evaluation.fewshot import few_shot_scores
from hyperclip_nb.evaluation.generated import Adapter
from hyperclip_nb.evaluation.pretrained import TextToWeights
from hyperclip_nb.evaluation.shipped import Shipped
from hyperclip_nb.evaluation.wording import split_answers
from hyperclip_nb.explorer.choice import NUMBERS, Choice
from hyperclip_nb.explorer.explore import (
    ALL_STEPS,
    LABELS,
    SHOT_STEPS,
    Explorer,
    adapter_file,
    check_trainable,
    train_parts,
)
from hyperclip_nb.explorer.page import ASSETS, HELD_OUT, png, read_held_out, shown_data
from hyperclip_nb.explorer.play import GAMMAS, between, frames, measure_held_out, over_gamma
from hyperclip_nb.explorer.scores import HeldOut, agreement, count_votes, opening, wilson, wins
from hyperclip_nb.explorer.suggest import did_you_mean
from hyperclip_nb.explorer.widgets import ExplorerBox, explore
from hyperclip_nb.hypernet.metatrain import Adaptation


@pytest.fixture(scope="module")
def x():
    x = scenes_experiment()
    x.hyperldm("hvae", 0), x.hyperclip("hvae", 0)
    return x


@pytest.fixture(scope="module")
def explorer(x):
    return Explorer(x)


@pytest.fixture(scope="module")
def box(x):
    return explore(x)


def question(x, family="color"):
    return next(task.question for task in x.sets["test"].tasks if task.family == family)


def same(a, b):
    return (
        torch.equal(a.weights, b.weights)
        and torch.equal(a.walk, b.walk)
        and a.given == b.given
        and a.scores == b.scores
    )


def told(box, **change):
    "What the page does when somebody changes something."
    box.choice = {**box.world["usual"], **box.shown.get("choice", {}), **change, "turn": box.turn + 1}
    box.play()
    return box.shown


# What is shown is what is measured


def test_accuracies_are_those_of_the_table(explorer, x):
    for row, task in list(enumerate(x.sets["test"].tasks))[::60]:
        shown, one = explorer.show(Choice(question=task.question)), x.sets["test"]
        score = lambda w: pytest.approx(100 * set_accuracy(w, one, x.net)[row].item(), abs=1e-3)
        assert shown.score("clip").percent == score(torch.zeros(1, x.net.size))
        assert shown.score("multitask").percent == score(x.multitask(0).z0[None].detach())
        assert (
            shown.asked.seen == "test"
            and shown.asked.tasks is one
            and shown.asked.truth == [label for _, label in task.query]
        )


def test_the_adapted_latent_is_that_of_the_few_shot_row(explorer, x):
    how = Adaptation(steps=ALL_STEPS, lr=x.recipe.stored.lr, optimizer=x.recipe.stored.optimizer)
    start = x.latents("hvae", 0).flatten(0, 1).mean(0)
    scores = few_shot_scores(x.generator("hvae", 0), start, x.sets["val"], ["all"], how)["all"]
    differ = 0
    for row in range(0, len(x.sets["val"]), 30):
        asked = explorer.ask(x.sets["val"].tasks[row].question)
        z = explorer.target(asked.question, asked.answers, "hvae")
        given = explorer.answer(explorer.generate(Choice(question="?"), z[None])[None], asked)[0][0].tolist()
        differ += abs(explorer.score("target", "", given, asked)[0].percent - scores[row].item())
    assert differ <= 4  # batches of another size round differently, which may turn one picture


def test_networks_are_those_of_weights_for_question(explorer, x):
    shown = explorer.show(Choice(question=question(x), steps=100, networks=3, seed=7))
    w = weights_for_question(x, question(x), samples=3, draw=7, encoder=explorer.encoder)
    torch.testing.assert_close(shown.weights, w, rtol=1e-4, atol=1e-4)


def test_more_samples_do_not_change_the_first_ones(explorer, x):
    ask = lambda samples: weights_for_question(x, question(x), samples=samples, draw=7, encoder=explorer.encoder)
    one, ten, more = ask(1), ask(10), ask(13)
    torch.testing.assert_close(one, ten[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ten, more[:10], rtol=1e-5, atol=1e-5)
    assert len(more) == 13 and (more[10:] - ten[:3]).abs().max() > 0.1  # the others are new
    few, many = (explorer.show(Choice(question=question(x), networks=n, seed=7)).walk for n in (2, 12))
    torch.testing.assert_close(few, many[:, :2], rtol=1e-4, atol=1e-4)


def test_the_walk_ends_where_the_weights_come_from(explorer, x):
    for choice in (Choice(question=question(x), networks=2), Choice(question=question(x), guidance="hyperclip")):
        shown = explorer.show(choice)
        assert torch.equal(shown.walk[-1], shown.more[-1]) and len(shown.walk) == choice.steps + 1
        assert shown.walk.shape[1] == len(shown.weights) == (2 if choice.guidance == "hyperldm" else 1)


# What a setting changes


def test_the_seed_decides(explorer, x):
    first = explorer.show(Choice(question=question(x), seed=1))
    assert same(first, explorer.show(Choice(question=question(x), seed=1))) and same(
        first, Explorer(x).show(Choice(question=question(x), seed=1))
    )
    assert not same(first, explorer.show(Choice(question=question(x), seed=2)))


def test_each_setting_changes_the_networks(explorer, x):
    base = explorer.show(Choice(question=question(x)))
    for change in (
        {"gamma": 0.0},
        {"steps": 20},
        {"sampler": "ddim"},
        {"sampler": "dpm"},
        {"networks": 4},
        {"shots": 1},
        {"guidance": "hyperclip"},
    ):
        other = explorer.show(Choice(question=question(x), **change))
        assert other.weights.shape != base.weights.shape or not torch.allclose(other.weights, base.weights), change
    assert base.near == explorer.show(Choice(question=question(x), gamma=0.0)).near  # neighbours are the question's


def test_without_guidance_the_question_does_not_matter(explorer, x):
    path = lambda of: explorer.walk(Choice(question="?", gamma=0.0, seed=3), "the same noise", of.embedding)
    a, b = (explorer.ask(question(x, family)) for family in ("color", "count"))
    assert torch.equal(path(a), path(b))


def test_examples_move_the_latent(explorer, x):
    walks = {n: explorer.show(Choice(question=question(x), shots=n, networks=2)) for n in (0, 1, 5, 10)}
    assert all(len(shown.more) == (SHOT_STEPS + 1 if n else 1) for n, shown in walks.items())
    assert all(torch.equal(walks[0].walk, shown.walk) for shown in walks.values())
    ends = [shown.more[-1] for shown in walks.values()]
    assert all(not torch.allclose(a, b) for i, a in enumerate(ends) for b in ends[:i])
    labels = [shown.score("words").label for shown in walks.values()]
    assert labels[0] == LABELS["words"] and len(set(labels)) == 4
    assert all(str(shown.labelled) in label for shown, label in zip(walks.values(), labels) if shown.labelled)


def test_a_training_question_is_not_its_own_neighbour(explorer, x):
    task = x.sets["train"].tasks[5]
    shown = explorer.show(Choice(question=task.question))
    assert shown.asked.seen == "train" and 5 not in shown.near and len(shown.near) == 5


# What people type


@pytest.mark.parametrize(
    "question, answers, said",
    [
        ("", ("a", "b"), "empty text"),
        ("   ", ("a", "b"), "empty text"),
        ("What is love?", (), "at least two"),
        ("What is love?", ("a",), "at least two"),
        ("What color is the cat?", ("red",), "at least two"),
        ("What color is the cat?", ("red", "red"), "different answers, got 'red' and 'red'"),
        ("What color is the cat?", ("red", "blue", "Red "), "different answers, got 'red' and 'Red'"),
        ("What color is the cat?", ("light  blue", "Ligh\N{FULLWIDTH LATIN SMALL LETTER T} blue"), "different answers"),
        ("How many?", split_answers("1,000,2,000"), "semicolons"),
        ("What color is the cat?", tuple(f"a{i}" for i in range(200)), "at most 40 answers, got 200"),
        ("🙂", ("yes", "no"), "expected a question"),
        ("why " * 5_000, ("yes", "no"), "at most 200 characters, got 20,000"),
        ("why " * 40, ("yes", "no"), "at most 22 tokens"),
        ("Is it?", ("yes", "n" * 100), "at most 60 characters"),
        (
            "Is it so that this goes on and on and on and on?",
            ("on and on and on and on and on and on", "no"),
            "at most 22 tokens",
        ),
    ],
)
def test_what_can_not_be_asked_is_refused_in_a_sentence(explorer, box, question, answers, said):
    with pytest.raises(ValueError, match=said) as error:
        explorer.ask(question, answers)
    if "tokens" not in said:  # the same at every door
        with pytest.raises(ValueError, match=said):
            task_for(question, answers)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    if answers or not question.strip():  # without answers the page takes those of a family
        shown = told(box, question=question, answers="; ".join(answers) + ";")
        assert box.said["error"] and shown["turn"] < box.said["turn"] == box.turn
        assert "Traceback" not in box.said["error"] and "\n" not in box.said["error"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_answered(box, question, answers):
    shown = told(box, question=question, answers=answers)
    assert bool(box.said) != (shown["turn"] == box.turn)


def test_words_that_nobody_taught_are_named(explorer):
    asked = explorer.ask("Is the 🐱 happy?", ("🙂", "🙃"))
    assert not asked.scored and asked.truth is None and asked.seen == "" and len(asked.images) == 25
    assert (
        "🐱, happy" in asked.notes[0]
        and "can't tell these answers apart: 🙂, 🙃" in asked.notes[1]
        and "judge" in asked.notes[2]
    )
    assert explorer.show(Choice(question="Is the 🐱 happy?", answers=("🙂", "🙃"))).scores == []


def test_answers_are_split_as_people_write_them():
    assert split_answers(" red, light blue,green,yellow,, ") == ("red", "light blue", "green", "yellow")
    for mark in (";", "\n", " ;\r\n", ";;"):  # then a comma may be part of an answer
        assert split_answers(f"1,000{mark} black, white {mark}red,") == ("1,000", "black, white", "red")
    assert split_answers("red,blue;") == split_answers("red,blue\n") == ("red", "blue")
    assert split_answers(" , ;") == split_answers("\n") == ()


def test_own_answers_get_pictures_that_they_fit(x):
    task, labelled = task_for(question(x), ("red", "blue"), world_seed=0)
    assert (
        labelled and len(task.query) == 25 and len(task.support) == 50 and {label for _, label in task.query} <= {0, 1}
    )
    assert not {image for image, _ in task.query} & {image for image, _ in task.support}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "gan"},
        {"gamma": -1},
        {"gamma": float("nan")},
        {"gamma": float("inf")},
        {"gamma": 1e9},
        {"gamma": "1"},
        {"prior": float("nan")},
        {"steps": 2.5},
        {"steps": True},
        {"networks": 100_000},
        {"seed": -1},
        {"seed": 2**40},
        {"steps": 0},
        {"sampler": "euler"},
        {"networks": 0},
        {"shots": 11},
        {"prior": -0.1},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Choice(question="?", **wrong)


def test_every_door_has_the_same_bounds():
    page = (ASSETS / "explorer.js").read_text()
    for name, (_, least, largest) in ((name, BOUNDS[name]) for name in NUMBERS):
        if slider := re.search(rf'\b{name}: \["[^"]+", ([\d.]+), ([\d.]+)', page):  # the page's sliders lie inside
            assert least <= float(slider[1]) < float(slider[2]) <= largest
        for end in (least, largest):
            assert getattr(Choice(question="?", **{name: end}), name) == end
        for beyond in (least - 1, largest + 1):
            with pytest.raises(ValueError, match=f"{name}: expected .* from {least} to {largest}"):
                Choice(question="?", **{name: beyond})


def test_weights_that_are_not_finite_are_never_scored(explorer, x):
    with pytest.raises(ValueError, match="expected finite weights"):
        explorer.generate(Choice(question="?"), torch.full((2, x.generator("hvae", 0).latent_size), torch.nan))


# What one takes home, and what is not there


def test_the_file_holds_the_networks_and_how_to_use_them(explorer, x, tmp_path: Path):
    shown = explorer.show(Choice(question=question(x), networks=2, shots=3, gamma=2.0))
    name, content = adapter_file(shown, x.net)
    (tmp_path / name).write_bytes(content)
    tensors, about = load_tensors(tmp_path / name)
    assert torch.equal(tensors["weights"], shown.weights) and name.endswith(".safetensors")
    task = shown.asked.task
    assert (
        about["question"] == task.question
        and about["answers"] == list(task.answers)
        and about["prompts"] == list(task.prompts)
    )
    assert (about["gamma"], about["shots"], about["embed"], about["hidden"]) == (
        2.0,
        3,
        x.net.embed,
        x.net.hidden,
    )


def test_missing_parts_are_offered_not_trained(x, tmp_path):
    with pytest.raises(RunError, match="expected the trained part"):
        Explorer(x, seed=77).show(Choice(question=question(x)))
    for box in (ExplorerBox(tmp_path / "no-such-run"), explore(x, seed=77)):
        assert box.work["state"] == "offer" and "not trained yet" in box.work["what"] and box.said["error"]
    assert not (tmp_path / "no-such-run").exists()


OWN = {"dataset": "flowers", "world_seed": None, "recipe": None}


def made(folder, kind, x):
    "A run directory that training would spoil."
    if kind == "own data":
        Run.create(folder, OWN | {"recipe": x.recipe}).part("hvae-0", {}, lambda: {"w": torch.ones(3)})
    elif kind in ("world seed as text", "huge world seed", "no recipe"):
        change = {"world seed as text": {"world_seed": "x"}, "huge world seed": {"world_seed": 10**40}}.get(
            kind, {"recipe": 3}
        )
        Run.create(folder, {"dataset": "scenes", "world_seed": 0, "recipe": x.recipe})
        text = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(text | {"config": text["config"] | change}))
    elif kind == "damaged part":
        run = Run.create(folder, {"dataset": "scenes", "world_seed": 0, "recipe": x.recipe})
        run.part("hvae-0", {}, lambda: {"w": torch.ones(3)})
        part = folder / "hvae-0.safetensors"
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    elif kind == "truncated manifest":
        Run.create(folder, {"dataset": "scenes", "world_seed": 0, "recipe": x.recipe})
        (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:60])
    elif kind == "manifest is a folder":
        (folder / "manifest.json").mkdir(parents=True)
    elif kind == "other files":
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
    else:
        folder.write_text("a file")
    return folder


def content(folder):
    return {
        p: p.read_bytes() if p.is_file() else None for p in [folder, *folder.rglob("*")] if not p.name.startswith(".")
    }


@pytest.mark.parametrize(
    "kind",
    ["own data", "world seed as text", "huge world seed", "no recipe", "truncated manifest", "manifest is a folder"]
    + ["damaged part", "other files", "a file"],
)
def test_what_training_would_spoil_is_left_alone(x, tmp_path, kind):
    folder = made(tmp_path / "run", kind, x)
    before = content(folder)
    box = ExplorerBox(folder)
    assert not box.work and not box.shown
    assert "Traceback" not in box.said["error"] and 10 < len(box.said["error"]) < 600
    with pytest.raises((HyperclipError, OSError)):
        check_trainable(folder)
    with pytest.raises((HyperclipError, OSError)):
        train_parts(str(folder), None)
    assert content(folder) == before and set(tmp_path.iterdir()) == {folder}


def test_what_may_be_trained(x, tmp_path):
    assert check_trainable(tmp_path / "none") is None and check_trainable(tmp_path) is None
    Run.create(tmp_path / "begun", {"dataset": "scenes", "world_seed": 3, "recipe": x.recipe})
    assert check_trainable(tmp_path / "begun") == (3, x.recipe)


def test_training_can_be_interrupted(tmp_path):
    box = ExplorerBox(tmp_path / "no-such-run", str(tmp_path))
    box.train()
    assert box.work["state"] == "running" and box.worker is not None
    box.train()  # twice is once
    box.worker.stop()
    deadline = time.monotonic() + 60
    while box.worker is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert box.worker is None and box.work["state"] == "offer" and box.work["why"] == "Interrupted."


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--port", "0"], "port from 1 to 65535"),
        (["--port", "many"], "many"),
        (["--ip", "everywhere"], "an address such as"),
        (["--base-url", "explorer"], "starts and ends with a slash"),
        (["--token", "short"], "at least 16"),
        (["--visitors", "0"], "1 to 100"),
        (["--host", "https://lab.example"], "names such as"),
        (["--seed", "-1"], "0 or more"),
        (["--nothing"], "nothing"),
        ([], "expected the package voila"),
    ],
)
def test_the_command_says_what_is_wrong(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main(["app", *arguments])
    out = capsys.readouterr()
    assert end.value.code == 2 and said in out.out + out.err and "Traceback" not in out.err


def test_the_page_is_a_notebook_that_shows_the_explorer():
    assert page("a'b", None, 3)["cells"][1]["source"].endswith('explore(run="a\'b", data=None, seed=3, own_page=True)')
    nbformat.validate(nbformat.from_dict(page()))


# Pictures and words


def test_pictures_keep_their_place_and_are_described(x, explorer):
    with pytest.raises(ValueError, match="uint8"):
        png(np.zeros((2, 4, 4, 3)))
    images = np.random.default_rng(0).integers(0, 255, (27, 4, 4, 3)).astype(np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(png(images))))
    assert sheet.shape == (8, 100, 3) and (sheet[4:, 4:8] == images[26]).all() and (sheet[:4, 96:] == images[24]).all()
    for task in x.sets["test"].tasks[::25]:
        image, label = task.query[0]
        if task.family in ("color", "background", "pattern"):
            assert task.answers[label] in explorer.pictures.describe(image)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.data())
def test_intervals_hold_what_they_are_about(count, data):
    right = data.draw(st.integers(0, count))
    low, high = wilson(right, count)
    share, rounding = 100 * right / count, 1e-9
    assert 0 <= low <= share + rounding and share - rounding <= high <= 100 and high - low < 100
    assert wilson(count - right, count) == pytest.approx((100 - high, 100 - low))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_votes_count_every_network_once(data):
    networks, pictures, answers = (data.draw(st.integers(*ends)) for ends in ((1, 12), (1, 9), (2, 5)))
    one = st.lists(st.integers(0, answers - 1), min_size=pictures, max_size=pictures)
    each, truth = [data.draw(one) for _ in range(networks)], data.draw(one)
    votes = count_votes(each, answers)
    assert [sum(row) for row in votes] == [networks] * pictures
    given_ = [row.index(max(row)) for row in votes]
    found = agreement(votes, given_, truth)
    assert found.agreed[1] + found.split[1] == pictures
    assert found.agreed[0] + found.split[0] == sum(g == t for g, t in zip(given_, truth))


@pytest.mark.parametrize(
    "text", ["آیا گربه می‌خوابد؟", "Quelle couleur\u202f?", "猫は\u3000何色?", "Is the 👩\u200d💻 happy?"]
)
def test_joiners_and_wide_spaces_are_text(text):
    task, _ = task_for(text, ("بله\u200cها", "no"), query=2)
    assert task.question == text and task.answers[0] == "بله\u200cها"


@pytest.mark.parametrize("blank", ["", " ", "\u200b", "\u200d \ufeff"])
def test_signs_without_width_are_no_text(blank):
    with pytest.raises(ValueError, match="expected a question, got an empty text"):
        task_for(blank, ("a", "b"))
    with pytest.raises(ValueError, match="expected answers with letters"):
        task_for("What is it?", ("a", blank))


@pytest.mark.parametrize("text", ["What is\udcff?", "What\nis it?", "What \x00 is it?", "a\u2028b?", "a \u202e b?"])
def test_text_that_cannot_be_printed_is_no_question(text):
    with pytest.raises(ValueError, match="printed on one line"):
        task_for(text, ("a", "b"))


def test_no_answer_overwrites_another(x, tmp_path):
    long = "Is the thing that stands at the far end of the long narrow street {}?"
    asked = [["What color is the comet?", "--gamma", "0"], ["What color is the comet?", "--gamma", "3"]]
    asked += [[long.format(color), "--answers", "yes,no"] for color in ("red", "blue")] + [
        ["太阳？", "--answers", "a,b"]
    ]
    for question in asked:
        main(["adapt", *question, "--out", str(tmp_path), "--images", "2", "--samples", "1"])
    kept = {path.parent: Adapter.from_pretrained(path.parent).question for path in tmp_path.glob("*/config.json")}
    assert len(kept) == len(asked) and len({*kept.values()}) == 4
    assert all((folder / "sheet.png").is_file() for folder in kept)


def test_without_a_run_the_shipped_weights_answer(tmp_path, monkeypatch):
    "Nothing is trained, and no picture is drawn but those that are shown."
    monkeypatch.setattr("hyperclip_nb.dataset.sources.build_bank", lambda *a, **k: pytest.fail("a bank was asked for"))
    box = explore(data=tmp_path)
    assert box.shown and isinstance(box.explorer.experiment, Shipped) and not [*tmp_path.iterdir()]
    question = box.shown["question"]
    shown = box.explorer.show(Choice(question=question, steps=100))  # all of the sampler's steps
    assert torch.allclose(shown.weights, TextToWeights.from_pretrained("scenes").weights(question), atol=1e-5)
    assert [score["who"] for score in box.shown["scores"]] == ["clip", "words"] and box.more["target_score"]
    assert box.world["shipped"]
    with pytest.raises(RunError, match="train a run for the others"):
        box.explorer.show(Choice(question=question, kind="hnet"))
    with pytest.raises(RunError, match="train a run for the others"):
        box.explorer.show(Choice(question=question, guidance="hyperclip"))


# With the shipped weights: what the page is made of


@pytest.fixture(scope="module")
def shipped():
    return Explorer(Shipped())


def first(explorer, family="color"):
    return next(task.question for task in explorer.experiment.sets["test"].tasks if task.family == family)


def test_the_record_is_about_these_weights_and_true(shipped):
    found = read_held_out(shipped)
    assert found is not None, "the weights have changed: run benchmarks/held_out.py"
    tests = {task.question: task for task in shipped.experiment.sets["test"].tasks}
    assert {held.question for held in found.of("test")} == set(tests) and len(found.of("val")) == 113
    assert sum(wins(found.of("test"))) == len(tests)
    of = {held.question: held for held in found.questions}
    differ = 0
    for question in list(tests)[::40]:
        shown = shipped.show(Choice(question=question))
        differ += abs(shown.score("words").right - of[question].words) + abs(
            shown.score("clip").right - of[question].clip
        )
    assert differ <= 2  # another processor may turn a picture


def test_the_opening_question_is_chosen_on_validation(shipped):
    found = read_held_out(shipped)
    changed = [held if held.split == "val" else structs.replace(held, words=0, clip=25) for held in found.questions]
    other = HeldOut(found.weights, changed)  # whatever the test scores are, the same questions come first
    names = lambda of: {kind: held.question for kind, held in opening(of).items()}
    assert names(found) == names(other) and len({*names(found).values()}) == 2
    assert {held.split for held in opening(found).values()} == {"test"}


def test_a_record_of_other_weights_is_not_believed(shipped, tmp_path, monkeypatch):
    stranger = json.loads(HELD_OUT.read_text()) | {"weights": "0" * 64}
    (tmp_path / "held_out.json").write_text(json.dumps(stranger))
    monkeypatch.setattr("hyperclip_nb.explorer.page.HELD_OUT", tmp_path / "held_out.json")
    assert read_held_out(shipped) is None


def test_measuring_is_asking(shipped):
    held = next(measure_held_out(shipped, ["val"]))
    shown = shipped.show(Choice(question=held.question))
    assert (held.words, held.clip) == (shown.score("words").right, shown.score("clip").right) and held.split == "val"


def test_a_choice_is_an_address():
    for choice in (
        Choice(question="a&b=c#?", answers=("x; y", "ü"), gamma=0.0, seed=3),
        Choice(question="", shots=2, kind="hnet", other="why?"),
    ):
        again = Choice.read("#" + choice.address())
        assert again.settings() == choice.settings() and (again.question, again.other) == (
            choice.question,
            choice.other,
        )
    assert Choice(question="why?", answers=("yes", "1,000")).address() == "question=why%3F&answers=yes%3B+1%2C000"
    with pytest.raises(ValueError, match="settings: expected question"):
        Choice.read("question=why&token=secret")


def test_the_page_tells_an_address_that_shows_the_same(shipped):
    for choice in (
        Choice(question=first(shipped), gamma=2.5, seed=4, pictures=30),
        Choice(question=first(shipped), answers=("blue", "red")),
        Choice(question="Is it 🐱?", answers=("1,000", "none")),
    ):
        data = shown_data(shipped.show(choice), shipped)
        again = shown_data(shipped.show(Choice.read(data["address"])), shipped)
        fields = shown_data(shipped.show(Choice.read(data["choice"])), shipped)
        assert data == again == fields


def test_answers_that_nothing_has_are_not_scored(shipped):
    for answers in (("rd", "bluee", "green"), ("red", "sad")):
        shown = shipped.show(Choice(question=first(shipped), answers=answers))
        assert not shown.scores and "so nothing is scored" in shown.asked.notes[0]
    data = shown_data(shipped.show(Choice(question=first(shipped), answers=("rd", "bluee", "green"))), shipped)
    assert data["meant"] == {"answers": "red, blue, green"} and data["truth"] is None
    with pytest.raises(ValueError, match="different answers"):
        shipped.ask(first(shipped), ("red", "RED"))
    some = shipped.ask(first(shipped), ("Red", "blue"))
    assert some.scored and "Only pictures" in some.notes[0] and {*some.truth} <= {0, 1}


def test_more_pictures_begin_with_the_same_ones(shipped):
    few, many = (shipped.show(Choice(question=first(shipped), pictures=n)) for n in (25, 60))
    assert many.asked.images[:25] == few.asked.images and many.given[:25] == few.given and len(many.given) == 60
    assert (
        many.scores[0].interval[1] - many.scores[0].interval[0] < few.scores[0].interval[1] - few.scores[0].interval[0]
    )


def test_the_walk_ends_with_what_is_shown_and_the_strip_goes_through_it(shipped):
    for choice in (Choice(question=first(shipped), shots=2), Choice(question=first(shipped), gamma=2.0, networks=3)):
        shown = shipped.show(choice)
        steps = frames(shipped, shown)
        assert (
            steps.given[-1] == shown.given
            and steps.at[0] == 0
            and steps.at[-1] == len(shown.walk) + len(shown.more) - 2
        )
        assert len(steps.matrices) == len(steps.at) + 1
    strip = over_gamma(shipped, choice)
    assert strip[GAMMAS.index(2.0)].right == shown.score("words").right and len(strip) == len(GAMMAS)
    assert over_gamma(shipped, Choice(question="Is it 🐱?", answers=("yes", "no"))) == []


def test_the_way_to_another_question_has_both_ends(shipped):
    a, b = first(shipped), first(shipped, "size")
    way = between(shipped, Choice(question=a, other=b))
    for given_ in way.given.values():
        assert given_[0][0] == shipped.show(Choice(question=a)).given
    assert way.given["embedding"][0][-1] == way.given["latent"][0][-1]
    same = between(shipped, Choice(question=a, other=a))
    assert all(given_[0] == [given_[0][0]] * 11 for given_ in same.given.values())


def test_what_was_meant_is_offered(shipped):
    box = ExplorerBox(Path("no-such-run"), usual=True)
    told(box, question="What color is the umbrela?", answers="", fresh=True)
    assert box.shown["meant"] == {"question": "What color is the umbrella?"} and box.shown["answers"][0] == "red"
    assert "resembles" in " ".join(box.shown["notes"])  # and the family's answers are taken
    told(box, question=first(shipped), answers="x, y", fresh=True)
    assert box.shown["answers"] == list(shipped.ask(first(shipped)).answers)  # nobody's own answers stick
    assert did_you_mean("What color is the cat?", []) is None


def test_the_file_is_of_what_is_shown(shipped, tmp_path):
    box, sent = ExplorerBox(Path("no-such-run"), usual=True), []
    box.send = lambda content, buffers=None: sent.append((content, buffers))
    told(box, gamma=3.0)
    told(box, question="")  # refused: what is shown stays
    box._heard(box, {"kind": "adapter"}, [])
    (content, (file,)) = sent[-1]
    assert content["name"].endswith(".safetensors")
    (tmp_path / content["name"]).write_bytes(file)
    assert load_tensors(tmp_path / content["name"])[1]["gamma"] == 3.0
    for wrong in ({"kind": "thumbnail", "row": -1}, {"kind": "thumbnail", "row": "x"}, {"kind": "boo"}, {}):
        box._heard(box, wrong, [])
    assert len(sent) == 1
    box._heard(box, {"kind": "thumbnail", "row": 3}, [])
    assert sent[-1][1][0].startswith(b"\x89PNG")
