"The front door: names imported when they are used, the command as a module, notebooks that a stranger can open."

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import hyperclip_nb as hc

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> str:
    "What a fresh process says."
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    loaded = python("import sys, hyperclip_nb; print(*sorted({name.split('.')[0] for name in sys.modules}))").split()
    assert not {"torch", "numpy", "matplotlib", "msgspec", "open_clip", "sklearn", "tyro"} & {*loaded}
    assert "hyperclip_nb" in loaded


def test_every_name_resolves_to_what_bears_it():
    assert "__version__" in dir(hc) and 30 <= len(dir(hc)) <= 60
    for name in set(dir(hc)) - {"__version__"}:
        found = getattr(hc, name)
        assert callable(found) and found.__name__ == name
        assert found.__module__ == f"hyperclip_nb.{hc._HOME[name]}", f"{name} lives in {found.__module__}"


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(hc.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == hc._HOME
    assert all(a.asname == a.name for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names)
    assert (Path(hc.__file__).parent / "py.typed").exists()


def test_a_misspelt_name_is_an_attribute_error_that_says_where_to_look():
    with pytest.raises(AttributeError, match=r"no name 'HyperCLP'; dir\(hyperclip_nb\)") as error:
        hc.HyperCLP  # noqa: B018
    assert error.value.name == "HyperCLP" and error.value.obj is hc
    with pytest.raises(ImportError, match="HyperCLP"):
        from hyperclip_nb import HyperCLP  # noqa: F401
    assert not hasattr(hc, "torch")


def test_the_version_is_the_same_everywhere():
    named = re.search(r"^version = (\S+)$", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M)[1]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)[1]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (?:Unreleased|(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\))$", changes, re.M)
    assert named == cited == hc.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", named)
    assert len(released) == changes.count("\n## ") and (not any(released) or named in released)


def test_the_module_is_the_command():
    said = python(
        "import sys, runpy; sys.argv[1:] = ['--version']; runpy.run_module('hyperclip_nb', run_name='__main__')"
    )
    assert said == f"hyperclip_nb {hc.__version__}"


def test_the_readme_is_short_and_made_from_the_index():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = [word for word in readme.split() if any(map(str.isalnum, word))]  # the lines of tables are none
    assert len(words) <= 1_200
    for component in "Data set", "Base network", "Hypernetworks", "Guidance", "Diffusion":
        assert f"**{component}**: [" in readme
    for link in [part.split(")")[0] for part in readme.split("](")[1:]]:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_index_links_every_notebook_and_hides_the_code_of_its_tables():
    index = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    text = "\n".join(
        [cell.source for cell in index.cells if cell.cell_type == "markdown"]
        + [
            o["data"]["text/markdown"]
            for c in index.cells
            for o in c.get("outputs", ())
            if "text/markdown" in o.get("data", {})
        ]
    )
    notebooks = {path.relative_to(ROOT / "nbs").as_posix() for path in (ROOT / "nbs").rglob("[0-9]*/**/*.ipynb")}
    assert {name for name in notebooks if "checkpoint" not in name and f"]({name})" not in text} == set()
    assert len([*(ROOT / "nbs").glob("*.ipynb")]) <= 4
    for cell in index.cells:
        if "echo: false" in cell.source:
            assert cell.metadata.jupyter.source_hidden


def test_the_recipes_are_short():
    "The page is the second one; its notebook is run like every other, which is what tests the recipes."
    assert sorted(path.name for path in (ROOT / "nbs").glob("[0-9]*.ipynb"))[1] == "01_use.ipynb"
    cells = nbformat.read(ROOT / "nbs" / "01_use.ipynb", 4).cells
    heads = [i for i, cell in enumerate(cells) if cell.source.startswith("## ")]
    assert len(heads) == 5 and all(cells[i + 1].cell_type == "code" for i in heads)
    assert max(len(cells[i + 1].source.splitlines()) for i in heads) <= 20


def test_notebooks_are_checked(monkeypatch, tmp_path):
    "A notebook without a title or a kernel, or with an error among its outputs, is found."
    monkeypatch.syspath_prepend(ROOT / ".ci")
    import notebooks

    cell = nbformat.v4.new_code_cell("1 / 0")
    cell.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="division", traceback=[])]
    broken = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell("# A title\n\ntoo late")])
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    nbformat.write(broken, tmp_path / "broken.ipynb")
    found = "\n".join(notebooks.problems(tmp_path / "broken.ipynb"))
    assert all(word in found for word in ("subtitle", "kernelspec", "another", "ZeroDivisionError"))
    whole = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title\n\n> and its subtitle")])
    whole.metadata.kernelspec = {"name": "python3", "display_name": "python3"}
    nbformat.write(whole, tmp_path / "whole.ipynb")
    assert notebooks.problems(tmp_path / "whole.ipynb") == []
