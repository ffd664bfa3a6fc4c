"""Trains the four networks that processes share, in as many processes as torchrun starts.

    torchrun --nproc-per-node 2 tests/parallel_program.py OUT [STEPS]

The losses of each training go to OUT/losses-RANK.json, the parts to the run in OUT/run, built with checkpoints: with
fewer STEPS the program ends in the middle, as if it had been killed, and another start goes on, with any number of
processes.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

torch.set_num_threads(1)
from test_cuda import E, World  # noqa: E402

from hyperclip_nb.core.parallel import processes, together  # noqa: E402
from hyperclip_nb.core.runs import Run, checkpointed  # noqa: E402
from hyperclip_nb.core.training import Steps, TrainConfig  # noqa: E402
from hyperclip_nb.diffusion.hyperldm import LDMConfig, train_hyperldm  # noqa: E402
from hyperclip_nb.guidance.hyperclip import ContrastConfig, train_hyperclip  # noqa: E402
from hyperclip_nb.hypernet.hvae import HVAELoss, train_hvae  # noqa: E402
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, fit_meta  # noqa: E402
from hyperclip_nb.hypernet.store import store_adaptations  # noqa: E402

HOW, STORED = TrainConfig(steps=6, lr=1e-2), Adaptation(steps=(1, 3), lr=0.1)


def trainings(world: World) -> dict[str, Steps]:
    "What is trained together, each with an uneven number of rows in a batch."
    hnet, conditional, hvae, clip, ldm = world.hnet(), world.hnet(E), world.hvae(), world.hyperclip(), world.ldm()
    some, inner = Episodes(tasks=5, support=None, query=None), Adaptation(steps=(1, 3), lr=0.1)
    pairs = world.latents, world.e
    return {
        "hnet": fit_meta(hnet, world.tasks, HOW, adaptation=inner, episodes=some, anchor=0.5),
        "cond_hnet": fit_meta(
            conditional,
            world.tasks,
            HOW,
            embeddings=world.e,
            embedding_noise=0.3,
            episodes=Episodes(tasks=7, support=4, query=3),
        ),
        "hvae": train_hvae(hvae, world.weights, world.tasks, world.seen, HOW, HVAELoss(mix=0.5, batch=5, examples=3)),
        "hyperclip": train_hyperclip(
            clip, world.hnet().requires_grad_(False), *pairs, HOW, ContrastConfig(batch=7, latent_noise=0.1)
        ),
        "hyperldm": train_hyperldm(ldm, *pairs, HOW, LDMConfig(batch=9, ema_from=0.0, embedding_noise=0.1)),
    }


def main(out: Path, steps: int = HOW.updates) -> dict[str, list[float]]:
    "All of it; returns the losses."
    everyone, losses = processes(), dict[str, list[float]]()
    run = Run.create(out / "run", {"steps": HOW.steps})
    built = []
    for name, updates in trainings(World("cpu")).items():
        loop = checkpointed(updates, run.checkpoint(name), {"name": name}, every=2)
        losses[name] = [next(loop).loss for _ in range(steps)]
        if steps < HOW.updates:  # killed; the state after the last even step is there
            continue

        def build() -> dict[str, torch.Tensor]:
            built.append(name)
            assert not [*loop]
            return {k: v for k, v in loop.state_dict().items() if k.startswith("model.")}

        run.part(name, {"name": name}, build)
        run.part(name, {"name": name}, build)
    if steps == HOW.updates:
        world = World("cpu")
        store = partial(store_adaptations, world.hnet().requires_grad_(False), world.tasks, STORED, views=3)
        run.part("stored", {}, lambda: {"latents": store()})
    run.write_text("table.md", f"written by {everyone.rank}\n")
    print(f"printed by {everyone.rank}")
    (out / f"losses-{everyone.rank}.json").write_text(json.dumps({"losses": losses, "built": built}))
    return losses


if __name__ == "__main__":
    with together():
        main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
