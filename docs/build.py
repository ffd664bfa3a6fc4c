"""Make the documentation site in _docs/html: python docs/build.py.

Warnings, broken links, and pictures without words end it with exit code 1.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import matplotlib
import nbformat
from sphinx.cmd.build import main as sphinx

from hyperclip_nb import __version__
from hyperclip_nb.core.files import FileError
from hyperclip_nb.evaluation.report import results_figure
from hyperclip_nb.evaluation.results import markdown_row, read_results, to_markdown
from hyperclip_nb.evaluation.shipped import Shipped
from hyperclip_nb.explorer.explore import Explorer
from hyperclip_nb.explorer.recorded import here, page_files, record, recorded_questions
from hyperclip_nb.plots.pictures import save

ROOT = Path(__file__).resolve().parent.parent
SOURCE, HTML = ROOT / "_docs" / "source", ROOT / "_docs" / "html"
REPOSITORY, SITE = "hyperclip-nb/hyperclip_nb", "https://hyperclip-nb.github.io/hyperclip_nb"
NOTEBOOKS = ROOT / "nbs"
CHAPTERS = {
    "0_core": "Core",
    "1_dataset": "Data set",
    "2_basenet": "Base network",
    "3_hypernet": "Hypernetworks",
    "4_guidance": "Guidance",
    "5_diffusion": "Diffusion",
    "6_plots": "Plots",
    "7_evaluation": "Evaluation",
    "8_explorer": "Explorer",
    "9_cli": "Command line",
}


def notebooks() -> list[Path]:
    "In reading order: what lies in `nbs/` itself, then one folder after the other, its appendix last."
    found = sorted(NOTEBOOKS.glob("[0-9]*.ipynb")) + sorted(NOTEBOOKS.glob("[0-9]*/**/*.ipynb"))
    return [path for path in found if path.parent.name != ".ipynb_checkpoints"]  # JupyterLab's own copies


def page_of(path: Path) -> str:
    "Where a notebook lies on the site, as `5_diffusion/01_schedule`: as in `nbs/`, so links between notebooks hold."
    return path.relative_to(NOTEBOOKS).with_suffix("").as_posix()


def module_of(path: Path) -> str | None:
    "What a notebook exports; None where it only shows."
    found = re.search(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8"))
    return found and found[1]


def toctree(caption: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def relinked(
    text: str,
    page: str = "index",  # where it will lie on the site
) -> str:
    "Links to other parts of the repository, as links on this site where they are on it."
    up = "../" * page.count("/")
    text = re.sub(rf"\]\({SITE}/(\w+)\.html\)", rf"]({up}\1.md)", text)
    text = text.replace(f"]({up}../benchmarks/README.md", f"]({up}benchmarks.md").replace(f"]({up}../nbs/", f"]({up}")
    return text.replace(f"]({up}../", f"](https://github.com/{REPOSITORY}/blob/main/")


GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "lambda": "λ", "tau": "τ", "sigma": "σ", "mu": "μ", "theta": "θ"}


def plain(markdown: str) -> str:
    "Words without their mark-up: links, emphasis, code, and formulas as far as they can be read aloud."
    text = re.sub(r"```.*?```|\$\$.*?\$\$|^ *[|>#][^\n]*$", "", markdown, flags=re.S | re.M)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\\([a-zA-Z]+)", lambda found: GREEK.get(found[1], ""), text)
    return re.sub(r"\s+", " ", re.sub(r"[$*`_^{}\\]", "", text)).strip()


def alternative(
    source: str,  # of a cell that draws
    before: str,  # the last text in front of it, in Markdown
) -> str:
    "Words instead of a picture: `#| fig-alt:`, or its titles and the last sentences of what is said before it."
    if own := re.search(r"^#\|\s*fig-alt:\s*(.+)$", source, re.M):
        return own[1].strip()
    titles = re.findall(r'title\w*(?:=|\()\s*f?"((?:[^"\\]|\\.)*)"', source)
    named = [plain(re.sub(r"\{[^{}]*\}", "…", title)) for title in titles]
    paragraphs = [text for paragraph in before.split("\n\n") if (text := plain(paragraph))]
    said = re.split(r"(?<=[.:?!]) ", paragraphs[-1] if paragraphs else "")
    while len(" ".join(said)) > 300 and len(said) > 1:
        said.pop(0)
    words = [f"{title.rstrip('.')}." for title in named if re.search(r"[^\W\d_]{3}", title)]
    return "Figure: " + " ".join([*words, " ".join(said)]).strip()


def article(path: Path) -> nbformat.NotebookNode:
    "A notebook as a page: no directives, no hidden cells, exported cells marked."
    notebook = nbformat.read(path, 4)
    cells, said = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            words = alternative(cell.source, said)
            directives = re.findall(r"^#\|\s*(.*?)\s*$", cell.source, re.M)
            if {"hide"} & set(directives) or any(d.startswith("default_exp") for d in directives):
                continue
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
            tags = {"export": "exported", "echo: false": "remove-input"}
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # a page has no kernel
            cell.metadata = {"tags": [tag for directive, tag in tags.items() if directive in directives]}
            if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
                cell.metadata["mystnb"] = {"image": {"alt": words}}
        else:
            said = cell.source if plain(cell.source) else said
            cell.source = relinked(cell.source, page_of(path))
        if cell.source:
            cells.append(cell)
    notebook.cells = cells
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return notebook


def write_articles() -> None:
    for path in notebooks():
        notebook, name = article(path), module_of(path)
        page = page_of(path)
        where = f"{REPOSITORY}/blob/main/nbs/{page}.ipynb"
        reference = f"Reference: [`hyperclip_nb.{name}`]({'../' * page.count('/')}api/{name}.md). " if name else ""
        run = f"Run it: [notebook](https://github.com/{where}), [Colab](https://colab.research.google.com/github/{where})."
        notebook.cells[0].source += f"\n\n{reference}{run}"
        (SOURCE / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, SOURCE / f"{page}.ipynb")
    front = article(ROOT / "nbs" / "index.ipynb")
    pages = [page_of(path) for path in notebooks()]
    trees = [toctree("Start", [*(page for page in pages if "/" not in page), "explorer"])]
    for folder, caption in CHAPTERS.items():
        inside = [page for page in pages if page.startswith(f"{folder}/")]
        trees.append(toctree(caption, [page for page in inside if "/appendix/" not in page]))
        if appendix := [page for page in inside if "/appendix/" in page]:
            trees.append(toctree(f"{caption}: appendix", appendix))
    trees.append(toctree("Reference", ["results", "benchmarks", "api/index", "paper", "failures", "largest", "cite"]))
    front.cells.append(nbformat.v4.new_markdown_cell("\n".join(trees)))
    nbformat.write(front, SOURCE / "index.ipynb")


def write_reference() -> None:
    "A page for every module, in reading order."
    (SOURCE / "api").mkdir()
    lines, names = [], []
    for path in notebooks():
        if (name := module_of(path)) is None:
            continue
        title, subtitle = re.match(r"# (.+)\s+> (.+)", nbformat.read(path, 4).cells[0].source).groups()
        text = [
            f"# `{name}`",
            "",
            f"Made in the notebook [{title}](../{page_of(path)}.ipynb).",
            "",
            "```{eval-rst}",
            f".. automodule:: hyperclip_nb.{name}",
            "   :members:",
            "```",
            "",
        ]
        (SOURCE / "api" / f"{name}.md").write_text("\n".join(text), encoding="utf-8")
        lines.append(f"- [`{name}`]({name}.md): {subtitle}")
        names.append(name)
    text = [
        "# Reference",
        "",
        "Every module is exported from one notebook, which explains it. Shapes use one letter for each axis: "
        "T tasks, N examples, C answers, E CLIP's dimension, P weights, Z latent, S steps.",
        "",
        *lines,
        "",
        toctree("Modules", names),
    ]
    (SOURCE / "api" / "index.md").write_text("\n".join(text), encoding="utf-8")


def plain_tables(
    data: object,  # what a JSON file holds
    name: str,  # its heading
    level: int = 2,  # of that heading
) -> Iterator[str]:  # pieces of Markdown
    "Any other file: lists of objects as tables, single values as a table, what lies deeper under its own heading."
    show = lambda value: f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    yield f"\n{'#' * level} {name.replace('_', ' ').capitalize()}\n"
    if isinstance(data, dict):
        rows = [
            {"": key.replace("_", " "), "value": value}
            for key, value in data.items()
            if not isinstance(value, (dict, list))
        ]
    else:
        rows = [row if isinstance(row, dict) else {"value": row} for row in data]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if rows:
        yield "\n".join(
            [
                markdown_row(columns),
                markdown_row(["---"] * len(columns)),
                *(markdown_row([show(row.get(key)) for key in columns]) for row in rows),
            ]
        )
    for key, value in data.items() if isinstance(data, dict) else ():
        if isinstance(value, (dict, list)):
            yield from plain_tables(value, key, level + 1)


def write_results() -> None:
    "The committed tables, each with its picture, and what the benchmarks measured."
    accuracy = [
        "# Results",
        "Each table is a file under `benchmarks/results/`, written by a command of this project and drawn here without "
        "a change. [The experiment](7_evaluation/04_experiment.ipynb) says how its rows are trained, "
        "[statistics](7_evaluation/01_statistics.ipynb) how intervals and paired differences are made, and "
        "[controls](7_evaluation/02_controls.ipynb) what the other rows are there for.",
        "",
    ]
    measured = [
        relinked((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    ]  # has the table of speed.json
    shutil.copytree(
        ROOT / "benchmarks" / "results", SOURCE / "results", ignore=shutil.ignore_patterns("*.md")
    )  # their text is part of a page
    for path in sorted((SOURCE / "results").glob("*.json")):
        title = path.stem.replace("_", " ").replace("-", ", ").capitalize()
        try:
            results = read_results(path)
        except FileError:
            own = ROOT / "benchmarks" / "results" / f"{path.stem}.md"  # a table made to be read
            if own.exists():
                measured.append(own.read_text(encoding="utf-8").replace("\n## ", "\n### ").replace("# ", "## ", 1))
            elif path.stem != "speed":
                measured += plain_tables(json.loads(path.read_text(encoding="utf-8")), title)
            continue
        save(results_figure(results), path.with_suffix(".forest.png"), dpi=100)
        more = ROOT / "benchmarks" / "results" / f"{path.stem}.md"  # with what is claimed, few-shot curves, families
        accuracy += [
            f"## {title}\n",
            f"![Accuracy of every row with its interval](results/{path.stem}.forest.png)\n",
            more.read_text(encoding="utf-8").replace("\n## ", "\n### ") if more.exists() else to_markdown(results),
        ]
    (SOURCE / "results.md").write_text("\n".join(accuracy), encoding="utf-8")
    (SOURCE / "benchmarks.md").write_text("\n".join(measured), encoding="utf-8")


EXPLORER = 3_000_000  # bytes of its files at most


def write_explorer() -> None:
    "The explorer without a kernel: its files, and the page that holds it."
    explorer = Explorer(Shipped())
    files = page_files(record(explorer, recorded_questions(explorer)))
    del files["index.html"]
    if (size := sum(len(text.encode()) for text in files.values())) > EXPLORER:
        raise ValueError(f"explorer: expected at most {EXPLORER:,} bytes, got {size:,}")
    folder = ROOT / "_docs" / "extra" / "explorer"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    page = (SOURCE / "explorer.md").read_text(encoding="utf-8")
    (SOURCE / "explorer.md").write_text(page.replace("EXPLORER", here("explorer/")), encoding="utf-8")


class Page(HTMLParser):
    "Link targets and anchors of a page."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.anchors, self.loads, self.alternatives = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "img" and values.get("class") != "toggler":  # of the list of modules
            self.alternatives.append(values.get("alt") or "")
        if tag in ("img", "script", "iframe", "source") and values.get("src"):
            self.loads.append(values["src"])
        if tag == "link" and "canonical" not in (values.get("rel") or "") and values.get("href"):
            self.loads.append(values["href"])


def broken_links() -> Iterator[str]:
    "Targets that are not there, what a page would load from elsewhere, and pictures that nobody tells about."
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in HTML.rglob("*.html")}
    for path, page in pages.items():
        for words in page.alternatives:
            if len(re.findall(r"[^\W\d_]{2,}", words)) < 3 or re.search(r"[\\$]|\.(png|svg|jpe?g)$", words):
                yield f"{path.name}: expected a picture's alternative in words, found {words!r}"
        for target in page.loads + page.links:
            address, anchor = urldefrag(target)
            address = address.partition("?")[0]
            if own := re.match(
                rf"https://(?:github\.com|colab\.research\.google\.com/github)/{REPOSITORY}/blob/main/(.+)", address
            ):
                if not (ROOT / own[1]).exists():
                    yield f"{path.name}: {target} is no file of this repository"
            elif re.match(r"[a-z]+:|//", address):
                if target in page.loads and not address.startswith("data:"):
                    yield f"{path.name}: loads {target} from another host"
            else:
                file = (path.parent / unquote(address)).resolve() if address else path
                if not file.exists():
                    yield f"{path.name}: {target} does not exist"
                elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                    yield f"{path.name}: no anchor for {target}"


def main() -> int:
    matplotlib.use("agg")
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.copytree(ROOT / "nbs" / "images", SOURCE / "images")
    for path in (ROOT / "docs").glob("*.md"):
        (SOURCE / path.name).write_text(
            path.read_text(encoding="utf-8").replace("VERSION", __version__), encoding="utf-8"
        )
    write_articles()
    write_reference()
    write_results()
    write_explorer()
    if code := sphinx(
        [
            "-q",
            "-W",
            "--keep-going",
            "-j",
            "auto",
            "-c",
            str(ROOT / "docs"),
            "-d",
            str(ROOT / "_docs" / "doctrees"),
            str(SOURCE),
            str(HTML),
        ]
    ):
        return code
    problems = sorted(set(broken_links()))
    print(
        "\n".join(problems)
        or f"{HTML.relative_to(ROOT)}/index.html: {len(list(HTML.rglob('*.html')))} pages, links checked"
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
