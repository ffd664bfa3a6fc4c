"""What each denoiser makes of the paper's schedule, at the paper's size, on planted latents.

    python benchmarks/denoisers.py                    # all rows, five CPU minutes: results/denoisers.json
    python benchmarks/denoisers.py --only published   # the rows whose name begins so, again

783 tasks, 8 views, latents of 20 directions in Z = 128, conditions of E = 768 numbers that determine them; training as
in the paper (lr 2.5e-4, batch 128, a fifth without the question), 3,000 steps; then 350 steps of DDPM at γ = 1, or ten
of Euler's method for flow. *std* is that of the samples and should be 1. *own / other* is the distance of a sample to
its own task's latent, over the distance between two tasks: a new view of the task would lie at 0.11. It is told for 200
training questions and for 200 new ones. One thread; seconds are the processor's.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor

from hyperclip_nb.core.blocks import Standardizer
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import TrainConfig, last
from hyperclip_nb.diffusion.denoisers import (
    DENOISERS,
    PUBLISHED_SIZE,
    SECOND_PUBLISHED_SIZE,
    DenoiserConfig,
    DenoiserKind,
    planted_latents,
)
from hyperclip_nb.diffusion.hyperldm import HyperLDM, train_hyperldm
from hyperclip_nb.diffusion.schedule import DiffusionConfig

PATH = Path(__file__).parent / "results" / "denoisers.json"
TASKS, NEW, ASKED, E, Z = 783, 200, 200, 768, 128


class Row(NamedTuple):
    "A denoiser, and the diffusion that it is trained and sampled with."

    kind: DenoiserKind
    size: DenoiserConfig
    diffusion: dict[str, Any] = {}
    sampling: dict[str, Any] = {}


FLOW: tuple[dict, dict] = (
    {"prediction": "flow", "schedule": "straight"},
    {"sampler": "ddim", "spacing": "uniform", "steps": 10},
)
ROWS = {
    "published 128, epsilon": Row("published", PUBLISHED_SIZE),
    "published 128, v": Row("published", PUBLISHED_SIZE, {"prediction": "v"}),
    "published_second 128, epsilon": Row("published_second", PUBLISHED_SIZE),
    "published_second 1024, epsilon": Row("published_second", SECOND_PUBLISHED_SIZE),
    "published_second 1024, flow": Row("published_second", SECOND_PUBLISHED_SIZE, *FLOW),
    "residual 256, epsilon": Row("residual", DenoiserConfig()),
    "residual 256, v": Row("residual", DenoiserConfig(), {"prediction": "v"}),
    "residual 256, flow": Row("residual", DenoiserConfig(), *FLOW),
}


def own_over_other(u: Tensor, own: Tensor) -> float:
    "Distance [T, Z] of samples to their own latents, over that between the latents of two tasks."
    return ((u - own).norm(dim=1).mean() / (own - own.roll(1, 0)).norm(dim=1).mean()).item()


def measured(row: Row, steps: int) -> dict:
    latents, e = planted_latents(TASKS + NEW, Z, E, rank=20)
    scaler, began = Standardizer(latents[:, :TASKS]), time.process_time()
    ldm = HyperLDM.make(E, Z, scaler, DiffusionConfig(**row.diffusion), row.size, DENOISERS[row.kind])
    loss = last(train_hyperldm(ldm, latents[:, :TASKS], e[:TASKS], TrainConfig(lr=2.5e-4, steps=steps))).loss
    found: dict[str, Any] = {"loss": loss, "train_s": time.process_time() - began}
    for name, asked in {"trained": slice(ASKED), "new": slice(TASKS, None)}.items():
        began = time.process_time()
        *_, u = ldm.path(e[asked], generator=seeded(0, name), check=False, **row.sampling)
        own = scaler.encode(latents[:, asked].mean(0))
        found |= {"sample_s": time.process_time() - began, f"std_{name}": u.std().item()}
        found[f"own_other_{name}"] = own_over_other(u[0], own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="beginning of the rows' names")
    parser.add_argument("--steps", type=int, default=3_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, row in ROWS.items():
        if name.startswith(args.only):
            found = {"steps": args.steps, **measured(row, args.steps)}
            print(name, {k: round(v, 3) for k, v in found.items()}, flush=True)
            known = json.loads(PATH.read_text()) if PATH.exists() else {"schema": 1, "rows": {}}
            known["rows"][name] = found
            PATH.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
