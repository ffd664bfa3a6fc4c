"""The decisive rows of the preset `digits`, and their table in benchmarks/results.

    python benchmarks/digits.py --seeds 3

trains what is missing under data/runs/digits and writes results/digits.json and digits.md. `hyperclip_nb reproduce
--preset digits` has all rows; parts that one of them has trained are found by the other."""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from hyperclip_nb.evaluation.presets import PRESETS, Source, run_folder
from hyperclip_nb.evaluation.reproduce import reproduce
from hyperclip_nb.evaluation.rows import MLP_ROWS

ROWS = (
    "multitask",
    "cond_multitask",
    "cond_multitask@10",
    "hvae_hyperldm_g1",
    "hvae_hyperldm_g1@10",
    "mean_latent",
    "nearest_latent",
    "latent_regression",
    *MLP_ROWS,
    "few_shot~multitask",
)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="the run directory")
    options = parser.parse_args()
    source = Source(data_set="digits")
    preset = replace(PRESETS["digits"], methods=ROWS, kinds=(), shots=(1, 5, "10_as_they_come", "all"))
    out = run_folder("digits", source, options.out)
    reproduce(preset, out=out, source=source, seeds=options.seeds, workers=options.workers)
    for end in "json", "md":
        shutil.copy(out / f"results.{end}", RESULTS / f"digits.{end}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
