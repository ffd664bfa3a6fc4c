"Sphinx configuration: notebooks as committed, the reference with the comments beside parameters. See docs/build.py."

import importlib
import inspect
import re
import shutil
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastcore.docments import docments
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, release = settings["title"], settings["author"], settings["version"]
copyright = settings["copyright"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]

nb_execution_mode = "off"  # outputs are those that are committed
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables among the outputs
highlight_language = "none"  # of blocks that name no language: shell, output
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False  # its classes are in mathjax3_config
mathjax_path = "mathjax/tex-chtml.js"  # beside the pages: the site asks no other host for anything
mathjax3_config = {
    "options": {"processHtmlClass": "tex2jax_process|mathjax_process|math|output_area", "enableMenu": False}
}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!hyperclip_nb\.).*"),  # other libraries' documentation lies on other hosts
    ("py:class", r"hyperclip_nb\.[\w.]+\.Annotated"),  # an imported name
]
suppress_warnings = ["misc.highlighting_failure"]  # excerpts of JSON with … in them

pygments_dark_style = "github-dark"
html_theme, html_title, html_copy_source, html_show_sphinx = "furo", f"{project} {release}", False, False
html_static_path, html_css_files = [str(ROOT / "docs" / "style.css")], ["style.css"]
html_extra_path = [str(ROOT / "_docs" / "extra")]  # the explorer's files, see docs/build.py
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}

# Every exported class and function, so that `HNet` in a docstring becomes a link.
names = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "hyperclip_nb").rglob("[a-z]*.py"))
]
modules = [importlib.import_module(name) for name in names]
variables = (TypeVar, ParamSpec)  # have no page of their own
nitpick_ignore = [
    ("py:class", f"{m.__name__}.{k}") for m in modules for k, v in vars(m).items() if isinstance(v, variables)
]
exported = {
    name: f"{module.__name__}.{name}"
    for module in modules
    for name in module.__all__
    if inspect.isclass(obj := getattr(module, name)) or inspect.isfunction(obj)
}


def as_rst(
    text: str,  # with code in single backticks, as notebooks write it
    own: str = "",  # name of the object it belongs to, which needs no link to itself
) -> str:
    "Text of a docstring or a comment: backticks become links or code, anything else is plain."

    def part(index: int, piece: str) -> str:
        if index % 2 == 0:
            return re.sub(r"([\\*|_])", r"\\\1", piece)
        return f":py:obj:`{piece} <{exported[piece]}>`" if exported.get(piece, own) != own else f"``{piece}``"

    return "".join(part(*pair) for pair in enumerate(text.split("`")))


def comments(obj: object) -> dict[str, str]:
    "The comment beside each parameter, each field and the returned value."
    target = obj.fget if isinstance(obj, property) else obj
    found = {name: text for name, text in docments(target).items() if text}
    if inspect.isclass(obj):
        found |= dict(re.findall(r"^    (\w+): .*?  # ?(.+)$", inspect.getsource(obj), re.M))
    return found


def add_docments(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    "Append docments to a docstring as the fields that Sphinx knows."
    if what == "module":
        lines[:] = [as_rst(line) for line in lines]
    if what not in ("function", "method", "class", "property"):
        return
    if what == "class" and not inspect.getmodule(obj).__name__.startswith("hyperclip_nb"):
        return  # an alias
    if what == "class" and lines and lines[0].startswith(f"{obj.__name__}("):
        lines.clear()  # what `dataclass` writes where no docstring is
    lines[:] = [as_rst(line, name) for line in lines] + [""]
    if what == "class" and (bases := [b.__name__ for b in obj.__bases__ if b.__name__ in exported]):
        lines += [f"Derived from {', '.join(as_rst(f'`{base}`') for base in bases)}.", ""]
    for parameter, text in comments(obj).items():
        lines.append(
            f":returns: {as_rst(text, name)}" if parameter == "return" else f":param {parameter}: {as_rst(text, name)}"
        )


def add_mathjax(app: Sphinx) -> None:
    "Copy MathJax and its fonts from the package that brings them."
    static = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    for part in ("tex-chtml.js", "output/chtml/fonts"):
        source, target = static / part, Path(app.outdir) / "_static" / "mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", add_docments)
    app.connect("builder-inited", add_mathjax)
