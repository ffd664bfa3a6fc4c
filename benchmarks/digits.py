"""The whole preset `digits`, as `hyperclip_nb reproduce --preset digits` makes it, and its table in benchmarks/results.

    python benchmarks/digits.py

trains and scores what is missing under data/runs/digits, tells how long that took, and writes results/digits.json and
digits.md. Killed, it goes on where it was."""

import argparse
import resource
import shutil
import time
from pathlib import Path

import torch

from hyperclip_nb.evaluation.presets import PRESETS, Source, run_folder
from hyperclip_nb.evaluation.reproduce import reproduce

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=PRESETS["digits"].seeds, help="how many")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="the run directory")
    options = parser.parse_args()
    began = time.perf_counter()
    out = run_folder("digits", Source(data_set="digits"), options.out)
    reproduce("digits", out=out, seeds=options.seeds, workers=options.workers)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes, {cpu / 60:.1f} minutes of a processor")
    for end in "json", "md":
        shutil.copy(out / f"results.{end}", RESULTS / f"digits.{end}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
