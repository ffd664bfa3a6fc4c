"""How quick the explorer is, in a real browser: the times that somebody at the page feels, and the memory it takes.

    python benchmarks/explorer.py        # writes results/explorer.json; needs Chromium and Playwright; two minutes

It starts `hyperclip_nb app` with the shipped weights, as `make app` does, and takes times inside the page, each from an
event to the frame that shows its result: γ moved by the slider, a question that was not asked before sent off, a step
of the walk. Each is the median of ten. *Usable* is from the start of the command to the first picture in a browser that
was open already, three starts. Memory is that of the visitors' kernels: resident (RSS), and the share of it that is
their own (PSS), after a visitor has moved γ and asked ten questions. The load of the machine is noted before: times say
something on a quiet machine only.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from hyperclip_nb.core.files import write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browsing import CHROMIUM, FLAGS, free_port  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "explorer.json"
CODE = "from hyperclip_nb.cli.commands import main; main()"
READY = "document.querySelector('.hn:not(.hn-stale) .hn-walk input[type=range]:not(:disabled)') !== null"
GOALS = {"gamma_ms": 80, "question_ms": 250, "scrub_ms": 50, "usable_s": 8}
# From an event to the end of the frame that shows its result, in milliseconds.
SHOWN = """(value) => new Promise((done) => {
  const root = document.querySelector('.hn'), began = performance.now();
  const drawn = () => requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
  const watch = new MutationObserver(() => {
    if (!root.classList.contains('hn-stale')) { watch.disconnect(); drawn(); }
  });
  %s
  if (root.classList.contains('hn-stale')) watch.observe(root, {attributes: true, attributeFilter: ['class']});
  else drawn();
})"""
SLIDE = """const slider = document.querySelector('%s');
  slider.value = value; slider.dispatchEvent(new Event('input'));"""
GAMMA, STEP = SLIDE % ".hn-gamma input", SLIDE % ".hn-walk input[type=range]"
ASK = """const form = document.querySelector('.hn-ask'), [question, answers] = form.querySelectorAll('input');
  question.value = value; answers.value = ''; form.requestSubmit();"""


class App:
    "`hyperclip_nb app` in a process of its own."

    def __init__(self, folder: Path, visitors: int = 3):
        port, self.began = free_port(), time.perf_counter()
        options = ["--no-browser", "--port", str(port), "--data", str(folder), "--visitors", str(visitors)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, "app", *options], stdout=subprocess.PIPE, encoding="utf-8"
        )
        line = next(line for line in self.process.stdout or () if "http" in line)
        self.address = re.findall(r"http://\S+", line)[0]

    def kernels(self) -> list[dict[str, float]]:
        "Memory of each kernel in MB, in the order in which they were started."
        found = []
        for stat in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
            try:
                if int(stat.read_text().rsplit(")", 1)[1].split()[1]) != self.process.pid:
                    continue
                if "ipykernel" not in (stat.parent / "cmdline").read_text():
                    continue
                rollup = (stat.parent / "smaps_rollup").read_text()
            except OSError:
                continue
            of = lambda name: int(re.findall(rf"^{name}:\s+(\d+) kB", rollup, re.M)[0]) / 1024
            found.append({"rss": round(of("Rss"), 1), "pss": round(of("Pss"), 1)})
        return found

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def opened(browser: Browser, app: App) -> tuple[Page, float]:
    "The page, ready to be played with, and the seconds since the command was started."
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(300_000)
    page.goto(app.address, wait_until="commit")
    page.wait_for_function("document.querySelector('.hn:not(.hn-stale) .hn-sheet figure') !== null")
    seconds = time.perf_counter() - app.began
    page.wait_for_function(READY)
    return page, seconds


def times(page: Page, act: str, values: list) -> list[float]:
    "Milliseconds from each event to its picture."
    found = []
    for value in values:
        found.append(page.evaluate(SHOWN % act, value))
        page.wait_for_function(READY)
        page.wait_for_timeout(300)  # the strip and the steps of the walk are drawn: nothing else runs
    return found


def measure(repeats: int = 10, starts: int = 3) -> dict:
    "All figures."
    load = os.getloadavg()[0]
    starting, memory = [], {}
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        for start in range(starts):
            app = App(Path(folder))
            try:
                page, seconds = opened(browser, app)
                starting.append(seconds)
                if start < starts - 1:
                    page.close()
                    continue
                held = page.evaluate("[...document.querySelectorAll('.hn-ask datalist option')].map((o) => o.value)")
                asked = held[3 :: len(held) // repeats][:repeats]
                gammas = [round(0.3 + 0.3 * i, 1) for i in range(repeats)]
                found = {
                    "gamma_ms": times(page, GAMMA, gammas),
                    "question_ms": times(page, ASK, asked),
                    "scrub_ms": times(page, STEP, [i % 10 for i in range(repeats)]),
                }
                time.sleep(12)  # the next visitor's kernel has drawn its page
                memory[1] = app.kernels()
                second, _ = opened(browser, app)
                times(second, GAMMA, gammas)
                times(second, ASK, asked)
                time.sleep(12)
                memory[2] = app.kernels()
            finally:
                app.end()
        browser.close()
    found["usable_s"] = starting
    return {
        "schema": 1,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(load, 2),
        "times": [
            {
                "what": name,
                "median": round(statistics.median(values), 1),
                "goal": GOALS[name],
                "each": [round(value, 1) for value in values],
            }
            for name, values in found.items()
        ],
        "memory_mb": [
            {"visitors": when, "of": name} | kernel
            for when, kernels in memory.items()
            for name, kernel in zip(_names(len(kernels)), kernels)
        ],
    }


def _names(count: int) -> list[str]:
    "Kernels in the order in which they were started: the visitors', then the one that waits for the next visitor."
    return [f"visitor {i + 1}" for i in range(count - 1)] + ["the kernel that waits"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="a JSON file")
    options = parser.parse_args()
    results = measure()
    write_json(options.out, results)
    for row in results["times"] + results["memory_mb"]:
        print(row)
    print("load before:", results["load_before"])
