"""What carries the gain: unconditional, conditional, regressed and diffused networks with a quarter, half and all of
the training cells of the scenes' world 0. Each share is a run of its own with the same recipe; a call that was
interrupted goes on.

python benchmarks/gain.py --workers 2      # 3 seeds; rewrites results/gain.json
"""

import argparse
import json
from pathlib import Path

from hyperclip_nb.core.files import write_json
from hyperclip_nb.core.runs import run_dir
from hyperclip_nb.evaluation.presets import Preset, Source
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.evaluation.reproduce import reproduce

SHARES = (0.25, 0.5, 1.0)
METHODS = (
    "clip_zero_shot",
    "multitask",
    "cond_multitask",
    "cond_multitask~question_regression",
    "hvae_hyperldm_g1~embedding",
    "hvae_hyperldm_g1~embedding@10",
    "hvae_hyperldm_g1",
    "hvae_hyperldm_g1@10",
    "latent_regression",
    "question_regression",
)
PRESET = Preset(recipe=Recipe(), methods=METHODS, kinds=(), audit=False)
OUT = Path(__file__).parent / "results" / "gain.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", type=Path, help="data directory; default: as the command's")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    found = {}
    for share in SHARES:
        source = Source(data=chosen.data, cells=share)
        out = run_dir(f"gain-{round(100 * share)}", chosen.data, 0)
        results = reproduce(PRESET, out=out, source=source, seeds=chosen.seeds, workers=chosen.workers)
        found[f"{share:g}"] = {
            "tasks": results.tasks["train"],
            "seeds": chosen.seeds,
            "rows": {
                row.method: {"label": row.label, "accuracy": row.accuracy, "ci95": row.ci95} for row in results.rows
            },
        }
        write_json(chosen.out, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
