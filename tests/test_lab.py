"`make lab` in a real browser. `pytest -m browser`"

import os
import re
from pathlib import Path

from browsing import Visit, end, pytestmark, serve_lab  # noqa: F401 (a mark)

ROOT = Path(__file__).resolve().parent.parent


def test_make_lab_opens_the_index(browser, tmp_path, monkeypatch):
    "No launcher and no question about news stands before it, code of tables is folded, nothing is unsaved."
    recipe = re.search(r"^\tjupyter lab (.+)\$\(LAB\)$", (ROOT / "Makefile").read_text(), re.M)[1]
    monkeypatch.setenv("PYTHONPATH", str(ROOT / ".ci" / "lab"), prepend=os.pathsep)
    options = recipe.replace("$(CURDIR)", str(ROOT)).replace("root_dir=nbs", f"root_dir={ROOT / 'nbs'}").split()
    server, address = serve_lab(tmp_path, *options)
    try:
        visit = Visit(browser)
        visit.page.goto(f"{address}/?token=t")
        visit.page.wait_for_selector(".jp-Notebook h1 >> text=hyperclip_nb")
        visit.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        visit.page.wait_for_selector(".jp-InputPlaceholder, .jp-Placeholder", state="attached")
        assert not visit.page.locator(".jp-Launcher, .jp-Dialog, .Toastify__toast").count()
        for other in ("0_core/01_seeds.ipynb", "8_explorer/appendix/worker.ipynb"):
            visit.page.goto(f"{address}/lab/tree/{other}")
            visit.page.wait_for_selector(f".lm-TabBar-tab.lm-mod-current >> text={Path(other).name}")
            shown = ".jp-NotebookPanel:not(.lm-mod-hidden)"
            visit.page.wait_for_selector(f"{shown} .jp-Notebook-ExecutionIndicator[data-status=idle]")
            visit.page.wait_for_timeout(500)  # in which it would notice a change
            assert not visit.page.locator(".lm-TabBar-tab.jp-mod-dirty").count(), f"{other} is unsaved"
        assert visit.errors == [] and visit.elsewhere == []
    finally:
        end(server)
