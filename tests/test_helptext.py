"Comments beside parameters reach `help`: what a user reads of every public name."

import inspect
import pydoc
import subprocess
import sys

import pytest
from fastcore.docments import docments

import hyperclip_nb as hc
from hyperclip_nb.core.helptext import comments_of, explain

NAMES = [name for name in dir(hc) if name != "__version__"]


def callables(thing):
    "A function, or a class with its public methods."
    own = vars(thing).items() if inspect.isclass(thing) else ()
    methods = [m.__func__ if isinstance(m, classmethod) else m for name, m in own if not name.startswith("_")]
    return [thing, *(m for m in methods if inspect.isfunction(m))]


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_the_comments(name):
    "nbdev's reader is the oracle: what it finds on one line stands in the help text."
    thing = getattr(hc, name)
    shown = pydoc.plain(pydoc.render_doc(thing))
    for one in callables(thing):
        for parameter, text in docments(one).items():
            if text and "\n" not in text and parameter in inspect.signature(one).parameters:
                assert f"{parameter}: {text.strip()}" in shown, f"{one.__qualname__}: {parameter}"


@pytest.mark.parametrize("name", sorted({*NAMES} - {"BaseNet"}))  # a protocol is not called
def test_every_parameter_of_a_public_name_is_explained(name):
    for one in callables(getattr(hc, name)):
        for parameter in inspect.signature(one).parameters:
            told = f"    {parameter}: " in (one.__doc__ or "")
            assert told or parameter in ("self", "cls"), f"{one.__qualname__}: no comment beside {parameter}"


def test_help_in_a_fresh_process_shows_shapes():
    said = subprocess.run(
        [sys.executable, "-c", "import hyperclip_nb as hc; help(hc.fit_meta); help(hc.HyperLDM.generate)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "embeddings: [T, Z] one per task" in said and "Returns:\n        [K, T, Z]" in said


def test_text_without_a_source_stays_what_it_is():
    made = eval("lambda x: x")
    assert explain(made) is made and made.__doc__ is None
    assert explain(int) is int and explain(3) == 3
    assert comments_of([], 1) == comments_of(["def broken(\n", "    x: int,  # one\n"], 0) == {}
    assert comments_of(["def broken(\n", "    x: int,  # one\n"], 1) == {"x": "one"}
