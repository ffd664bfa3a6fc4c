"What the tests in a browser share: Chromium, servers, visits, and the explorer's page as a person finds it."

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import pytest

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


class Visit:
    "A page, with everything that went wrong on it."

    def __init__(self, browser, width=1280, height=1000, **more):
        size = {"width": width, "height": height}
        self.context = browser.new_context(viewport=size, accept_downloads=True, **more)
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

    def drawn(self):
        "Waits until what was asked for is drawn: two frames later."
        later = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
        self.page.evaluate(f"new Promise((done) => {later})")

    def until(self, true):
        "Waits for what is drawn in a frame of the page's own choice."
        began = time.perf_counter()
        while not true():
            assert time.perf_counter() - began < PATIENCE / 1000, "it did not come true"
            self.page.wait_for_timeout(20)

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


def serve_lab(folder: Path, *options: str):
    "JupyterLab, and its address; who knows the token t gets in."
    port = free_port()
    own = ["--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=t"]
    address = f"http://127.0.0.1:{port}"
    return serve([sys.executable, "-m", "jupyterlab", *own, *options], f"{address}/api", folder), address


def end(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


class Explorer:
    "The explorer on a page, as a person finds it: by labels and roles."

    def __init__(self, visit):
        self.visit, self.page = visit, visit.page
        self.page.wait_for_selector(".hn-sheet figure", timeout=5 * PATIENCE)
        self.settled()

    def settled(self):
        "Wait until what is shown belongs to what is set, and may be played with."
        self.page.wait_for_function(
            "document.querySelector('.hn:not(.hn-stale) .hn-walk input[type=range]:not(:disabled)') !== null"
        )

    def of(self, name):
        return self.page.get_by_label(name, exact=True).first

    def ask(self, question, answers=None):
        self.of("Question").fill(question)
        if answers is not None:
            self.of("Answers").fill(answers)
        self.of("Question").press("Enter")

    def answers(self):
        return self.page.locator(".hn-sheet figcaption").all_inner_texts()

    def walk(self):
        return self.page.locator("svg.hn-map polyline").nth(-1).get_attribute("points")

    def right(self):
        return self.visit.text(".hn-now b")


def check_access(page):
    "No serious fault that axe-core finds within the explorer."
    axe = pytest.importorskip("axe_playwright_python", reason="needs axe-core: pip install axe-playwright-python")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run('.hn', {resultTypes: ['violations']})")["violations"]
    serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []


def kernels_of(server) -> list[int]:
    "The processes of a server's kernels."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == server.pid:
                found += [int(stat.parent.name)] * ("ipykernel" in (stat.parent / "cmdline").read_text())
        except OSError:  # it has ended meanwhile
            pass
    return found


def run_all(page):
    "JupyterLab can lose a request to a kernel that is still connecting, although it calls it idle; then we ask again."
    from playwright.sync_api import TimeoutError as TookTooLong

    # On a busy machine it asks for the kernel, at any moment, before it has read the notebook's own.
    # One answer may come too early, or bring up the next question: it is answered as long as one is there.
    asked = page.locator("dialog .jp-mod-accept").first
    page.add_locator_handler(asked, lambda accept: accept.click(timeout=5_000), no_wait_after=True)
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        first = page.locator(".jp-InputArea-prompt", has_text="[1]:").first
        try:
            first.wait_for(timeout=PATIENCE / 5)
        except TookTooLong:
            continue
        return page.remove_locator_handler(asked)
    raise AssertionError("no cell was run")


def leave(visit, port):
    "Whoever leaves gives the place back."
    health = lambda: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health"))
    visit.page.close(run_before_unload=True)
    began = time.perf_counter()
    while health()["visitors"]:
        assert time.perf_counter() - began < PATIENCE / 1000
        time.sleep(0.2)
