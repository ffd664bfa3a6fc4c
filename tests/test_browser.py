"The explorer in a browser: JupyterLab and Voilà, keyboard and mouse, nothing from another host. `pytest -m browser`"

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from browsing import (
    PATIENCE,
    Explorer,
    Visit,
    check_access,
    end,
    free_port,
    kernels_of,
    leave,
    pytestmark,  # noqa: F401 (a mark)
    run_all,
    serve,
    serve_lab,
)

from hyperclip_nb.core.files import load_tensors

ROOT = Path(__file__).resolve().parent.parent


def play(visit, tmp_path):
    "What a newcomer does, in both places, by keyboard and by mouse."
    page, x = visit.page, Explorer(visit)
    gamma, shows = x.of("γ guidance"), lambda: float(page.locator(".hn-gamma output").inner_text())

    # γ: one step by keyboard, far by mouse; the strip marks it
    before = x.walk()
    gamma.press("ArrowLeft")
    before, took = visit.until_changed(x.walk, before)
    print(f"γ by keyboard: {took:.0f} ms")
    assert shows() == 1.4
    box, present = gamma.bounding_box(), page.locator(".hn-strip .hn-present")
    x.settled()
    at = float(present.get_attribute("x1"))
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    before, took = visit.until_changed(x.walk, before)
    print(f"γ by mouse: {took:.0f} ms")
    x.settled()
    assert shows() > 3 and float(present.get_attribute("x1")) > at
    page.locator(".hn-arrow, .hn-map path").first.wait_for(state="attached")

    # scrub the walk, and play it
    last, step = x.answers(), page.locator(".hn-walk input[type=range]")
    step.focus()
    page.keyboard.press("Home")
    assert visit.text(".hn-walk output").startswith("0 of 50") and x.answers() != last
    print(f"scrub step: {page.evaluate(SCRUB):.1f} ms")
    page.keyboard.press("End")
    assert x.answers() == last
    page.get_by_role("button", name="▶ Play").click()
    page.get_by_role("button", name="⏸ Pause").wait_for()
    page.get_by_role("button", name="▶ Play").wait_for()
    assert x.answers() == last

    page.locator("svg.hn-map").scroll_into_view_if_needed()
    track, matrix = step.bounding_box(), page.locator(".hn-matrix")
    page.mouse.move(track["x"] + track["width"] - 10, track["y"] + track["height"] / 2)
    page.mouse.down()
    page.mouse.move(track["x"] + 0.1 * track["width"], track["y"] + track["height"] / 2, steps=4)
    page.mouse.up()
    assert not visit.text(".hn-walk output").startswith("50 ") and x.answers() != last

    # the weights move with it, alone or as what differs from the mean network
    pixels = lambda: matrix.evaluate("(one) => one.toDataURL()")
    early = pixels()
    page.get_by_label("only what differs from the mean network").click()
    assert pixels() != early
    page.get_by_label("only what differs from the mean network").click()
    assert pixels() == early
    step.press("End")
    assert pixels() != early and x.answers() == last

    # another question, spelt otherwise: its own answers come with it
    x.ask("What colour is the background behind the STAR")
    began = time.perf_counter()
    page.wait_for_selector(".hn-title >> text=What color is the background behind the star?")
    print(f"another question: {1000 * (time.perf_counter() - began):.0f} ms")
    x.settled()
    assert x.of("Answers").input_value().startswith("white, black")
    assert len(x.answers()) == 25 and len(re.findall("[✓✗]", visit.text(".hn-sheet"))) == 25
    page.wait_for_function("document.querySelector('.hn-picture').clientWidth > 40")
    assert page.locator(".hn-picture").first.get_attribute("aria-label").endswith("background")

    # the map: hover tells, a click asks, a word finds
    page.get_by_role("button", name="Zoom to the walk").click()
    map_, dot = page.locator("svg.hn-map"), page.locator("svg.hn-map g path").nth(5)
    map_.scroll_into_view_if_needed()
    spot = dot.bounding_box()
    page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    page.wait_for_selector(".hn-tip img")
    told = visit.text(".hn-tip span:not(.hn-blank)").splitlines()[0]
    page.mouse.click(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    page.wait_for_selector(f".hn-title >> text={told.split('?')[0]}?")
    x.settled()
    assert "A training question" in visit.text(".hn-note")
    x.of("Find").fill("cat")
    assert re.fullmatch(r"\d+ dots?", visit.text(".hn-tools .hn-soft"))
    x.of("Find").fill("")
    map_.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    told = visit.text(".hn-tip span:not(.hn-blank)").splitlines()[0]
    page.keyboard.press("Enter")
    page.wait_for_selector(f".hn-title >> text={told.split('?')[0]}?")
    x.settled()

    # A and B: what another seed changes
    page.get_by_role("button", name="Pin as A").click()
    page.locator(".hn-settings summary").click()  # JupyterLab has Settings of its own
    page.locator("input[id$=seed]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".hn-scores >> text=A: ")
    x.settled()
    x.of("Show").select_option("changed")
    assert (
        page.locator(".hn-sheet figure:visible").count() == page.locator(".hn-sheet small:visible >> text=A: ").count()
    )
    x.of("Show").select_option("")
    page.get_by_role("button", name="Unpin A").click()

    # between two questions
    page.get_by_text("Between two questions", exact=True).click()
    x.of("From the question above to").fill("What size is the cat?")
    page.get_by_role("button", name="Go there").click()
    page.wait_for_selector(".hn-way >> text=turn over on the way")
    x.of("Place on the way").focus()
    page.keyboard.press("End")
    page.wait_for_selector(".hn-scores >> text=on the way, at 1.0")
    track = x.of("Place on the way").bounding_box()
    page.mouse.click(track["x"] + 0.5 * track["width"], track["y"] + track["height"] / 2)
    page.wait_for_selector(".hn-scores >> text=on the way, at 0.5")

    # a picture of one's own: composed, and brought
    x.ask("What color is the cat?")
    page.wait_for_selector(".hn-title >> text=What color is the cat?")
    x.settled()
    page.locator(".hn-own summary").click()
    own = page.locator(".hn-own")
    assert own.get_by_label("Thing", exact=True).input_value() == "cat"
    own.get_by_label("Colour", exact=True).first.select_option("blue")
    own.get_by_role("button", name="Draw it").click()
    page.wait_for_selector(".hn-own-view >> text=It is blue.")
    own.get_by_label("Beside it on the right", exact=True).select_option("umbrella")
    page.wait_for_selector('.hn-own-view img[alt*="blue umbrella on the right"]')
    x.settled()
    assert own.locator("tbody tr").count() >= 2 and re.search("[✓✗]", own.locator("tbody").inner_text())
    for name, content, said in (
        ("notes.png", b"not a picture", "got another kind of file"),
        ("large.jpg", bytes(8_000_001), "at most 8 MB"),
    ):
        x.of("or a photograph").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        page.wait_for_selector(f".hn-own [role=alert] >> text={said}")
    x.of("or a photograph").set_input_files(ROOT / "nbs" / "images" / "explorer.png")
    page.wait_for_selector(".hn-own-view >> text=has seen drawn scenes only")
    x.settled()
    own.get_by_role("button", name="Remove").click()
    own.locator(".hn-own-view").wait_for(state="hidden")
    x.settled()

    # a misspelt word, own answers, nonsense
    x.ask("What color is the umbrela?")
    page.get_by_role("button", name="What color is the umbrella?").first.click()
    page.wait_for_selector(".hn-title >> text=What color is the umbrella?")
    x.settled()
    x.of("Answers").fill("rd, bluee, green")
    x.of("Answers").press("Enter")
    page.wait_for_selector(".hn-note >> text=so nothing is scored")
    assert not page.locator(".hn-scores table").count()
    page.get_by_role("button", name="red, blue, green").click()
    page.wait_for_selector(".hn-scores table")
    x.ask("")
    page.wait_for_selector(".hn-say >> text=Expected a question, got an empty text.")
    assert page.locator(".hn-stale").count() and page.get_by_role("button", name="Download adapter").is_disabled()
    x.ask("Is the 🐱 happy? <b>", "yes, no")
    page.wait_for_selector(".hn-note >> text=you are the judge")
    assert not page.get_by_text("Traceback").count()
    x.settled()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download adapter").click()
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    tensors, about = load_tensors(file)
    assert file.name == "is-the-happy-b.safetensors" and about["answers"] == ["yes", "no"]
    assert about["gamma"] == shows() and tensors["weights"].shape == (10, 4240)
    check_access(page)
    assert visit.errors == [] and visit.elsewhere == []


SCRUB = """() => { const step = document.querySelector('.hn-walk input[type=range]'); const times = [];
for (let i = 0; i < 10; i++) { const began = performance.now(); step.value = i; step.dispatchEvent(new Event('input'));
  document.body.offsetHeight; times.push(performance.now() - began); }
return times.sort((a, b) => a - b)[5]; }"""


def tabbed(page):
    "What the Tab key reaches within the explorer, from its beginning until it has left it."
    page.evaluate("() => { scrollTo(0, 0); document.activeElement.blur(); }")
    reached, inside = [], False
    for _ in range(150):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => { const one = document.activeElement;"
            " if (!one.closest('.hn')) return null;"
            " one.dataset.reached = 1;"
            " return one.id || one.textContent || one.tagName; }"
        )
        if found is None and inside:
            return reached
        inside = inside or found is not None
        reached += [found] * (found is not None)
    raise AssertionError(f"the Tab key does not get out of the explorer: {reached[-5:]}")


MISSED = """() => [...document.querySelectorAll('.hn button, .hn input, .hn select, .hn summary, .hn [tabindex="0"]')]
.filter((one) => !one.disabled && !one.dataset.reached && one.checkVisibility())
.map((one) => one.outerHTML.slice(0, 120))"""


def by_keyboard(visit):
    "Every feature once, without a mouse."
    page, x = visit.page, Explorer(visit)

    def press(locator, *keys):
        locator.focus()
        for key in keys:
            page.keyboard.press(key)

    def shows(question):
        page.wait_for_selector(f".hn-title >> text={question}")
        x.settled()

    reached = tabbed(page)
    assert page.evaluate(MISSED) == [] and len(reached) > 20

    # chips and related questions, and the way back
    first = visit.text(".hn-title")
    press(page.get_by_role("button", name="Words don't help:"), "Enter")
    visit.until_changed(lambda: visit.text(".hn-title"), first)
    x.settled()
    second, chip = visit.text(".hn-title"), page.locator(".hn-small .hn-chip").first
    third = chip.inner_text()
    press(chip, "Space")
    shows(third)
    page.wait_for_timeout(800)  # an entry of the history
    page.go_back()
    shows(second)

    # γ, a step of the walk, the weights
    before = x.walk()
    press(x.of("γ guidance"), "PageUp")
    visit.until_changed(x.walk, before)
    x.settled()
    press(page.locator(".hn-walk input[type=range]"), "Home")
    assert visit.text(".hn-walk output").startswith("0 of 50")
    early = page.locator(".hn-matrix").evaluate("(one) => one.toDataURL()")
    press(page.get_by_label("only what differs from the mean network"), "Space")
    assert page.locator(".hn-matrix").evaluate("(one) => one.toDataURL()") != early
    press(page.get_by_role("button", name="▶ Play"), "Enter")
    page.get_by_role("button", name="⏸ Pause").wait_for()
    page.get_by_role("button", name="▶ Play").wait_for()

    # the map: zoom, find a word, ask a dot
    press(page.get_by_role("button", name="Zoom to the walk"), "Space")
    x.of("Find").focus()
    page.keyboard.type("cat")
    assert re.fullmatch(r"\d+ dots?", visit.text(".hn-tools .hn-soft"))
    press(page.locator("svg.hn-map"), "ArrowRight", "ArrowDown")
    told = visit.text(".hn-tip span:not(.hn-blank)").splitlines()[0]
    page.keyboard.press("Enter")
    shows(told.split("?")[0])

    # A and B, more pictures
    press(page.get_by_role("button", name="Pin as A"), "Enter")
    before = x.answers()
    press(x.of("γ guidance"), "End")
    visit.until_changed(x.walk, x.walk())
    x.settled()
    page.wait_for_selector(".hn-scores >> text=A: ")
    x.of("Show").focus()
    page.keyboard.type("answers that differ from A")
    assert x.of("Show").input_value() == "changed"
    page.keyboard.press("Home")
    press(page.get_by_role("button", name="Unpin A"), "Enter")
    press(page.get_by_role("button", name="More pictures (200)"), "Enter")
    page.wait_for_function("document.querySelectorAll('.hn-sheet figure').length === 200")
    x.settled()
    press(page.get_by_role("button", name="25 pictures"), "Enter")
    page.wait_for_function("document.querySelectorAll('.hn-sheet figure').length === 25")
    x.settled()

    # a question of one's own, answers of one's own
    x.of("Question").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("What color is the cat?")
    page.keyboard.press("Escape")  # the list of suggestions
    page.keyboard.press("Enter")
    shows("What color is the cat?")
    x.of("Answers").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("red, blue")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hn-note >> text=Only pictures whose right answer is one of yours")
    x.settled()

    # a picture of one's own
    press(page.locator(".hn-own summary"), "Enter")
    own = page.locator(".hn-own")
    own.get_by_label("Colour", exact=True).first.focus()
    page.keyboard.type("blue")
    press(own.get_by_role("button", name="Draw it"), "Space")
    page.wait_for_selector(".hn-own-view >> text=It is blue.")
    x.settled()
    own.get_by_label("Place", exact=True).focus()
    page.keyboard.type("top right")
    page.wait_for_selector('.hn-own-view img[alt*="in the top right corner"]')
    x.settled()
    press(own.get_by_role("button", name="Remove"), "Enter")
    own.locator(".hn-own-view").wait_for(state="hidden")
    x.settled()

    # settings, and the way to another question
    press(page.locator(".hn-settings summary"), "Enter")
    page.locator("select[id$=sampler]").focus()
    before = x.walk()
    page.keyboard.type("DDIM")
    visit.until_changed(x.walk, before)
    x.settled()
    press(page.locator(".hn-between summary"), "Enter")
    x.of("From the question above to").focus()
    page.keyboard.type("What size is the cat?")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hn-way >> text=turn over on the way")
    x.settled()
    press(x.of("Place on the way"), "End")
    page.wait_for_selector(".hn-scores >> text=on the way, at 1.0")
    with page.expect_download():
        press(page.get_by_role("button", name="Download adapter"), "Enter")
    check_access(page)
    assert visit.errors == [] and visit.elsewhere == []


def test_in_jupyterlab(browser, tmp_path):
    work = tmp_path / "nbs"
    (work / "8_explorer").mkdir(parents=True)
    notebook = json.loads((ROOT / "nbs" / "8_explorer" / "01_explore.ipynb").read_text(encoding="utf-8"))
    last = next(i for i, cell in enumerate(notebook["cells"]) if "explore()" in "".join(cell["source"]))
    notebook["cells"] = notebook["cells"][: last + 1]  # what follows keeps the kernel busy
    (work / "8_explorer" / "01_explore.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    shutil.copytree(ROOT / "nbs" / "images", work / "images")
    server, address = serve_lab(tmp_path, f"--ServerApp.root_dir={work}")
    try:
        visit = Visit(browser)
        visit.page.goto(f"{address}/lab/tree/8_explorer/01_explore.ipynb?token=t")
        visit.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        visit.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        run_all(visit.page)
        visit.page.wait_for_selector(".hn-sheet figure", timeout=5 * PATIENCE)
        visit.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        x = Explorer(visit)  # `test_in_voila` plays with all of it
        before, question = x.walk(), x.of("Question").input_value()
        slider = x.of("γ guidance")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        visit.page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
        before, _ = visit.until_changed(x.walk, before)
        x.settled()
        slider.press("ArrowLeft")  # a key that JupyterLab has a use for, too
        visit.until_changed(x.walk, before)
        x.settled()
        visit.page.get_by_text("Related:", exact=True).locator("..").get_by_role("button").first.click()
        visit.until_changed(lambda: x.of("Question").input_value(), question)
        x.settled()
        page, asked = visit.page, visit.text(".hn-title")
        page.wait_for_timeout(800)  # an entry of the history
        page.get_by_role("button", name="Back to the earlier choice").click()
        visit.until_changed(lambda: visit.text(".hn-title"), asked)
        x.settled()
        page.get_by_role("button", name="Forward to the later choice").click()
        page.wait_for_selector(f".hn-title >> text={asked}")
        x.settled()
        check_access(page)
        assert visit.errors == [] and visit.elsewhere == []
        for kernel in kernels_of(server):  # out of memory, for example
            os.kill(kernel, signal.SIGKILL)
        x.of("γ guidance").press("ArrowLeft")
        page.wait_for_selector(".hn-say >> text=There is no answer")
        assert page.locator(".hn.hn-stale").count() == 1
    finally:
        end(server)


@pytest.fixture(scope="module")
def voila(tmp_path_factory):
    "The address of `hyperclip_nb app` with the shipped weights, its process and its port."
    pytest.importorskip("voila", reason="needs Voilà: pip install voila")
    folder, port = tmp_path_factory.mktemp("voila"), free_port()
    code = "from hyperclip_nb.cli.commands import main; main()"
    command = [sys.executable, "-c", code, "app", "--no-browser", "--port", str(port), "--data", str(folder)]
    server = serve(command, f"http://127.0.0.1:{port}/health", folder)
    yield re.search(r"http://\S+", (folder / "server.log").read_text())[0], server, port
    end(server)


def test_in_voila(browser, voila, tmp_path):
    address, _, port = voila
    visit = Visit(browser, width=800)
    visit.page.goto(address, wait_until="commit")
    play(visit, tmp_path)
    text = visit.text("body")
    assert "import" not in text and not visit.page.locator(".jp-CodeMirrorEditor, .highlight").count()  # no source
    leave(visit, port)


def test_the_address_is_the_choice(browser, voila):
    "A link, back, forward and reload; the token leaves the address; a phone in the dark."
    address, _, port = voila
    visit = Visit(browser, width=390, color_scheme="dark")
    visit.page.goto(f"{address}#question=What+color+is+the+cat%3F&gamma=3.0", wait_until="commit")
    page, x = visit.page, Explorer(visit)
    assert visit.text(".hn-title") == "What color is the cat?" and visit.text(".hn-gamma output") == "3.0"
    assert "token" not in page.url and page.locator(".hn[data-theme=dark]").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing to the side
    x.ask("What size is the horse?")
    page.wait_for_url("**horse**")
    x.settled()
    page.go_back()
    page.wait_for_selector(".hn-title >> text=What color is the cat?")
    page.go_forward()
    page.wait_for_selector(".hn-title >> text=What size is the horse?")
    x.settled()
    check_access(page)
    page.reload(wait_until="commit")
    x = Explorer(visit)
    page.wait_for_selector(".hn-title >> text=What size is the horse?")
    assert visit.errors == [] and visit.elsewhere == []
    leave(visit, port)


def test_by_keyboard(browser, voila):
    address, _, port = voila
    visit = Visit(browser)
    visit.page.goto(address, wait_until="commit")
    by_keyboard(visit)
    leave(visit, port)


def test_at_twice_the_size(browser, voila):
    "A window of 1280 × 1000 pixels at 200 %: nothing lies to the side, and what is moved and its effect are in view."
    address, _, port = voila
    visit = Visit(browser, width=640, height=500, device_scale_factor=2)
    visit.page.goto(
        f"{address}#question=What+color+is+the+cat%3F&picture=green/plain;cat/red/left", wait_until="commit"
    )
    page, x = visit.page, Explorer(visit)
    page.wait_for_selector(".hn-own-view >> text=It is red.")
    for summary in (".hn-settings summary", ".hn-between summary"):
        page.locator(summary).click()
    wide = page.evaluate(
        "() => [...document.querySelectorAll('.hn *')].filter((one) => one.checkVisibility()"
        " && one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.hn-hidden'))"
        ".map((one) => one.outerHTML.slice(0, 100))"
    )
    assert wide == [] and page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".hn-sheet").scroll_into_view_if_needed()
    slider = x.of("γ guidance").bounding_box()
    assert (
        0 <= slider["y"] < 250 and page.locator(".hn-gamma").bounding_box()["height"] < 200
    )  # it stays, and is no wall
    before = x.walk()
    x.of("γ guidance").press("ArrowRight")
    visit.until_changed(x.walk, before)
    x.settled()
    check_access(page)
    assert visit.errors == [] and visit.elsewhere == []
    leave(visit, port)


def test_a_kernel_that_dies(browser, voila):
    "Numbers are dimmed and a sentence says why, whether somebody asks or only waits; the page can be loaded again."
    address, server, port = voila
    visit = Visit(browser)
    visit.page.goto(f"{address}#question=What+size+is+the+horse%3F", wait_until="commit")
    page, x = visit.page, Explorer(visit)
    for kernel in kernels_of(server):
        os.kill(kernel, signal.SIGKILL)
    page.wait_for_selector(".hn-say >> text=There is no answer")  # nobody has touched it
    assert page.locator(".hn.hn-stale").count() == 1
    page.get_by_role("button", name="Load the page again").click()
    page.wait_for_selector(".hn-sheet figure", timeout=5 * PATIENCE)
    x = Explorer(visit)
    assert visit.text(".hn-title") == "What size is the horse?"
    x.ask("Where is the horse?")
    page.wait_for_selector(".hn-title >> text=Where is the horse?")
    assert visit.elsewhere == []
    leave(visit, port)


def test_two_visitors_and_a_server_that_ends(browser, voila):
    "Visitors don't see each other's choices; when the server ends, numbers are dimmed and a sentence says why."
    address, server, _ = voila
    visits = []
    for question in ("What color is the cat?", "What size is the horse?"):
        visit = Visit(browser)
        visit.page.goto(f"{address}#question={question.replace(' ', '+')}", wait_until="commit")
        visits.append(visit)
    both = [Explorer(visit) for visit in visits]
    assert [visit.text(".hn-title") for visit in visits] == ["What color is the cat?", "What size is the horse?"]
    both[0].ask("Where is the cat?")
    visits[0].page.wait_for_selector(".hn-title >> text=Where is the cat?")
    assert visits[1].text(".hn-title") == "What size is the horse?"
    end(server)
    both[1].ask("Where is the horse?")
    for visit in visits:  # one asked, one only waits
        visit.page.wait_for_selector(".hn-say >> text=There is no answer")
        assert visit.page.locator(".hn.hn-stale").count() == 1
        visit.page.close()
