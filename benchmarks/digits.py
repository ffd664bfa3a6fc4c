"""The preset `digits`, and its table in benchmarks/results.

    python benchmarks/digits.py         # the decisive rows
    python benchmarks/digits.py --all   # all rows, as `hyperclip_nb reproduce --preset digits` makes them

trains and scores what is missing under data/runs/digits, tells how long that took, and writes results/digits.json and
digits.md. Killed, it goes on where it was; parts that one of the two forms has trained are found by the other."""

import argparse
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from hyperclip_nb.evaluation.presets import PRESETS, Source, run_folder
from hyperclip_nb.evaluation.reproduce import reproduce
from hyperclip_nb.evaluation.rows import MLP_ROWS

DECISIVE = (
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
    parser.add_argument("--all", action="store_true", help="all rows of the preset")
    parser.add_argument("--seeds", type=int, default=PRESETS["digits"].seeds, help="how many")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="the run directory")
    options = parser.parse_args()
    preset, source, began = PRESETS["digits"], Source(data_set="digits"), time.perf_counter()
    if not options.all:
        preset = replace(preset, methods=DECISIVE, kinds=(), shots=(1, 5, "10_as_they_come", "all"))
    out = run_folder("digits", source, options.out)
    reproduce(preset, out=out, source=source, seeds=options.seeds, workers=options.workers)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    print(f"this call: {(time.perf_counter() - began) / 60:.1f} minutes, {cpu / 60:.1f} minutes of a processor")
    for end in "json", "md":
        shutil.copy(out / f"results.{end}", RESULTS / f"digits.{end}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
