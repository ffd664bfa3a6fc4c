"""A package imports only packages below it: python .ci/imports.py. Exit 1 with each arrow that points up.

The order is written, with its reasons, in CONTRIBUTING.md under "Where things are". Inside a package reading order is
free, but a circle of modules is an error here too. Only exported cells count: a demonstration may use anything.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hyperclip_nb"
BELOW = {  # package -> packages that it may import
    "core": set(),
    "dataset": {"core"},
    "basenet": {"core", "dataset"},
    "hypernet": {"core", "dataset", "basenet"},
    "guidance": {"core", "dataset", "basenet", "hypernet"},
    "diffusion": {"core"},
    "plots": {"core"},
    "evaluation": {"core", "dataset", "basenet", "hypernet", "guidance", "diffusion", "plots"},
    "explorer": {"core", "dataset", "basenet", "hypernet", "guidance", "diffusion", "plots", "evaluation"},
    "cli": {"core", "dataset", "basenet", "hypernet", "guidance", "diffusion", "plots", "evaluation", "explorer"},
}


def imported(path: Path) -> list[tuple[int, str, bool]]:
    "Line, full name of each module of this project that a file imports, and whether by a star."
    here, found = path.relative_to(ROOT).with_suffix("").parts, []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name, False) for a in node.names if a.name.split(".")[0] == "hyperclip_nb"]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join((*here[: len(here) - node.level], *filter(None, [node.module])))
                if node.level
                else node.module or ""
            )
            if base.split(".")[0] != "hyperclip_nb":
                continue
            for alias in node.names:
                target = f"{base}.{alias.name}"
                is_module = (ROOT / target.replace(".", "/")).with_suffix(".py").exists()
                found.append((node.lineno, target if is_module else base, alias.name == "*"))
    return found


problems, graph = [], {}
modules = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("_")]
for path in modules:
    name, room = ".".join(path.relative_to(ROOT).with_suffix("").parts), path.relative_to(PACKAGE).parts[0]
    if room not in BELOW:
        problems.append(f"{path.relative_to(ROOT)}: expected one of the packages {', '.join(BELOW)}")
        continue
    graph[name] = set()
    for line, target, star in imported(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        if star:
            problems.append(f"{where}: star import; name what is imported")
        other = target.split(".")[1] if "." in target else room
        if other == room:
            graph[name].add(target)
        elif other not in BELOW[room]:
            problems.append(f"{where}: {room} imports {target}, which is not below it")
try:
    TopologicalSorter(graph).prepare()
except CycleError as error:
    problems.append(f"modules in a circle: {' -> '.join(error.args[1])}")
print("\n".join(problems) or f"imports point down only ({len(modules)} modules in {len(BELOW)} packages)")
sys.exit(bool(problems))
