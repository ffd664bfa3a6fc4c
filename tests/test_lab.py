"`make lab` in a real browser. `pytest -m browser`"

import re
import sys
from pathlib import Path

from browsing import Visit, end, free_port, pytestmark, serve  # noqa: F401 (a mark)

ROOT = Path(__file__).resolve().parent.parent


def test_make_lab_opens_the_index(browser, tmp_path):
    "Neither a launcher nor a question about news stands before it; the code of its tables is folded."
    recipe = re.search(r"^\tjupyter lab (.+)\$\(LAB\)$", (ROOT / "Makefile").read_text(), re.M)[1]
    options = recipe.replace("$(CURDIR)", str(ROOT)).replace("root_dir=nbs", f"root_dir={ROOT / 'nbs'}").split()
    port = free_port()
    own = ["--allow-root", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=t"]
    server = serve([sys.executable, "-m", "jupyterlab", *own, *options], f"http://127.0.0.1:{port}/api", tmp_path)
    try:
        visit = Visit(browser)
        visit.page.goto(f"http://127.0.0.1:{port}/?token=t")
        visit.page.wait_for_selector(".jp-Notebook h1 >> text=hyperclip_nb")
        visit.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        visit.page.wait_for_selector(".jp-InputPlaceholder, .jp-Placeholder", state="attached")
        assert not visit.page.locator(".jp-Launcher, .jp-Dialog, .Toastify__toast").count()
        assert visit.errors == [] and visit.elsewhere == []
    finally:
        end(server)
