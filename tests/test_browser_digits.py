"The digits' page in a browser: Voilà and JupyterLab, both worlds under one server. `pytest -m browser`"

import json
import re
import sys
from pathlib import Path

import pytest
from browsing import (
    PATIENCE,
    Explorer,
    Visit,
    check_access,
    end,
    free_port,
    leave,
    pytestmark,  # noqa: F401 (a mark)
    run_all,
    serve,
    serve_lab,
)
from test_digits import SHORT_RECIPE

from hyperclip_nb.evaluation.digits import digits_experiment

ROOT = Path(__file__).resolve().parent.parent


class Digits:
    "The digits' page, as a person finds it."

    def __init__(self, visit):
        self.visit, self.page = visit, visit.page
        self.page.wait_for_selector(".hn-digits-page .hn-scores table", timeout=5 * PATIENCE)
        self.settled()

    def settled(self):
        self.page.wait_for_selector(".hn-digits-page:not(.hn-stale)")

    def shows(self, question):
        self.page.wait_for_selector(f".hn-title >> text={question}")
        self.settled()

    def heads(self):
        return self.page.locator(".hn-digits h3").all_text_contents()

    def places(self):
        return self.page.eval_on_selector_all(".hn-digit", "tiles => tiles.map((tile) => tile.style.transform)")

    def ask(self, question):
        "By keyboard alone."
        field = self.page.get_by_label("Question", exact=True)
        field.press("Control+a")
        self.page.keyboard.type(question) if question else self.page.keyboard.press("Delete")
        field.press("Escape")  # the list of suggestions
        field.press("Enter")


def play(visit):
    "What a newcomer does, by keyboard."
    page, x = visit.page, Digits(visit)
    assert page.locator(".hn-digit:not([hidden])").count() == 347 and page.locator(".hn-units canvas").count() == 32
    assert re.fullmatch(r"\d+ %", visit.text(".hn-now b")) and page.locator(".hn-scores tbody tr").count() == 3

    x.ask("Which of 4, 7 and 9 is it?")
    x.shows("Which of 4, 7 and 9 is it?")
    assert [head.split()[0] for head in x.heads()] == ["4", "7", "9"]
    assert page.locator(".hn-digit:not([hidden])").count() == sum(int(re.search(r"(\d+) pic", h)[1]) for h in x.heads())

    before = x.places()
    gamma = page.get_by_label("γ guidance", exact=True)
    gamma.focus()
    gamma.press("Home")  # 0: the words don't count
    visit.until_changed(x.places, before)
    x.settled()
    assert visit.text(".hn-gamma output") == "0.0"

    # what isn't understood is said, and what was probably meant is a button
    x.ask("")
    page.wait_for_selector(".hn-say >> text=expected a question in words")
    assert page.locator(".hn-stale").count() == 1
    x.ask("Is it seven?")
    x.shows("Is it seven?")
    meant = page.get_by_role("button", name="Is it 7?", exact=True)
    meant.focus()
    page.keyboard.press("Enter")
    x.shows("Is it 7?")
    assert "Did you mean" not in visit.text(".hn-note")
    x.ask("Is it beautiful?")
    x.shows("Is it beautiful?")
    assert "you are the judge" in visit.text(".hn-note") and "“beautiful”" in visit.text(".hn-note")
    assert not page.locator(".hn-scores table, .hn-off").count()
    alike = page.locator(".hn-small .hn-chip").first
    text = alike.inner_text()
    page.wait_for_timeout(800)  # an entry of the history
    alike.press("Enter")
    x.shows(text)
    check_access(page)
    assert visit.errors == [] and visit.elsewhere == []
    return x


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "The address of `hyperclip_nb app --data-set digits` with one place, a run that is not trained yet, and its port."
    pytest.importorskip("voila", reason="needs Voilà: pip install voila")
    folder, port = tmp_path_factory.mktemp("digits"), free_port()
    digits_experiment(40, recipe=SHORT_RECIPE, out=folder / "runs" / "demo_digits")
    code = "from hyperclip_nb.cli.commands import main; main()"
    options = ["--data-set", "digits", "--no-browser", "--port", str(port), "--data", str(folder), "--visitors", "1"]
    server = serve([sys.executable, "-c", code, "app", *options], f"http://127.0.0.1:{port}/health", folder)
    yield re.search(r"http://\S+", (folder / "server.log").read_text())[0], port
    end(server)


def test_the_first_start_trains_and_then_answers(browser, served):
    address, port = served
    visit = Visit(browser)
    visit.page.goto(address, wait_until="commit")
    visit.page.wait_for_selector(".hn-digits h3", timeout=5 * PATIENCE)  # pictures come before networks
    x = play(visit)
    # the address is the choice: back, reload
    visit.page.wait_for_timeout(800)  # an entry of the history
    visit.page.go_back()
    x.shows("Is it beautiful?")
    visit.page.reload(wait_until="commit")
    visit.page.wait_for_selector(".hn-title >> text=Is it beautiful?", timeout=5 * PATIENCE)
    assert "token" not in visit.page.url and visit.text(".hn-gamma output") == "0.0"
    assert visit.errors == [] and visit.elsewhere == []
    leave(visit, port)


def test_from_one_world_to_the_other_and_back(browser, served):
    "On a phone in the dark, where only one visitor may be."
    address, port = served
    visit = Visit(browser, width=390, color_scheme="dark")
    page = visit.page
    page.goto(address, wait_until="commit")
    x = Digits(visit)
    assert page.locator(".hn[data-theme=dark]").count() == 1
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")  # nothing to the side
    check_access(page)
    page.get_by_role("link", name="drawn scenes").click()
    Explorer(visit)
    page.get_by_role("link", name="handwritten digits").click()
    x = Digits(visit)
    page.get_by_role("button", name="Is it even?").first.press("Enter")
    x.shows("Is it even?")
    assert visit.errors == [] and visit.elsewhere == []
    leave(visit, port)


def test_the_notebook_in_jupyterlab(browser, tmp_path, monkeypatch):
    x = digits_experiment(40, recipe=SHORT_RECIPE, out=tmp_path / "data" / "runs" / "digits")
    x.hyperldm("hvae", 0)
    monkeypatch.setenv("HYPERCLIP_DATA", str(tmp_path / "data"))
    work = tmp_path / "nbs"
    work.mkdir()
    notebook = json.loads((ROOT / "nbs" / "8_explorer" / "05_digits.ipynb").read_text(encoding="utf-8"))
    source = lambda cell: "".join(cell["source"])
    shows = [cell for cell in notebook["cells"] if source(cell).endswith("\nexplore_digits()")]
    assert len(shows) == 1
    # Without its demonstrations, which open a run with the preset's settings.
    kept = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown" or "#| export" in source(cell)]
    notebook["cells"] = kept + shows
    (work / "digits.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    server, address = serve_lab(tmp_path, f"--ServerApp.root_dir={work}")
    try:
        visit = Visit(browser)
        visit.page.goto(f"{address}/lab/tree/digits.ipynb?token=t")
        visit.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        visit.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        run_all(visit.page)
        play(visit)
    finally:
        end(server)
