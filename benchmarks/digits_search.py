"""The same number of settings for every method on the digits, tried with one seed and judged on validation questions.

    python benchmarks/digits_search.py

writes benchmarks/results/digits_search.json: every setting that was tried and its accuracy on the 200 validation
questions. HyperLDM's path gets eight settings, four of its generator and four of its own, and the conditional network,
which has one part only, twelve; every other row gets four. Test questions are never scored here. The recipe `DIGITS`
holds what was chosen; `START` is where the search began, and each part of it begins with what those above it have
chosen. Killed and started again it goes on with the settings that are missing."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from hyperclip_nb.core.files import write_atomic
from hyperclip_nb.core.runs import Run
from hyperclip_nb.dataset.digits import digits_bank
from hyperclip_nb.evaluation.digits import DIGITS, digits_net
from hyperclip_nb.evaluation.experiment import Experiment
from hyperclip_nb.evaluation.methods import train_method
from hyperclip_nb.evaluation.overrides import override
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.evaluation.scoring import score

START = override(
    DIGITS,
    {
        "hvae_training.lr": 2e-3,
        "hyperldm.lr": 1e-3,
        "ldm.drop": 0.2,
        "conditional.steps": 1_500,
        "conditional.lr": 1e-3,
        "conditional_hidden": (256, 256),
        "film.steps": 1_000,
        "mlp_hidden": (256, 256),
        "mlp_noise": 0.1,
        "hyperclip_training.lr": 1e-3,
        "mnet.steps": 200,
        "hnet.lr": 3e-3,
        "conditional_maml.steps": 300,
    },
)
# What is searched: the row that judges it, and what is tried.
SEARCHES: dict[str, tuple[str, list[dict]]] = {
    "multitask": (
        "multitask",
        [{"multitask.lr": 0.01}, {"multitask.lr": 0.003}, {"multitask.lr": 0.03}, {"multitask.steps": 800}],
    ),
    "hvae": (
        "latent_regression",
        [{}, {"hvae_loss.beta": 0.001}, {"hvae_training.lr": 5e-3}, {"hvae.latent_size": 64}],
    ),
    "hyperldm": (
        "hvae_hyperldm_g1@10",
        [
            {},
            {"denoiser.dropout": 0.3},
            {"ldm.embedding_noise": 0.3},
            {"ldm.drop": 0.1, "hyperldm.lr": 2e-3},
        ],
    ),
    "conditional": (
        "cond_multitask",
        [
            {},
            {"conditional_noise": 0.6},
            {"conditional.lr": 3e-3},
            {"conditional_hidden": (512,)},
            {"conditional_dropout": 0.3},
            {"conditional_noise": 0.1},
            {"conditional.steps": 3_000},
            {"conditional_noise": 0.6, "conditional.lr": 3e-3},
            {"conditional_hidden": (512,), "conditional.steps": 3_000},
            {"conditional_hidden": (512,), "conditional.steps": 3_000, "conditional.lr": 3e-4},
            {"conditional_hidden": (512,), "conditional.steps": 3_000, "conditional.lr": 1e-4},
            {"conditional.steps": 3_000, "conditional.lr": 3e-4},
        ],
    ),
    "mlp_regression": (
        "mlp_regression",
        [{}, {"mlp_noise": 0.3}, {"mlp_dropout": 0.3}, {"mlp_noise": 0.3, "mlp_hidden": (512,)}],
    ),
    "hyperclip": (
        "hvae_hyperclip",
        [{}, {"hyperclip.dropout": 0.3}, {"hyperclip_training.lr": 3e-3}, {"contrast.embedding_noise": 0.3}],
    ),
    "film": ("cond_multitask_film", [{}, {"film.lr": 1e-3}, {"film.lr": 1e-2}, {"film.steps": 2_000}]),
    "mnet": ("mnet_maml", [{}, {"mnet.lr": 0.003}, {"mnet.lr": 0.03}, {"mnet.steps": 400}]),
    "hnet": ("latent_regression~hnet", [{}, {"hnet.lr": 1e-3}, {"hnet.lr": 1e-2}, {"latent_size": 64}]),
    "conditional_maml": (
        "cond_hnet_maml",
        [{}, {"conditional_maml.lr": 3e-3}, {"conditional_maml.lr": 3e-4}, {"conditional_maml.steps": 600}],
    ),
}


def tried(recipe: Recipe, row: str, kept: dict) -> float:  # percent on validation questions
    "Train what a row needs, except what `kept` holds, and score it."
    with tempfile.TemporaryDirectory() as folder:
        x = Experiment(SPLITS, BANK, Run.create(folder, {}), recipe, report=lambda text: None, net=digits_net())
        x.held |= kept
        found = score(x, train_method(x, 0, row), 0, "val").mean().item()
    LAST.update(x.held)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*SEARCHES], help="which searches")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "digits_search.json")
    options = parser.parse_args()
    done: dict[str, list] = json.loads(options.out.read_text()) if options.out.exists() else {}
    recipe, kept = START, {}
    for name, (row, settings) in SEARCHES.items():
        if name not in options.only:
            continue
        rows = done.setdefault(name, [])
        best: tuple[float, dict, dict] | None = None
        for i, changes in enumerate(settings):
            began = time.process_time()
            LAST.clear()
            if i < len(rows):
                percent = rows[i]["validation"]
            else:
                percent = tried(override(recipe, changes), row, kept)
                took = time.process_time() - began
                rows.append({"settings": changes, "row": row, "validation": round(percent, 2), "cpu_s": round(took, 1)})
                write_atomic(options.out, f"{json.dumps(done, indent=1)}\n".encode())
                print(f"{name:16} {percent:5.1f}  {took:5.1f} s  {changes}", flush=True)
            if best is None or percent > best[0]:
                best = percent, changes, dict(LAST)
        assert best is not None
        recipe = override(recipe, best[1])
        if name in ("multitask", "hvae"):  # what others are made from
            if not best[2]:  # it was found before
                LAST.clear()
                tried(recipe, row, kept)
                best = best[0], best[1], dict(LAST)
            kept |= {key: value for key, value in best[2].items() if key[0] in KEEP}


SPLITS, BANK = digits_bank()
LAST: dict = {}
KEEP = ("multitask", "fine_tuned", "hvae", "stored", "to_fine_tune")

if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
