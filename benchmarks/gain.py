"""What carries the gain, in three studies on the scenes' world 0.

cells: unconditional, conditional, regressed and diffused networks with a quarter, half and all of the training cells.
variants: other ways to train and to sample HyperLDM, those of the published code, and five unlabelled pictures of the
    task beside its question, which a conditional network is shown, too.
clips: the first study's rows with the shipped small CLIP and two of other seeds, trained first (ten minutes each).
Each table is a run of its own with the same recipe; a call that was interrupted goes on.

python benchmarks/gain.py cells --workers 2                          # 3 seeds; rewrites results/cells.json
python benchmarks/gain.py variants --workers 2                       # 3 seeds; rewrites results/variants.json
python benchmarks/gain.py clips --workers 2                          # rewrites results/clips.json
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperclip_nb.core.files import write_json
from hyperclip_nb.core.runs import data_dir, run_dir
from hyperclip_nb.core.training import torch_threads
from hyperclip_nb.dataset.small_clip import load_small_clip
from hyperclip_nb.dataset.small_clip_training import RECIPE, save_small_clip, train_small_clip
from hyperclip_nb.evaluation.presets import Preset, Source
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.evaluation.reproduce import reproduce
from hyperclip_nb.evaluation.results import Results

SHARES = (0.25, 0.5, 1.0)
CLIPS = (0, 1, 2)  # seeds of small CLIPs; the first ships
METHODS = (
    "clip_zero_shot",
    "multitask",
    "cond_multitask",
    "cond_multitask~question_regression",
    "hvae_hyperldm_g1.5~embedding@10",
    "hvae_hyperldm_g1.5",
    "hvae_hyperldm_g1.5@10",
    "latent_regression",
    "question_regression",
)
WITH_VARIANTS = (
    "multitask",
    "cond_multitask",
    "cond_multitask~pictures",
    "question_regression",
    "hvae_hyperldm_g1",
    "hvae_hyperldm_g1~first_denoiser",
    "hvae_hyperldm_g1.5",
    "hvae_hyperldm_g1.5@10",
    *(f"hvae_hyperldm_g1.5~{variant}@10" for variant in ("z0", "mean_latent", "curvature", "embedding", "pictures")),
)
RESULTS = Path(__file__).parent / "results"


def trained_clip(seed: int, folder: Path) -> Path | None:  # None: the shipped one
    "A small CLIP of another seed, trained now or before."
    if seed == CLIPS[0]:
        return None
    if not (folder / "small_clip.json").exists():
        tokenizer, recipe = load_small_clip().tokenizer, replace(RECIPE, seed=seed)
        with torch_threads(1):  # the other core draws
            model, updates = train_small_clip(tokenizer, recipe)
        folder.mkdir(parents=True, exist_ok=True)
        save_small_clip(folder, model, tokenizer, {"seed": seed, "loss": [round(u.loss, 3) for u in updates]})
    return folder


def summary(results: Results) -> dict[str, Any]:
    "What the notebook shows of a table."
    rows = {
        row.method: {
            "label": row.label,
            "accuracy": row.accuracy,
            "ci95": row.ci95,
            "vs": {other: [found.diff, *found.ci95] for other, found in row.vs.items()},
        }
        for row in results.rows
    }
    return {"tasks": results.tasks, "seeds": len(results.seeds), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("cells", "variants", "clips"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", type=Path, help="data directory; default: as the command's")
    parser.add_argument("--out", type=Path, help="default: results/STUDY.json")
    chosen = parser.parse_args()
    methods = WITH_VARIANTS if chosen.study == "variants" else METHODS
    preset = Preset(recipe=Recipe(), methods=methods, kinds=(), audit=False)
    if chosen.study == "variants":
        sources = {"world 0": Source(data=chosen.data)}
    elif chosen.study == "cells":
        sources = {f"{share:g}": Source(data=chosen.data, cells=share) for share in SHARES}
    else:
        clips = [trained_clip(seed, data_dir(chosen.data) / "clips" / str(seed)) for seed in CLIPS]
        sources = {str(seed): Source(data=chosen.data, clip=folder) for seed, folder in zip(CLIPS, clips)}
    found = {}
    for name, source in sources.items():
        out = run_dir(f"{chosen.study}-{name}", chosen.data, 0)
        found[name] = summary(reproduce(preset, out=out, source=source, seeds=chosen.seeds, workers=chosen.workers))
        write_json(chosen.out or RESULTS / f"{chosen.study}.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
