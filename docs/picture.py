"""The picture of the explorer in README.md and the notebooks: python docs/picture.py, with Chromium and Playwright.

It starts `hyperclip_nb app` with the shipped weights, opens the page at a width of 1180 pixels, waits until everything
is drawn, and writes nbs/images/explorer.png.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from hyperclip_nb.core.files import write_atomic
from hyperclip_nb.plots.style import with_palette

ROOT = Path(__file__).resolve().parent.parent
READY = "document.querySelector('.hn:not(.hn-stale) .hn-walk input[type=range]:not(:disabled)') !== null"
CODE = "from hyperclip_nb.cli.commands import main; main()"

with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-c", CODE, "app", "--no-browser", "--port", "8967", "--data", folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    address = re.search(r"http://\S+", next(line for line in server.stdout or () if "http" in line))
    try:
        with sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1180, "height": 960})
            page.goto(address[0] if address else "", wait_until="commit")
            page.wait_for_function(READY, timeout=300_000)
            page.wait_for_timeout(1_000)  # the page fades in
            picture = Image.open(io.BytesIO(page.screenshot()))
            chromium.close()
    finally:
        server.terminate()
        server.wait()
small = io.BytesIO()
with_palette(picture, 255).save(small, "PNG", optimize=True)
write_atomic(ROOT / "nbs" / "images" / "explorer.png", small.getvalue())
print(f"{len(small.getvalue()) / 1000:.0f} kB")
