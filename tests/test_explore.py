"The explorer without a browser: what it shows is what is measured elsewhere, and bad input ends in a sentence."

import json
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from hyperclip_nb.explorer.drawing import Frame, path_layer
from hyperclip_nb.explorer.explore import (
    ALL_STEPS,
    LABELS,
    SHOT_STEPS,
    Explorer,
    adapter_file,
    check_trainable,
    train_parts,
)
from hyperclip_nb.explorer.fields import controls
from hyperclip_nb.explorer.panels import bars, sheet, sprite
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
        and np.array_equal(a.walk, b.walk)
        and a.given == b.given
        and a.accuracy == b.accuracy
    )


# What is shown is what is measured


def test_accuracies_are_those_of_the_table(explorer, x):
    for row, task in list(enumerate(x.sets["test"].tasks))[::60]:
        shown, one = explorer.show(Choice(question=task.question)), x.sets["test"]
        score = lambda w: pytest.approx(100 * set_accuracy(w, one, x.net)[row].item(), abs=1e-3)
        assert shown.accuracy[LABELS["clip"]] == score(torch.zeros(1, x.net.size))
        assert shown.accuracy[LABELS["multitask"]] == score(x.multitask(0).z0[None].detach())
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
        shown = explorer.show(Choice(question=x.sets["val"].tasks[row].question))
        differ += abs(shown.accuracy[LABELS["target"]] - scores[row].item())
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
    np.testing.assert_allclose(few, many[:, :2], rtol=1e-4, atol=1e-4)


def test_the_walk_ends_where_the_weights_come_from(explorer, x):
    for choice in (Choice(question=question(x), networks=2), Choice(question=question(x), guidance="hyperclip")):
        shown = explorer.show(choice)
        assert np.array_equal(shown.walk[-1], shown.more[-1]) and len(shown.walk) == choice.steps + 1
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
    path = lambda text: explorer.walk(Choice(question=text, gamma=0.0, seed=3), explorer.ask(text))
    a, b = (explorer.ask(question(x, family)) for family in ("color", "count"))
    torch.manual_seed(0)
    ldm = x.hyperldm("hvae", 0)
    ends = [
        ldm.generate(
            x.condition("hvae", 0, {x.recipe.question: asked.embedding}),
            gamma=0.0,
            clamp=x.recipe.clamp,
            generator=torch.Generator().manual_seed(0),
        )
        for asked in (a, b)
    ]
    assert torch.equal(*ends) and path(a.question).shape == path(b.question).shape


def test_examples_move_the_latent(explorer, x):
    walks = {n: explorer.show(Choice(question=question(x), shots=n, networks=2)) for n in (0, 1, 5, 10)}
    assert all(len(shown.more) == (SHOT_STEPS + 1 if n else 1) for n, shown in walks.items())
    assert all(np.array_equal(walks[0].walk, shown.walk) for shown in walks.values())
    ends = [shown.more[-1] for shown in walks.values()]
    assert all(not np.allclose(a, b) for i, a in enumerate(ends) for b in ends[:i])
    labels = [next(label for label in shown.accuracy if label.startswith("generated")) for shown in walks.values()]
    assert labels[0] == LABELS["words"] and len(set(labels)) == 4


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
    box.form.fields["answers"].value = ", ".join(answers)
    box.form.fields["question"].value = question
    box.refresh()
    assert "hn-say" in box.note.value and "hn-stale" in box.results._dom_classes and "Traceback" not in box.note.value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_answered(box, question, answers):
    box.form.fields["question"].value, box.form.fields["answers"].value = question, answers
    box.refresh()
    assert ("hn-say" in box.note.value) != (" ms</small>" in box.note.value)


def test_words_that_nobody_taught_are_named(explorer):
    asked = explorer.ask("Is the 🐱 happy?", ("🙂", "🙃"))
    assert not asked.scored and asked.truth is None and asked.seen == "" and len(asked.images) == 25
    assert (
        "🐱, happy" in asked.notes[0]
        and "can't tell these answers apart: 🙂, 🙃" in asked.notes[1]
        and "judge" in asked.notes[2]
    )
    assert explorer.show(Choice(question="Is the 🐱 happy?", answers=("🙂", "🙃"))).accuracy == {}


def test_answers_are_split_as_people_write_them():
    assert split_answers(" red, light blue,green,yellow,, ") == ("red", "light blue", "green", "yellow")
    for between in (";", "\n", " ;\r\n", ";;"):  # then a comma may be part of an answer
        assert split_answers(f"1,000{between} black, white {between}red,") == ("1,000", "black, white", "red")
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
    fields = controls()
    assert set(fields) == set(Choice.__dataclass_fields__)
    for name, (_, least, largest) in ((name, BOUNDS[name]) for name in NUMBERS):
        assert least <= fields[name].min < fields[name].max <= largest
        for end in (least, largest):
            assert getattr(Choice(question="?", **{name: end}), name) == end
        for beyond in (least - 1, largest + 1):
            with pytest.raises(ValueError, match=f"{name}: expected .* from {least} to {largest}"):
                Choice(question="?", **{name: beyond})


def test_weights_that_are_not_finite_are_never_scored(explorer, x):
    asked = explorer.ask(question(x))
    with pytest.raises(ValueError, match="expected finite weights"):
        explorer.networks(
            Choice(question=question(x)), asked, torch.full((2, x.generator("hvae", 0).latent_size), torch.nan)
        )


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
        assert (
            "not trained yet" in box.working.doing.value
            and box.working.layout.display is None
            and not box.working.train.disabled
        )
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
    assert box.working.layout.display == "none" and box.shown is None
    assert "hn-say" in box.note.value and "Traceback" not in box.note.value and len(box.note.value) < 600
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
    box.start_training()
    assert box.working.train.disabled and not box.working.stop.disabled and box.working.bar.layout.display is None
    box.worker.stop()
    deadline = time.monotonic() + 60
    while box.worker is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert box.worker is None and not box.working.train.disabled and "not trained yet" in box.working.doing.value


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
    assert page("a'b", None, 3)["cells"][1]["source"].endswith('explore(run="a\'b", data=None, seed=3)')
    nbformat.validate(nbformat.from_dict(page()))


# Pictures


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.data())
def test_text_never_becomes_markup(answers, data):
    pick = st.lists(st.integers(0, len(answers) - 1), min_size=3, max_size=3)
    given_, before, truth = (data.draw(pick) for _ in range(3))
    html = sheet([f"<b>{answer}&" for answer in answers], given_, before, truth, "s")
    assert "<b>" not in html and html.count("<figure") == 3
    assert html.count("✓") >= sum(g == t for g, t in zip(given_, truth))
    assert "<i>" not in bars({"<i>": 3.0}, "")


def test_pictures_keep_their_place():
    with pytest.raises(ValueError, match="uint8"):
        sprite(np.zeros((2, 4, 4, 3)), "s")
    frame = Frame.around(np.array([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="finite"):
        path_layer(frame, np.full((2, 1, 2), np.nan))
    assert path_layer(frame, np.zeros((2, 3, 2))).count("<polyline") == 3


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
    assert box.shown is not None and isinstance(box.explorer.experiment, Shipped) and not [*tmp_path.iterdir()]
    question = box.shown.asked.question
    shown = box.explorer.show(Choice(question=question, steps=100))  # all of the sampler's steps
    assert torch.allclose(shown.weights, TextToWeights.from_pretrained("scenes").weights(question), atol=1e-5)
    assert LABELS["multitask"] not in box.shown.accuracy and LABELS["target"] in box.shown.accuracy
    assert any("ship with the package" in note for note in box.shown.asked.notes)
    with pytest.raises(RunError, match="train a run for the others"):
        box.explorer.show(Choice(question=question, kind="hnet"))
    with pytest.raises(RunError, match="train a run for the others"):
        box.explorer.show(Choice(question=question, guidance="hyperclip"))
