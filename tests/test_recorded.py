"The explorer without a kernel, opened from the disk and from a server, by mouse and by keyboard."

import base64
import functools
import http.server
import re
import threading

import numpy as np
import pytest
from browsing import Visit, check_access, pytestmark  # noqa: F401 (a mark)

from hyperclip_nb.evaluation.shipped import Shipped
from hyperclip_nb.explorer.choice import Choice
from hyperclip_nb.explorer.explore import Explorer
from hyperclip_nb.explorer.recorded import UNIT, record, recorded_questions, write_page

GAMMAS = (0.0, 1.5, 3.0)


@pytest.fixture(scope="module")
def explorer():
    return Explorer(Shipped())


@pytest.fixture(scope="module")
def index(explorer, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("recorded"), explorer, recorded_questions(explorer)[:3], GAMMAS)


def test_what_is_recorded_is_what_is_shown(explorer):
    (question,) = recorded_questions(explorer)[:1]
    one = record(explorer, [question], GAMMAS)["questions"][0]
    for gamma, answer in zip(GAMMAS, one["answers"], strict=True):
        shown = explorer.show(Choice(question=question, gamma=gamma))
        told = one["shown"] | answer["shown"]
        assert told["given"] == shown.given and told["choice"]["gamma"] == gamma
        assert [score["score"][1] for score in told["scores"]] == [score.right for score in shown.scores]
        walk = np.frombuffer(base64.b64decode(told["walk"]["packed"]), "<i2").reshape(told["walk"]["shape"]) * UNIT
        assert np.abs(walk - explorer.on_map("hvae", shown.walk).numpy()).max() < 0.002


def test_its_questions_are_chosen_without_looking_at_what_comes_out(explorer):
    chosen = recorded_questions(explorer)
    tests = {task.question: task.family for task in explorer.experiment.sets["test"].tasks}
    assert 20 <= len(chosen) <= 26 and {tests[question] for question in chosen} == {*tests.values()}


def use(visit, address):
    "The map, the strip, the walk, another question, a pinned result: without a kernel."
    page = visit.page
    page.goto(address)
    page.wait_for_selector(".hn-sheet figure")
    page.wait_for_selector(".hn:not(.hn-stale) .hn-strip svg")
    texts = lambda selector: page.locator(selector).all_inner_texts()
    first, answers = visit.text(".hn-title"), lambda: texts(".hn-sheet figcaption")
    assert len(answers()) == 25 and page.locator("svg.hn-map g path").count() > 100
    assert page.evaluate("document.querySelector('.hn-picture').clientWidth") > 40

    # γ by keyboard and by mouse; the strip marks it
    gamma = page.get_by_label("γ guidance")
    mark = lambda: float(page.locator(".hn-strip .hn-present").get_attribute("x1"))
    before, where = mark(), page.locator("svg.hn-map polyline").last.get_attribute("points")
    gamma.press("End")
    page.wait_for_function("(old) => document.querySelector('svg.hn-map g polyline:last-of-type') !== old", arg=where)
    visit.until_changed(lambda: page.locator("svg.hn-map polyline").last.get_attribute("points"), where)
    assert mark() > before and visit.text(".hn-gamma output") == "3.0"  # the nearest that is recorded
    box = gamma.bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    visit.until_changed(lambda: visit.text(".hn-gamma output"), "3.0")
    visit.drawn()  # the number comes before the pictures

    # the walk, step by step
    step = page.locator(".hn-walk input[type=range]")
    last = answers()
    step.press("Home")
    visit.until(lambda: visit.text(".hn-walk output").startswith("0 of 50") and answers() != last)
    box = step.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    visit.until(lambda: answers() == last)

    # the map tells, but asks only what is recorded
    map_ = page.locator("svg.hn-map")
    map_.scroll_into_view_if_needed()
    map_.press("ArrowRight")
    map_.press("ArrowRight")
    assert visit.text(".hn-tip").endswith(tuple(texts(".hn-legend span")))
    map_.press("Enter")
    page.wait_for_timeout(200)
    assert visit.text(".hn-title") == first
    page.get_by_label("Find").fill("cat")
    assert re.fullmatch(r"\d+ dots?", visit.text(".hn-tools .hn-soft"))

    # another question, and back
    page.get_by_role("button", name="Pin as A").click()
    page.get_by_label("Question", exact=True).select_option(index=2)
    visit.until_changed(lambda: visit.text(".hn-title"), first)
    page.wait_for_timeout(700)
    assert "question=" in page.url and page.get_by_text("A: ").count()
    page.go_back()
    page.wait_for_selector(f".hn-title >> text={first}")
    for name in ("Ask", "Download adapter", "More pictures (200)"):  # what needs a kernel
        assert not page.get_by_role("button", name=name, exact=True).count()
    assert not page.locator(".hn-own, .hn-settings, .hn-between").locator("visible=true").count()
    check_access(page)
    assert visit.errors == [] and visit.elsewhere == []


def test_from_the_disk(browser, index):
    use(Visit(browser), index.as_uri())


def test_from_a_server_on_a_phone_in_the_dark(browser, index):
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=index.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            visit = Visit(browser, width=390, color_scheme="dark")
            use(visit, f"http://127.0.0.1:{server.server_port}/index.html")
            assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert visit.page.locator(".hn[data-theme=dark]").count() == 1
        finally:
            server.shutdown()
