"A module imports only modules that come before it in reading order (DESIGN: the way of the data). Exit 1 with each arrow that points back."
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
order = {re.sub(r"^\d+[a-z]?_", "", p.stem): i for i, p in enumerate(sorted(ROOT.glob("nbs/[0-9]*.ipynb")))}
problems = []
for name, rank in order.items():
    module = ROOT / "hyperclip_nb" / f"{name}.py"
    if not module.exists():
        continue
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        targets = []
        if isinstance(node, ast.ImportFrom):
            if any(a.name == "*" for a in node.names):
                problems.append(f"{module.name}:{node.lineno}: star import; name what is imported")
            if node.level:  # the export writes the package's own imports relatively
                targets = [node.module] if node.module else [a.name for a in node.names]
            elif node.module == "hyperclip_nb":
                targets = [a.name for a in node.names]
            elif (node.module or "").startswith("hyperclip_nb."):
                targets = [node.module.split(".")[1]]
        elif isinstance(node, ast.Import):
            targets = [a.name.split(".")[1] for a in node.names if a.name.startswith("hyperclip_nb.")]
        for target in targets:
            if target in order and order[target] >= rank:
                problems.append(f"{module.name}:{node.lineno}: imports {target}, which comes later in reading order")
print("\n".join(problems) or f"imports point backwards only ({len(order)} notebooks)")
sys.exit(bool(problems))
