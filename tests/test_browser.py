"The explorer in a browser: JupyterLab and Voilà, keyboard and mouse, nothing from another host. `pytest -m browser`"

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import pytest

from hyperclip_nb.core.files import load_tensors

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE = 120_000  # milliseconds for what needs a kernel; only a failure takes so long

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


class Visit:
    "A page, with everything that went wrong on it."

    def __init__(self, browser, width=1280):
        self.context = browser.new_context(viewport={"width": width, "height": 1000}, accept_downloads=True)
        self.page, self.errors, self.elsewhere = self.context.new_page(), [], []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("websocket", lambda socket: self.look(socket.url))
        self.context.route("**/*", lambda route: route.continue_() if self.look(route.request.url) else route.abort())

    def look(self, url: str) -> bool:
        here = urlparse(url).hostname in ("127.0.0.1", "localhost", None)
        if not here:
            self.elsewhere.append(url)
        return here

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def until_changed(self, read, before):
        "What `read` says as soon as it is something else, and how long that took."
        began = time.perf_counter()
        while (now := read()) == before:
            assert time.perf_counter() - began < PATIENCE / 1000, f"nothing changed: {before!r:.200}"
            self.page.wait_for_timeout(20)
        return now, 1000 * (time.perf_counter() - began)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(command: list[str], url: str, folder: Path):
    "A server in a process of its own, once it answers."
    env = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "OMP_NUM_THREADS": "1",
    }
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except OSError:
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        else:
            return process
    process.terminate()
    raise AssertionError((folder / "server.log").read_text())


def end(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def play(visit, tmp_path):
    "What a newcomer does, in both places."
    page, walk = visit.page, lambda: page.locator(".hn-map svg").nth(1).inner_html()
    page.wait_for_selector(
        ".hn-bars, button:text('Train'):visible", timeout=5 * PATIENCE
    )  # without trained parts the notebook makes them
    if not page.locator(".hn-bars").count():  # and the page offers it
        page.get_by_role("button", name="Train", exact=True).click()
        page.wait_for_selector(".hn-bars", timeout=5 * PATIENCE)
    page.wait_for_selector(".hn-map svg >> nth=1")
    field = lambda label: page.locator(".hn-explorer input[type=text]").nth({"Question": 0, "Answers": 1}[label])
    slider = page.locator(".widget-hslider", has=page.get_by_text("γ", exact=True))
    handle, shows = (
        slider.locator(".noUi-handle"),
        lambda: float(slider.locator(".widget-readout").inner_text() or "nan"),
    )

    page.wait_for_selector(".widget-readout >> text=1.5")
    before = walk()
    handle.focus()
    page.keyboard.press("ArrowLeft")
    before, took = visit.until_changed(walk, before)
    assert shows() < 1.5
    print(f"γ by keyboard: {took:.0f} ms")

    box, at = handle.bounding_box(), shows()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 6, steps=6)
    page.mouse.up()
    before, took = visit.until_changed(walk, before)
    visit.until_changed(shows, at)
    assert shows() > at
    print(f"γ by mouse: {took:.0f} ms")

    pictures = lambda: page.locator(".hn-css style").nth(2).inner_html()
    bars, drawn, began = visit.text(".hn-bars"), pictures(), time.perf_counter()
    field("Question").fill("What colour is the background behind the STAR")
    field("Question").press("Enter")
    page.wait_for_selector(".hn-head >> text=What color is the background behind the star?")
    print(f"another question: {1000 * (time.perf_counter() - began):.0f} ms")
    assert visit.text(".hn-bars") != bars
    visit.until_changed(pictures, drawn)
    assert field("Answers").input_value().startswith("white, black")
    assert page.locator(".hn-sheet figure").count() == 25 and len(re.findall("[✓✗]", visit.text(".hn-sheet"))) == 25
    page.wait_for_function("document.querySelector('.hn-sheet i').clientWidth > 40")

    field("Question").fill("")
    field("Question").press("Enter")
    page.wait_for_selector(".hn-say >> text=Expected a question, got an empty text.")
    field("Question").fill("Is the 🐱 happy? <b>")
    field("Question").press("Enter")
    page.wait_for_selector(".hn-say >> text=give at least two")
    field("Answers").fill("yes, no")
    field("Answers").press("Enter")
    page.wait_for_selector(".hn-status >> text=you are the judge")
    assert not page.get_by_text("Traceback").count()

    with page.expect_download() as saved:
        page.get_by_text("Download adapter").click()
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    tensors, about = load_tensors(file)
    assert (
        file.name == "is-the-happy-b.safetensors"
        and about["answers"] == ["yes", "no"]
        and about["gamma"] == shows()
        or pytest.fail(f"{file.name}: {about}")
    )
    assert tensors["weights"].shape == (10, 4240)
    assert visit.errors == [] and visit.elsewhere == []


def run_all(page):
    "JupyterLab can lose a request to a kernel that is still connecting, although it calls it idle; then we ask again."
    from playwright.sync_api import TimeoutError as TookTooLong

    for _ in range(5):
        if (accept := page.locator("dialog .jp-mod-accept")).count():
            accept.click()  # on a busy machine it asks for the kernel before it has read the notebook's own
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        first = page.locator(".jp-InputArea-prompt", has_text="[1]:").first
        try:
            return first.wait_for(timeout=PATIENCE / 5)
        except TookTooLong:
            pass
    raise AssertionError("no cell was run")


def test_in_jupyterlab(browser, tmp_path):
    work = tmp_path / "nbs"
    (work / "8_explorer").mkdir(parents=True)
    shutil.copy(ROOT / "nbs" / "8_explorer" / "01_explore.ipynb", work / "8_explorer")
    shutil.copytree(ROOT / "nbs" / "images", work / "images")
    port = free_port()
    server = serve(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--allow-root",
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--IdentityProvider.token=t",
            f"--ServerApp.root_dir={work}",
        ],
        f"http://127.0.0.1:{port}/api",
        tmp_path,
    )
    try:
        visit = Visit(browser)
        visit.page.goto(f"http://127.0.0.1:{port}/lab/tree/8_explorer/01_explore.ipynb?token=t")
        visit.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        visit.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        run_all(visit.page)
        play(visit, tmp_path)
    finally:
        end(server)


def test_in_voila(browser, tmp_path):
    pytest.importorskip("voila", reason="needs Voilà: pip install voila")
    port, code = free_port(), "from hyperclip_nb.cli.commands import main; main()"
    server = serve(
        [sys.executable, "-c", code, "app", "--no-browser", "--port", str(port)],
        f"http://127.0.0.1:{port}/health",
        tmp_path,
    )
    try:
        visit = Visit(browser, width=800)
        address = re.search(r"http://\S+", (tmp_path / "server.log").read_text())[0]
        visit.page.goto(address, wait_until="commit")
        play(visit, tmp_path)
        assert (
            "import" not in visit.text("body") and not visit.page.locator(".jp-CodeMirrorEditor, .highlight").count()
        )  # no source
        health = lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health"))
        assert health()["visitors"] == 1
        visit.page.close(run_before_unload=True)  # whoever leaves gives the place back
        began = time.perf_counter()
        while health()["visitors"]:
            assert time.perf_counter() - began < PATIENCE / 1000
            time.sleep(0.2)
    finally:
        end(server)
