"README.md is nbs/index.ipynb in Markdown, pictures linked from nbs/: python .ci/readme.py"

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
kept = []
for cell in notebook.cells:
    if cell.cell_type == "code":
        if re.search(r"^#\|\s*(hide|default_exp|readme: false)\b", cell.source, re.M):
            continue  # what only a reader of the notebook needs
        if re.search(r"^#\|\s*echo:\s*false", cell.source, re.M):  # a table: its Markdown without the code that made it
            shown = "\n".join(o["data"]["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {}))
            kept.append(nbformat.v4.new_markdown_cell(shown))
            continue
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
        # A page on a code-hosting site shows text outputs; pictures are linked files.
        cell.outputs = [o for o in cell.outputs if "image/png" not in o.get("data", {}) and o.output_type != "error"]
    kept.append(cell)
notebook.cells = kept
notebook.metadata["language_info"] = {"name": "python"}  # of code blocks
body, _ = MarkdownExporter().from_notebook_node(notebook)
body = body.replace("](images/", "](nbs/images/").replace('src="images/', 'src="nbs/images/')
body = re.sub(r"\]\((\d\w*[\w/]*\.ipynb)", r"](nbs/\1", body)
body = re.sub(r"[ \t]+$", "", body, flags=re.M)
body = re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"
(ROOT / "README.md").write_text(
    "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit that. -->\n" + body, encoding="utf-8"
)
