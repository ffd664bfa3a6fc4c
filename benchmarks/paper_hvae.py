"""The paper's HVAE at its real size (P = 394,240), on fine-tuned networks: does it learn, and what does a step cost?

    python benchmarks/paper_hvae.py finetune WORK --tasks FOLDER --features FOLDER
    python benchmarks/paper_hvae.py train WORK [--steps 10000] [--device cpu]

`finetune` reads a data set as `hyperclip_nb reproduce` does (Meta-VQA, or its stand-in of planted features), trains
one network for all training tasks and fine-tunes it on two views of each, and on one of each validation task: about
0.6 s per network on one core, 15 minutes for 783 tasks. WORK gets the networks, 1.6 MB each, as files that are mapped
into memory. `train` trains the form of the preset `paper` on them and a few steps of the published form, which makes
all weights; the figures go to `results/paper_hvae.json`. Times are the processor's, on one thread.
"""

import argparse
import json
import os
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import TrainConfig, progress
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.sources import open_tasks
from hyperclip_nb.hypernet.finetune import draw_views, finetune
from hyperclip_nb.hypernet.hvae import HVAE, PAPER_HVAE, PAPER_HVAE_SIZE, HVAEConfig, train_hvae
from hyperclip_nb.hypernet.hvae_health import hvae_report
from hyperclip_nb.hypernet.hypernetworks import MNet
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, fit_meta

FIGURES = Path(__file__).parent / "results" / "paper_hvae.json"
HIDDEN = 256  # hidden units of the base network


def mapped(path: Path, shape: list[int]) -> Tensor:
    "A file of float32 as a tensor; made where there is none."
    return torch.from_file(str(path), shared=True, size=torch.Size(shape).numel()).view(shape)


def make_networks(work: Path, tasks: Path, features: Path, views: int = 2) -> None:
    "Algorithm 2, then the first line of algorithm 8."
    splits, bank = open_tasks(tasks, features)
    sets = {name: TaskSet(splits[name], bank) for name in ("train", "val")}
    net = AdapterNet(bank.images.shape[1], HIDDEN)
    model, steps = MNet(net, seeded(0, "multitask")), TrainConfig(steps=600, lr=1e-3)
    for _ in progress(fit_meta(model, sets["train"], steps, episodes=Episodes()), desc="one network for all"):
        pass
    work.mkdir(parents=True, exist_ok=True)
    shapes = {"w0": [net.size]}
    mapped(work / "w0", shapes["w0"]).copy_(model.z0.detach())
    for name, count in ("train", views), ("val", 1):
        seen = draw_views(sets[name], count, (2 / 3, 1.0))
        shapes[name] = [count, len(sets[name]), net.size]
        finetune(model, sets[name], Adaptation(steps=50, lr=0.1), seen, out=mapped(work / name, shapes[name]))
    about = {"embed": net.embed, "hidden": net.hidden, "shapes": shapes}
    (work / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def train(work: Path, steps: int, device: str) -> dict:
    "The preset's form for so many steps, and the time of a step of both forms."
    about = json.loads((work / "about.json").read_text())
    net = AdapterNet(about["embed"], about["hidden"])
    weights, val, w0 = (mapped(work / name, about["shapes"][name]) for name in ("train", "val", "w0"))
    w0, began = w0.to(device), time.process_time()
    components = min(PAPER_HVAE_SIZE.components or net.size, weights[..., 0].numel() // 2)  # as a preset caps them
    model = HVAE.make(net, weights, w0, replace(PAPER_HVAE_SIZE, components=components))
    found = {"weights": list(weights.shape), "components": components, "make_s": time.process_time() - began}
    found["reports"] = [{"step": 0, **look(model, weights, val)}]
    updates = train_hvae(model, weights, train=replace(PAPER_HVAE, steps=steps))
    began = time.process_time()
    next(updates)
    found["first_step_s"], spent = time.process_time() - began, 0.0  # all components are read in it
    while updates.step < steps:
        began = time.process_time()
        next(updates)
        spent += time.process_time() - began
        if updates.step in (500, 2_000, 5_000, 10_000, 25_000, PAPER_HVAE.steps):
            found["reports"].append({"step": updates.step, **look(model, weights, val)})
    found["step_ms"] = 1e3 * spent / (steps - 1)
    published, spent = HVAE.make(net, weights, w0, HVAEConfig()), []
    for _ in range(5):
        updates, began = train_hvae(published, weights), time.process_time()
        next(updates)
        spent.append(time.process_time() - began)
    found["published_step_ms"] = 1e3 * min(spent)
    return found


def look(model: HVAE, weights: Tensor, val: Tensor) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained one ignores its latent
        report = hvae_report(model, weights, val)
    print(report, flush=True)
    return asdict(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("finetune", "train"))
    parser.add_argument("work", type=Path, help="folder of the fine-tuned networks")
    parser.add_argument("--tasks", type=Path, help="folder of task files")
    parser.add_argument("--features", type=Path, help="folder of their features")
    parser.add_argument("--steps", type=int, default=10_000, help="56,000 in the paper")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "finetune":
        if options.tasks is None or options.features is None:
            parser.error("finetune: expected --tasks and --features")
        make_networks(options.work, options.tasks, options.features)
    else:
        found = train(options.work, options.steps, options.device)
        print(json.dumps(found, indent=1))
        FIGURES.write_text(json.dumps({"schema": 1, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
