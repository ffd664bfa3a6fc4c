"""What every committed notebook must be: python .ci/notebooks.py. Exit 1 with each place that is otherwise.

The first cell is one H1 with a `>` subtitle, a kernel is named (JupyterLab asks otherwise), no other cell has an H1,
no output is an error, drawings made of characters are narrow enough not to be broken, and no cell ends in a `KeyError`
where a variable of the environment is not set: *Run All* goes to the end on every machine.
"""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
WIDEST = 100  # columns of a drawing: JupyterLab breaks longer lines on a usual screen


def problems(path: Path) -> list[str]:
    "One sentence for each fault of a notebook."
    notebook, found = nbformat.read(path, 4), []
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not re.match(r"# \S.*\n+> \S", first.source):
        found.append("expected a first cell with '# Title' and '> subtitle', found otherwise")
    if "kernelspec" not in notebook.metadata:
        found.append("expected a kernelspec in the metadata, found none")
    for number, cell in enumerate(notebook.cells):
        if (
            cell.cell_type == "markdown"
            and number
            and re.search(r"^# ", cell.source, re.M)
            and "```" not in cell.source
        ):
            found.append(f"cell {number}: expected one H1 in a notebook, found another")
        if cell.cell_type == "markdown":
            drawn = [line for block in re.findall(r"```\n(.*?)```", cell.source, re.S) for line in block.splitlines()]
            if any(len(line) > WIDEST and re.search("[─│┌┐└┘├┤▶▼▲◀]", line) for line in drawn):
                found.append(f"cell {number}: expected a drawing of at most {WIDEST} columns, found a wider one")
        elif re.search(r"os\.environ\[", cell.source) and "#| export" not in cell.source:
            found.append(f"cell {number}: expected os.environ.get(…), so that the notebook runs without, found [ ]")
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                found.append(
                    f"cell {number}: expected no error among the outputs, found {output.ename}: {output.evalue}"
                )
    return [f"{path.relative_to(ROOT)}: {text}" for text in found]


if __name__ == "__main__":
    found = [text for path in NOTEBOOKS for text in problems(path)]
    print("\n".join(found) or f"notebooks have a title, a kernel and no errors ({len(NOTEBOOKS)} notebooks)")
    sys.exit(bool(found))
