"""Run notebooks in place and save their outputs, honouring nbdev's directives.

python .ci/execute.py [--flags 'slow data'] nbs/*.ipynb
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# Parts that older code made are used as they are; the warning about it is for the person at work, not for readers.
os.environ.setdefault("PYTHONWARNINGS", "ignore:run :UserWarning")
FLAGS = {"slow", "cuda", "data", "notest"}  # tst_flags in settings.ini: cells that a plain run leaves alone


def directives(source: str) -> set[str]:
    return {d.strip() for d in re.findall(r"^#\|\s*(.*)$", source, re.M)}


class Runner(NotebookClient):
    skip: set[str] = FLAGS

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        found = directives(cell.source) if cell.cell_type == "code" else set()
        if "eval: false" in found or found & self.skip or "nbdev_export(" in cell.source:
            return cell  # keeps the outputs that the cell already has
        cell = await super().async_execute_cell(cell, cell_index, **kwargs)
        if cell.cell_type == "code":  # a stored view of a widget is an error message wherever its kernel is gone
            cell.outputs = [
                o for o in cell.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})
            ]
        return cell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flags", default="", help="also run cells with these directives")
    parser.add_argument("notebooks", nargs="+", type=Path)
    args = parser.parse_args()
    Runner.skip = FLAGS - set(args.flags.split())
    failed = 0
    for path in args.notebooks:
        start = time.time()
        notebook = nbformat.read(path, 4)
        runner = Runner(
            notebook,
            timeout=None,
            kernel_name="python3",
            store_widget_state=False,
            resources={"metadata": {"path": str(path.parent)}},
        )
        try:
            runner.execute()
        except CellExecutionError as error:
            failed += 1
            print(f"{path}: FAILED after {time.time() - start:.1f} s\n{error}", file=sys.stderr)
            continue
        nbformat.write(notebook, path)
        print(f"{path}: {time.time() - start:.1f} s, {path.stat().st_size // 1000} kB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
