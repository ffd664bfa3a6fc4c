"The digits to play with: what is right is what the words say, and the page puts every picture under its answer."

import base64
import functools
import http.server
import json
import re
import threading
import time
from itertools import islice

import pytest
import torch
from browsing import CHROMIUM, Visit, check_access
from test_digits import SHORT_RECIPE, read

from hyperclip_nb.core.files import RunError
from hyperclip_nb.core.runs import Run
from hyperclip_nb.dataset import digits as d
from hyperclip_nb.evaluation.digits import digits_experiment
from hyperclip_nb.explorer.digits import (
    ASSETS,
    CHIPS,
    DigitsBox,
    DigitsExplorer,
    digits_folder,
    digits_run,
    explore_digits,
    function_of,
    meant_question,
    shown_digits,
    unknown_words,
)
from hyperclip_nb.explorer.page import module


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    return DigitsExplorer(digits_experiment(40, recipe=SHORT_RECIPE, out=tmp_path_factory.mktemp("digits")))


def test_what_is_right_is_what_the_words_say():
    "Against the oracle that reads English: all questions that were drawn, and simple ones that were not."
    for split in ("train", "val", "test"):
        for described, text in islice(d.draw_questions(0, split), 150):
            found = function_of(text.upper().replace("?", " ?"))
            assert found is not None and list(found.table) == read(text, described.answers), text
    asked = [
        "Is it 8 or 3?",
        "Is it none of 9 and 1?",
        "Is it even or at most 3?",
        "Is it exactly one of odd and prime?",
    ]
    for text in asked:
        assert list(function_of(text).table) == read(text, ("no", "yes")), text
    assert list(function_of("Which of 9, 4 and 7 is it?").table) == read("Which of 9, 4 and 7 is it?", ("9", "4", "7"))
    made = function_of("Say a for 9 or 1, b for 0, 3 or 2, and c for anything else.")
    assert [made.table[k] for k in (9, 1, 0, 3, 2, 5)] == [0, 0, 1, 1, 1, 2]
    assert list(function_of("Is it none of 1, 2, 3, 4, 5 and 6?").table) == [1, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    for text in ("Is it 3 and 8?", "Which of 3 and 3 is it?", "Which of 1, 2, 3, 4 and 5 is it?", "Is it 12 or 3?"):
        assert function_of(text) is None
    for text in ("", "Is it blue?", "Is it even and blue?", "Is it even and odd and prime?", "42"):
        assert function_of(text) is None


def test_words_that_no_question_has_are_found_and_the_nearest_offered():
    for split in ("train", "val", "test"):
        for _, text in islice(d.draw_questions(0, split), 150):
            assert not unknown_words(text) and meant_question(text) is None
    assert unknown_words("Is it PURPLE, purple or 11?") == ["purple", "11"]
    for text, meant in [
        ("Is it Evn?", "Is it Even?"),
        ("Is it a squere number?", "Is it a square number?"),
        ("Is it three or eight?", "Is it 3 or 8?"),
        ("Is it exactly one of evn and two?", "Is it exactly one of even and 2?"),
        ("Is it purple?", None),
        ("", None),
    ]:
        assert meant_question(text) == meant


def test_a_question_is_answered_about_all_pictures(explorer):
    shown = explorer.show(" Is it 3 or 8? ", gamma=0.5, samples=3)
    assert shown.answers == ("no", "yes") and shown.question == "Is it 3 or 8?"
    assert shown.truth == [int(k in (3, 8)) for k in explorer.digits.tolist()]
    assert shown.shares.shape == (347, 2) and torch.allclose(shown.shares.sum(1), torch.ones(347), atol=1e-5)
    right = sum(a == b for a, b in zip(shown.shares.argmax(1).tolist(), shown.truth))
    assert (shown.score.right, shown.score.count) == (right, 347)
    # Beside it: one network that reads no question, and whoever always gives the most frequent answer.
    _, everyone, always = shown.scores
    w = explorer.experiment.multitask(0).z0[None]
    given = explorer.experiment.net.functional(explorer.experiment.net.split(w), explorer.pictures[None])[0, :, :2]
    assert everyone.right == sum(a == b for a, b in zip(given.argmax(1).tolist(), shown.truth))
    assert (always.right, always.label) == (shown.truth.count(0), "always “no”") and shown.truth.count(0) > 174
    assert shown.others == ("In other words", ("Is the digit one of 3 and 8?", "Does the picture show 3 or 8?"))
    some = explorer.show("Which of 9, 4 and 7 is it?", samples=2)
    assert some.score.count == sum(k in (9, 4, 7) for k in explorer.digits.tolist())
    assert [i for i in shown_digits(some)["order"] if some.truth[i] < 0] == []
    assert sorted(shown_digits(shown)["order"]) == [*range(347)]
    assert torch.equal(explorer.show("Is it 3 or 8?", gamma=0.5, samples=3).shares, shown.shares)


def test_answers_of_an_unknown_question_are_those_of_a_similar_one_and_a_person_is_the_judge(explorer):
    task = next(task for task in explorer.experiment.sets["train"].tasks if task.family == "groups")
    unknown = f"{task.question} Please"
    assert explorer.answers_for(unknown) == tuple(task.answers)
    shown = explorer.show(unknown, samples=2)
    assert shown.score is None and shown.seen == "" and "you are the judge" in shown.notes[0]
    other = explorer.show("Is it 3 or 8?", ["never", "maybe", "surely"], samples=2)
    assert other.truth is None and other.answers == ("never", "maybe", "surely")
    label, others = shown.others
    assert label == "It reads like" and others[0] == task.question and len(others) == 4
    strange = explorer.show("Is it beautiful?", samples=2)
    assert "“beautiful”" in strange.notes[1] and strange.scores == [] and strange.notes[2].startswith("The answers are")


def test_answers_in_another_order_are_still_what_they_say(explorer):
    "The outputs of a network have the function's order; whoever writes yes first means the same."
    plain = explorer.show("Is it even?", samples=2)
    turned = explorer.show("Is it even?", ["Yes", "no"], samples=2)
    assert turned.answers == ("no", "yes") and turned.scores == plain.scores and not turned.notes
    named = explorer.show("Is it even?", ["nope", "yep"], samples=2)
    assert named.answers == ("nope", "yep") and named.score == plain.score
    assert named.notes == ("Your answers stand for its own: nope for no; yep for yes.",)


def test_what_cannot_be_asked_is_said_in_a_sentence(explorer):
    for how, message in [
        ({"question": "  "}, "expected a question in words"),
        ({"question": "Is it even?", "answers": ["a"]}, "at least two answers"),
        ({"question": "Is it even?", "answers": [*"abcde"]}, "at most 4"),
        ({"question": "Is it even?", "gamma": 11.0}, "gamma: expected a number from 0 to 10"),
    ]:
        with pytest.raises(ValueError, match=message):
            explorer.show(**how)


def test_the_widget_passes_on_what_was_asked(explorer):
    box = DigitsBox(explorer)
    assert box.shown["question"] == next(iter(CHIPS)) and len(box.units) == 32 * 64 * 4
    assert len(box.ink) == 347 * 64 and max(box.ink) == 255
    box.choice = {"question": "Is it even?", "answers": "", "gamma": 2, "turn": 3}
    assert (box.shown["question"], box.shown["turn"], box.said) == ("Is it even?", 3, {})
    units = torch.frombuffer(bytearray(box.units), dtype=torch.float32).view(32, 64)
    shown = explorer.show("Is it even?", gamma=2)
    assert torch.equal(units, shown.units[shown.votes.argsort(descending=True)])
    assert box.shown["votes"] == sorted(box.shown["votes"], reverse=True)
    box.choice = {"question": "Is it even?", "answers": "only one", "turn": 4}
    assert box.said["turn"] == 4 and box.said["error"].startswith("Expected at least two answers")
    assert box.shown["turn"] == 3 and box.work == {}
    box.choice = {"question": "Is it evn?", "turn": 5}
    assert box.shown["meant"] == "Is it even?" and box.shown["scores"] == [] and box.said == {}


def ended(box):
    "What the widget says once its training process has ended."
    began = time.monotonic()
    while box.work.get("state") == "running":
        assert time.monotonic() - began < 120, box.work
        time.sleep(0.1)
    return box.work


def test_networks_that_are_missing_are_trained_beside_the_page(tmp_path):
    "It says so at once, answers then what was asked meanwhile, and the next page finds the networks."
    folder = digits_folder(tmp_path)
    digits_experiment(40, recipe=SHORT_RECIPE, out=folder)  # a run whose parts are still missing
    box = explore_digits(data=tmp_path)
    assert box.work["state"] == "running" and "goes on where it stopped" in box.work["why"] and not box.shown
    box.choice = {"question": "Is it prime?", "turn": 1}
    assert box.said["turn"] == 1 and "as soon as they are there" in box.said["error"]
    assert ended(box) == {} and box.said == {}
    assert (box.shown["question"], box.shown["turn"]) == ("Is it prime?", 1)
    again = explore_digits(data=tmp_path)
    assert again.work == {} and again.shown["question"] == next(iter(CHIPS))


def test_training_can_be_interrupted_and_goes_on_when_asked(tmp_path):
    digits_experiment(40, recipe=SHORT_RECIPE, out=tmp_path / "run")
    box = explore_digits(run=tmp_path / "run")
    box._heard(None, {"kind": "stop"}, [])
    work = ended(box)
    assert work["state"] == "offer" and work["why"] == "Interrupted."
    box.choice = {"question": "Is it odd?", "turn": 1}  # nothing begins by itself now
    assert box.worker is None and box.said["turn"] == 1 and not box.shown
    box._heard(None, {"kind": "train"}, [])
    assert ended(box) == {} and box.shown["question"] == "Is it odd?"


def test_a_run_on_something_else_is_left_alone(tmp_path):
    Run.create(tmp_path / "scenes", {"dataset": "scenes", "world_seed": 0})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    for name, said in ("scenes", "expected a run on digits, found one on 'scenes'"), ("notes", "no manifest.json"):
        before = sorted((tmp_path / name).iterdir())
        box = explore_digits(run=tmp_path / name)
        assert said in box.said["error"] and box.worker is None and box.work == {}
        assert sorted((tmp_path / name).iterdir()) == before
        with pytest.raises(RunError, match=said):
            digits_run(tmp_path / name)


def test_the_demos_run_comes_first(tmp_path):
    assert digits_folder(tmp_path).name == "demo_digits"
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    assert digits_folder(tmp_path).name == "digits"
    (tmp_path / "runs" / "demo_digits").mkdir()
    assert digits_folder(tmp_path).name == "demo_digits"


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>digits</title>
<link rel="stylesheet" href="explorer.css"><link rel="stylesheet" href="digits.css">
<body><main id="here"></main><script type="module">
import page from "./page.js";
const state = STATE, heard = {};
for (const name of ["ink", "units"])
  state[name] = new DataView(Uint8Array.from(atob(state[name]), (letter) => letter.charCodeAt(0)).buffer);
window.model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; },
  on: (name, call) => { heard[name] = call; },
  tell: (name, value) => { state[name] = value; heard[`change:${name}`](); },
  save_changes() {},
  send() {},
  off() {},
};
window.start = (model) => page.render({ model, el: document.getElementById("here") });
window.start(window.model);
</script></body></html>"""


@pytest.fixture
def page(explorer, browser, tmp_path):
    "The page without a kernel: what the widget sends, written down."
    box = DigitsBox(explorer)
    state = {name: getattr(box, name) for name in ("choice", "world", "shown", "said", "work", "own_page")}
    state |= {name: base64.b64encode(getattr(box, name)).decode() for name in ("ink", "units")}
    (tmp_path / "index.html").write_text(PAGE.replace("STATE", json.dumps(state)), encoding="utf-8")
    (tmp_path / "page.js").write_text(module("digits.js"), encoding="utf-8")
    for name in ("digits.css", "explorer.css"):
        (tmp_path / name).write_bytes((ASSETS / name).read_bytes())
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    visit = Visit(browser)
    visit.page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
    visit.page.wait_for_selector(".hn-digits h3")
    yield box, visit
    assert visit.errors == [] and visit.elsewhere == []
    visit.context.close()
    server.shutdown()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_puts_every_picture_under_its_answer(page):
    box, visit = page
    heads = visit.page.locator(".hn-digits h3").all_text_contents()
    counts = [box.shown["given"].count(a) for a in (0, 1)]
    assert [int(re.search(r"(\d+) picture", text)[1]) for text in heads] == counts
    tops = visit.page.eval_on_selector_all(
        ".hn-digit", "tiles => tiles.map(t => +t.style.transform.match(/, (\\d+)px/)[1])"
    )
    second = visit.page.eval_on_selector_all(".hn-digits h3", "heads => +heads[1].style.top.slice(0, -2)")
    assert [int(top > second) for top in tops] == box.shown["given"]
    wrong = sum(a != b for a, b in zip(box.shown["given"], box.shown["truth"]))
    assert visit.page.locator(".hn-digit.hn-off").count() == wrong
    assert visit.page.locator(".hn-units canvas").count() == 32

    # By keyboard: a question, and what comes of it.
    question = visit.page.get_by_label("Question", exact=True)
    question.fill("Which of 4, 7 and 9 is it?")
    question.press("Enter")
    choice = visit.page.evaluate("window.model.get('choice')")
    assert choice == {"question": "Which of 4, 7 and 9 is it?", "answers": "", "gamma": 1, "turn": 1}
    assert visit.page.locator(".hn-stale").count() == 1
    box.choice = choice
    visit.page.evaluate("shown => window.model.tell('shown', shown)", box.shown)
    assert visit.page.locator(".hn-stale").count() == 0
    assert len(visit.page.locator(".hn-digits h3").all_inner_texts()) == 3
    hidden = visit.page.locator(".hn-digit[hidden]").count()
    assert hidden == sum(truth < 0 for truth in box.shown["truth"]) > 0
    visit.page.get_by_label("γ").press("ArrowRight")
    visit.page.wait_for_function("window.model.get('choice').gamma === 1.1")
    visit.page.evaluate("window.model.tell('said', { turn: 2, error: 'Expected something else.', meant: 'Is it 3?' })")
    assert visit.text(".hn-note").startswith("Expected something else.")
    visit.page.get_by_role("button", name="Is it 3?", exact=True).press("Enter")
    visit.page.wait_for_function("window.model.get('choice').question === 'Is it 3?'")
    box.choice = visit.page.evaluate("window.model.get('choice')")
    visit.page.evaluate("shown => window.model.tell('shown', shown)", box.shown)

    check_access(visit.page)
    for width in (1280, 800, 390):
        visit.page.set_viewport_size({"width": width, "height": 1000})
        visit.page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_while_networks_are_trained_the_pictures_are_there(page):
    _, visit = page
    work = {"state": "running", "what": "Training: HVAE, 40 %", "share": 0.4, "why": "Once."}
    visit.page.evaluate("work => window.model.tell('work', work)", work)
    assert visit.page.get_by_role("progressbar", name="Training: HVAE, 40 %").get_attribute("value") == "0.4"
    assert visit.page.get_by_role("button", name="Interrupt").is_enabled()
    visit.page.evaluate("window.model.tell('work', {})")
    assert not visit.page.get_by_role("progressbar").is_visible()
    # A page that begins without networks shows the pictures of each digit.
    visit.page.evaluate("""() => { const el = document.getElementById("here"); el.replaceChildren();
      const empty = { ...window.model, get: (name) => (name === "shown" ? {} : window.model.get(name)) };
      window.start(empty); }""")
    heads = visit.page.locator(".hn-digits h3").all_text_contents()
    digits = visit.page.evaluate("window.model.get('world').digits")
    assert heads == [f"{k} {digits.count(k)} pictures" for k in range(10)]
    check_access(visit.page)
