"Both distributions, each installed into an environment that has only what it asks for, run programs from elsewhere."

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

Requirement = pytest.importorskip("packaging.requirements", reason="the package `packaging` is missing").Requirement
pytest.importorskip("setuptools", reason="no build tools: pip install setuptools wheel")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROGRAMS = sorted(path for path in HERE.glob("*.py") if not path.name.startswith(("test_", "conftest")))
TOOLS = "nbdev", "fastcore", "execnb", "pytest", "ruff", "jupyterlab", "diffusers"  # only developers have these


def run(*command: object, cwd: Path) -> str:
    "What a command says; its whole output where it fails. Nothing of this repository is on its path."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HYPERCLIP"))}
    said = subprocess.run([str(c) for c in command], cwd=cwd, env=kept, text=True, capture_output=True)
    assert said.returncode == 0, f"{' '.join(map(str, command))}\n{said.stdout[-3000:]}\n{said.stderr[-6000:]}"
    return said.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    "One distribution of a source tree, by the hooks that pip calls. No network, no other environment."
    code = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    run(sys.executable, "-c", code, out, cwd=source)
    (found,) = [*out.glob("*.tar.gz" if kind == "sdist" else "*.whl")]
    return found


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> dict[str, Path]:
    "The source distribution, the wheel, and the wheel that pip would make of the source distribution."
    at = tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(
        "__pycache__", ".*", "build", "dist", "*.egg-info", "_docs", "_proc", "data", "nbs"
    )
    shutil.copytree(ROOT, at / "source", ignore=ignored)
    sdist = build("sdist", at / "source", at)
    with tarfile.open(sdist) as archive:
        archive.extractall(at / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (at / "unpacked").iterdir()
    (at / "again").mkdir()
    return {
        "sdist": build("wheel", unpacked, at / "again"),
        "wheel": build("wheel", at / "source", at),
        "archive": sdist,
    }


def closure(requirements: Iterable[str]) -> set[str]:
    "Names of all distributions that requirements need, from what is installed here. Skips where one is missing."
    seen, names, todo = set(), set(), [Requirement(r) for r in requirements]
    while todo:
        requirement = todo.pop()
        key = requirement.name.lower().replace("_", "-"), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            pytest.skip(f"{requirement.name} is not installed in the environment of the tests")
        names.add(found.metadata["Name"])
        for text in found.requires or ():
            more = Requirement(text)
            if more.marker is None or any(more.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                todo.append(more)
    return names


def asked(wheel: Path, extras: Iterable[str] = ()) -> list[str]:
    "What the metadata of a wheel asks for: always, and with extras."
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode("utf-8").splitlines()
    found = [Requirement(line.split(": ", 1)[1]) for line in lines if line.startswith("Requires-Dist: ")]
    every = ("", *extras)
    return [
        f"{r.name}{'[' + ','.join(r.extras) + ']' if r.extras else ''}{r.specifier}"
        for r in found
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in every)
    ]


def install(wheel: Path, requirements: Iterable[str], at: Path) -> Path:
    "A new environment with a wheel, and links to the packages that it needs; returns its Python."
    names = closure(requirements)
    venv.create(at, symlinks=True)
    python = at / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index",
        "--disable-pip-version-check", wheel, cwd=at)  # fmt: skip
    (packages,) = {Path(p) for p in run(python, "-c", "import site; print(*site.getsitepackages())", cwd=at).split()}
    for name in names:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists() and not top.endswith(".pth"):
                (packages / top).symlink_to(found.locate_file(top))
    return python


def dependencies(program: Path) -> list[str]:
    "What a program says that it needs, as inline script metadata."
    block = re.search(r"^# /// script\n(.*?)^# ///$", program.read_text(encoding="utf-8"), re.M | re.S)
    listed = block and re.search(r"dependencies = (\[.*\])", block[1])
    assert listed, (
        f"{program.name}: expected inline script metadata with its dependencies, see tests/downstream/README.md"
    )
    return ast.literal_eval(listed[1])


@pytest.fixture(scope="session")
def environment(built, tmp_path_factory):
    "Makes each environment once: of a distribution and what a program says that it needs."
    made = {}

    def python(kind: str, needs: list[str]) -> Path:
        key = kind, *sorted(needs)
        if key not in made:
            listed = [Requirement(need) for need in needs]
            (own,) = [r for r in listed if r.name == "hyperclip_nb"]
            others = [str(r) for r in listed if r is not own]
            made[key] = install(
                built[kind], asked(built[kind], own.extras) + others, tmp_path_factory.mktemp("env") / kind
            )
        return made[key]

    return python


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {n: archive.read(n) for n in archive.namelist() if not n.endswith(("/RECORD", "/WHEEL"))}


def test_the_source_distribution_holds_what_the_wheel_holds(built):
    "So whatever is true of one is true of the other; and the wheel has every file of the package."
    wheel = contents(built["wheel"])
    assert contents(built["sdist"]) == wheel
    package = ROOT / "hyperclip_nb"
    there = {p.relative_to(ROOT).as_posix() for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert there == {name for name in wheel if name.startswith("hyperclip_nb/")}
    with tarfile.open(built["archive"]) as archive:
        names = {n.split("/", 1)[-1] for n in archive.getnames()}
    assert {"settings.ini", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml"} <= names


def test_the_long_description_has_no_link_that_leads_nowhere_on_an_index(built):
    (metadata,) = [text for name, text in contents(built["wheel"]).items() if name.endswith("/METADATA")]
    links = re.findall(r"\]\(([^)\s]+)", metadata.decode("utf-8"))
    own = [re.match(r"https://github\.com/hyperclip-nb/hyperclip_nb/(blob|raw)/main/([^#?]+)", link) for link in links]
    assert len(links) > 10 and all(link.startswith("https://") for link in links)
    assert all((ROOT / found[2]).exists() for found in own if found)
    assert {Path(found[2]).suffix for found in own if found and found[1] == "raw"} == {".png"}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_environment_has_no_tools_of_developers(kind, environment, tmp_path):
    "And the command answers in it."
    python = environment(kind, ["hyperclip_nb"])
    code = f"from importlib.util import find_spec; print([n for n in {TOOLS} if find_spec(n)])"
    assert run(python, "-c", code, cwd=tmp_path).strip() == "[]"
    where = run(python, "-c", "import hyperclip_nb; print(hyperclip_nb.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parent.parent)
    assert run(python.parent / "hyperclip_nb", "--version", cwd=tmp_path).startswith("hyperclip_nb 0.")


def test_a_command_that_needs_an_extra_says_so(environment, tmp_path):
    command = environment("wheel", ["hyperclip_nb"]).parent / "hyperclip_nb"
    said = subprocess.run([command, "demo", "--out", "run"], cwd=tmp_path, text=True, capture_output=True)
    assert said.returncode == 2 and not said.stdout
    assert re.fullmatch(r'hyperclip_nb: .* needs the package \w+, .*: pip install "hyperclip_nb\[\w+\]"\n', said.stderr)


MODULES = """
import pkgutil, sys, hyperclip_nb
found = {}
for module in pkgutil.walk_packages(hyperclip_nb.__path__, "hyperclip_nb."):
    if not module.name.endswith("._modidx"):
        try:
            __import__(module.name)
        except ModuleNotFoundError as error:
            found[module.name] = str(error)
        except BaseException as error:
            found[module.name] = repr(error)
print(found)
"""


def test_every_module_works_or_says_what_to_install(environment, tmp_path):
    "Without extras: the core works, and anything else names the missing package and the line. With them: all works."
    said = ast.literal_eval(run(environment("wheel", ["hyperclip_nb"]), "-c", MODULES, cwd=tmp_path))
    sentence = (
        r'this part of hyperclip_nb needs the package \w+, which is not installed: pip install "hyperclip_nb\[\w+\]"'
    )
    assert all(re.fullmatch(sentence, text) for text in said.values()), said
    rooms = {name.split(".")[1] for name in said}
    assert {"plots", "explorer"} <= rooms and not {"core", "basenet", "hypernet", "guidance", "diffusion"} & rooms
    assert "hyperclip_nb.dataset.batches" not in said and "hyperclip_nb.dataset.small_clip_training" in said
    assert ast.literal_eval(run(environment("wheel", ["hyperclip_nb[app]"]), "-c", MODULES, cwd=tmp_path)) == {}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_runs_on_the_wheel(program, environment, tmp_path):
    python = environment("wheel", dependencies(program))
    copied = shutil.copy(program, tmp_path)  # Python puts a program's folder on its path: this one is empty
    run(python, "-W", "error::DeprecationWarning", copied, cwd=tmp_path)


def test_the_first_program_runs_on_the_source_distribution(environment, tmp_path):
    python = environment("sdist", dependencies(PROGRAMS[0]))
    run(python, shutil.copy(PROGRAMS[0], tmp_path), cwd=tmp_path)
