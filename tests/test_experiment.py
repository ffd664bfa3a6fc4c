"The pipeline on a toy data set: what is cached, what leaks, what is refused."

import json
import resource
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from conftest import ToyBank, toy_tasks

from hyperclip_nb.core.files import RunError, load_tensors, save_tensors, sha256_of, to_plain
from hyperclip_nb.core.runs import Run, to_settings
from hyperclip_nb.core.training import TrainConfig
from hyperclip_nb.diffusion.denoisers import DenoiserConfig
from hyperclip_nb.diffusion.hyperldm import LDMConfig
from hyperclip_nb.diffusion.schedule import DiffusionConfig
from hyperclip_nb.evaluation.experiment import Experiment, mean_picture
from hyperclip_nb.evaluation.methods import train_method
from hyperclip_nb.evaluation.recipe import EARLIER, NEEDS, PAPER, Recipe, fields_of, read_recipe, to_kept
from hyperclip_nb.evaluation.rows import FEW_SHOT_ROWS, ROWS, Method
from hyperclip_nb.evaluation.scoring import score, score_null, score_shuffled
from hyperclip_nb.evaluation.seeds import score_few_shot, score_seed
from hyperclip_nb.guidance.hyperclip import ContrastConfig, HyperCLIPConfig
from hyperclip_nb.hypernet.hvae import HVAEConfig, HVAELoss
from hyperclip_nb.hypernet.metatrain import Adaptation

short = TrainConfig(steps=4, lr=1e-3)
TINY = Recipe(
    hidden=3,
    question="clip",
    multitask=short,
    conditional=short,
    conditional_hidden=(6,),
    mnet=short,
    film=short,
    conditional_maml=short,
    hnet=short,
    latent_size=5,
    hnet_hidden=(6,),
    inner=Adaptation(steps=2, lr=0.1),
    stored=Adaptation(steps=3, lr=0.1),
    views=2,
    finetuned=Adaptation(steps=2, lr=0.1),
    hvae=HVAEConfig(latent_size=4, hidden=(6,), components=3),
    hvae_training=short,
    hvae_loss=HVAELoss(loss="task", batch=4),
    question_regression=short,
    mlp_regression=short,
    mlp_hidden=(6,),
    regression_size=3,
    regression_heads=2,
    hyperldm=short,
    diffusion=DiffusionConfig(timesteps=6, schedule="cosine", prediction="v"),
    denoiser=DenoiserConfig(hidden=8, depth=2),
    ldm=LDMConfig(batch=8, drop=0.1),
    hyperclip=HyperCLIPConfig(components=3, hidden=(6,), size=4, text_hidden=(6,)),
    contrast=ContrastConfig(batch=4),
    hyperclip_training=short,
    guidance_steps=(1, 3),
    guidance_prior=(0.0, 0.1),
    few_shot_steps=(1, 3),
)


def experiment(folder, recipe=TINY, **options):
    tasks = toy_tasks([(6 + t % 4, 3 + t % 3, 2 + t % 3) for t in range(16)])
    bank = ToyBank(tasks)
    splits = {"train": tasks[:8], "val": tasks[8:11], "test": tasks[11:]}
    return Experiment(splits, bank, Run.create(folder, {}), recipe, report=lambda text: None, **options)


def test_every_row_is_made_and_a_second_run_gives_the_same_numbers(tmp_path):
    scores, chosen = score_seed(experiment(tmp_path / "a"), 0, tuple(ROWS))
    again, chosen_again = score_seed(experiment(tmp_path / "b"), 0, tuple(ROWS))
    resumed, _ = score_seed(experiment(tmp_path / "a", train=False), 0, tuple(ROWS))
    assert chosen == chosen_again and chosen["hnet_hyperclip"]["steps"] in TINY.guidance_steps
    for name, values in scores.items():
        assert torch.equal(values, again[name]) and torch.equal(values, resumed[name]), name
        assert values.shape == (5,) and (0 <= values).all() and (values <= 100).all() and Method.parse(name).label
    reading = [name for name in ROWS if Method.parse(name).reads_questions]
    assert {f"{name}+{control}" for name in reading for control in ("shuffled", "null")} <= set(scores)
    assert "multitask+shuffled" not in scores


def test_a_run_that_dies_between_parts_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    whole = experiment(tmp_path / "whole").hyperldm("hnet", 0).denoiser.state_dict()
    broken = experiment(tmp_path / "broken")
    monkeypatch.setattr(
        "hyperclip_nb.evaluation.trainings.store_adaptations", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        broken.hyperldm("hnet", 0)
    monkeypatch.undo()
    assert {p.name for p in (tmp_path / "broken").glob("*.safetensors")} == {
        "multitask-0.safetensors",
        "hnet-0.safetensors",
    }
    resumed = experiment(tmp_path / "broken").hyperldm("hnet", 0).denoiser.state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_an_hvae_without_its_latents_makes_them_from_the_same_views(tmp_path):
    first = experiment(tmp_path).latents("hvae", 0)
    (tmp_path / "hvae_latents-0.safetensors").unlink()
    assert torch.equal(first, experiment(tmp_path).latents("hvae", 0))


@pytest.mark.parametrize("part", ["hvae", "hnet", "hyperldm", "hyperclip", "conditional", "multitask"])
def test_a_runs_recipe_can_not_ask_for_more_memory_than_its_files_have_numbers(tmp_path, part):
    "Somebody else's run whose manifest says everywhere that a network of a few numbers has a million million units."
    much = 10**12
    changes = {
        "hvae": {"hvae": replace(TINY.hvae, hidden=(much,))},
        "hnet": {"hnet_hidden": (much,)},
        "hyperldm": {"denoiser": replace(TINY.denoiser, hidden=much)},
        "hyperclip": {"hyperclip": replace(TINY.hyperclip, hidden=(much,))},
        "conditional": {"conditional_hidden": (much,)},
        "multitask": {"hidden": much},
    }[part]
    ask = lambda x: getattr(x, part)(*(("hvae",) if part in ("hyperldm", "hyperclip") else ()), 0)
    ask(experiment(tmp_path))
    ((field, value),) = changes.items()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for entry in manifest["files"].values():
        if field in entry["settings"]:
            entry["settings"][field] = to_plain(to_kept(value))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reading = experiment(tmp_path, replace(TINY, **changes), train=False)
    with pytest.raises(RunError, match="manifest.json: recipe: .*expected sizes"):
        ask(reading)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_parts_of_other_settings_or_data_are_not_used(tmp_path):
    first = experiment(tmp_path).hnet(0).head.bias.clone()
    assert torch.equal(first, experiment(tmp_path, train=False).hnet(0).head.bias)
    for recipe in (replace(TINY, anchor=0.5), replace(TINY, hnet=TrainConfig(steps=5, lr=1e-3))):
        with pytest.raises(RunError, match="hnet-0"):
            experiment(tmp_path, recipe, train=False).hnet(0)
    x = experiment(tmp_path, train=False)
    x.parts.data = "other"
    with pytest.raises(RunError, match="multitask-0"):
        x.hnet(0)  # what it starts from is missing too


def as_version_0_1(folder):
    "Give a run the names that version 0.1 wrote: of the question regression, and of the latents' noise."
    old = {new: old for old, new in EARLIER.items()}
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] = {"world_seed": 0, "recipe": {old.get(k, k): v for k, v in to_settings(TINY).items()}}
    files = {}
    for file, entry in manifest["files"].items():
        tensors, meta = load_tensors(folder / file)
        tensors = {"spread" if name == "std" else name: tensor for name, tensor in tensors.items()}
        settings = {old.get(name, name): value for name, value in entry["settings"].items()}
        (folder / file).unlink()
        file = file.replace("question_regression", "retrieval")
        save_tensors(folder / file, tensors, meta)
        files[file] = {**entry, "settings": settings, "sha256": sha256_of(folder / file)}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))


def test_a_run_of_version_0_1_is_used_as_it_is(tmp_path):
    first, questions = experiment(tmp_path), lambda x: x.embeddings["test"]
    ask = lambda x: [
        x.stored("hnet", 0).std,
        x.sample("hnet", 0, questions(x), gamma=1.5, generator=torch.Generator().manual_seed(0)),
        x.hyperclip("hnet", 0).encode_text(x.condition("hnet", 0, questions(x))),
        x.conditional(0, condition="hnet")(x.condition("hnet", 0, questions(x))),
    ]
    before = ask(first)
    as_version_0_1(tmp_path)
    assert (tmp_path / "hnet_retrieval-0.safetensors").exists()
    assert read_recipe(Run.open(tmp_path).config["recipe"]) == TINY
    splits, bank = {name: tasks.tasks for name, tasks in first.sets.items()}, first.sets["train"].bank
    again = Experiment(splits, bank, Run.open(tmp_path), TINY, train=False)
    assert all(torch.equal(a, b) for a, b in zip(before, ask(again), strict=True))


def test_a_recipe_of_no_version_is_refused_with_its_fields():
    plain = to_settings(TINY)
    with pytest.raises(ValueError, match="magic, more"):
        read_recipe({**plain, "magic": 1, "more": 2})
    with pytest.raises(ValueError, match=r"\$\.hidden"):
        read_recipe({**plain, "hidden": "wide"})


def test_generators_do_not_depend_on_questions():
    for part in ("hnet", "hnet_latents", "hvae", "hvae_latents", "multitask", "mnet_maml"):
        assert not fields_of(part) & {"question", "directions", "question_regression", "conditional"}, part
    known = {name for name in Recipe.__dataclass_fields__}
    assert all(fields_of(part) <= known for part in NEEDS)


def test_zero_shot_methods_see_nothing_but_questions(tmp_path):
    "Labels of test tasks must not reach the networks: permuting them changes scores, never weights."
    x = experiment(tmp_path)
    methods = {name: train_method(x, 0, name) for name in ROWS}
    draw = lambda: {
        name: m.weights(x.embeddings["test"], torch.Generator().manual_seed(0)) for name, m in methods.items()
    }
    before = draw()
    x.sets["test"]._labels = x.sets["test"]._labels.flip(0)
    after = draw()
    assert all(torch.equal(before[name], after[name]) for name in methods)


def test_pictures_beside_the_words(tmp_path):
    "Five pictures of the support set, whose labels are not read; a task with fewer gives what it has."
    x = experiment(tmp_path)
    tasks = x.sets["test"]
    shown = x.embeddings["test"]["pictures"]
    for i in range(len(tasks)):
        support = tasks.batch(torch.tensor([i]), "support")
        own = support.images[0][support.mask[0]]
        fives = torch.stack([own[list(some)].mean(0) for some in combinations(range(len(own)), min(5, len(own)))])
        assert (fives - shown[i]).abs().amax(1).min() < 1e-5
    both = x.condition("pictures", 0, x.embeddings["test"])
    words = x.embedding(x.embeddings["test"])
    assert torch.equal(both[:, : words.shape[1]], words) and both.shape[1] == words.shape[1] + shown.shape[1]
    tasks._labels = tasks._labels.flip(0)
    assert torch.equal(mean_picture(tasks), shown)


def test_a_question_encoder_of_ones_own(tmp_path):
    "Any that the features have; another one is named with those that there are."
    tasks = toy_tasks([(6 + t % 4, 3 + t % 3, 2 + t % 3) for t in range(16)])
    bank = ToyBank(tasks)
    bank.questions["mine"] = torch.randn(len(bank.questions["clip"]), 3, generator=torch.Generator().manual_seed(0))
    splits = {"train": tasks[:8], "val": tasks[8:11], "test": tasks[11:]}
    run = Run.create(tmp_path, {})
    opened = lambda question: Experiment(splits, bank, run, replace(TINY, question=question), report=lambda text: None)
    x = opened("mine")
    assert x.condition(None, 0).shape == (8, 3)
    methods = [train_method(x, 0, id) for id in ("cond_multitask", "hvae_hyperldm_g1")]
    assert all(score(x, method, 0).shape == (5,) for method in methods)
    with pytest.raises(ValueError, match=r"encoder of \['clip', 'mine', 'pictures'\], got 'none'"):
        opened("none").condition(None, 0)


def test_a_training_question_never_answers_for_itself(tmp_path):
    x = experiment(tmp_path)
    honest, looked_up = x.condition("hnet", 0), x.condition("hnet", 0, x.embeddings["train"])
    assert not torch.allclose(honest, looked_up)
    model = x.question_regression("hnet", 0)
    assert (model.shares(model.questions, model.cell[:, None] == model.cell).diagonal() == 0).all()


def test_shuffling_and_leaving_out_questions_matters_only_to_those_that_read_them(tmp_path):
    x = experiment(tmp_path)
    shared = train_method(x, 0, "multitask")
    assert torch.equal(score(x, shared, 0), score_shuffled(x, shared, 0)) and torch.equal(
        score(x, shared, 0), score_null(x, shared, 0)
    )


def test_the_papers_recipe_runs_at_a_small_size(tmp_path):
    tiny = replace(
        PAPER,
        hidden=3,
        latent_size=4,
        hnet_hidden=(5, 5, 5),
        views=2,
        hvae=replace(PAPER.hvae, latent_size=4, hidden=(5, 5), components=3),
        **{
            f: short
            for f in (
                "multitask",
                "hnet",
                "mnet",
                "conditional",
                "film",
                "conditional_maml",
                "hvae_training",
                "hyperclip_training",
            )
        },
        hyperclip=replace(PAPER.hyperclip, hidden=(6,)),
        contrast=replace(PAPER.contrast, batch=4),
        # Long enough for samples that pass the check of `HyperLDM.path`.
        hyperldm=TrainConfig(steps=300, lr=3e-3),
        denoiser=replace(PAPER.denoiser, hidden=64),
        ldm=replace(PAPER.ldm, batch=32),
        finetuned=Adaptation(steps=2, lr=0.1),
        guidance_steps=(1,),
        guidance_prior=(0.0,),
    )
    scores, _ = score_seed(
        experiment(tmp_path, tiny),
        0,
        ("hnet_hyperldm_g1", "hvae_hyperldm_g1.5", "hnet_hyperclip", "hvae_hyperclip", "latent_regression"),
    )
    assert all(torch.isfinite(v).all() for v in scores.values())


def test_few_shot_rows_start_at_the_zero_shot_score(tmp_path):
    x, rows = experiment(tmp_path), [id for id in FEW_SHOT_ROWS if id.startswith("few_shot")]
    curves, chosen = score_few_shot(x, 0, rows, (0, 1, "2_as_they_come", "all"))
    zero = {"few_shot": "hnet_maml"} | {f"few_shot~{id}": id for id in ("multitask", "mnet_maml", "cond_multitask")}
    for row, id in {**zero, "few_shot~cond_hnet_maml": "cond_hnet_maml", "few_shot~hvae": "mean_latent"}.items():
        assert torch.allclose(curves[f"{row}/0"], score(x, train_method(x, 0, id), 0)), row
    for row in rows:
        for shots in ("/1", "/2_as_they_come", ""):
            assert set(chosen[row + shots]) == {"steps"} and set(chosen[f"{row}~frequencies{shots}"]) == {
                "steps",
                "alpha",
            }
            shuffled = f"{row}{shots}+shuffled" in curves, f"{row}~frequencies{shots}+shuffled" in curves
            assert {*shuffled} == {Method.parse(row).reads_questions and not shots}
    assert all(values.shape == (5,) and Method.parse(id).label for id, values in curves.items())


def test_more_tasks_reach_the_unconditional_networks_only(tmp_path):
    from hyperclip_nb.dataset.batches import TaskSet
    from hyperclip_nb.dataset.sources import MixedEpisodes

    x = experiment(tmp_path / "own")
    own, extra = x.sets["train"].tasks, [replace_question(t, i) for i, t in enumerate(x.sets["train"].tasks)]
    mixed = TaskSet([*own, *extra], ToyBank([*own, *extra])), MixedEpisodes(own=len(own), tasks=6, support=3, query=3)
    y = experiment(tmp_path / "more", mixed=mixed)
    assert not torch.equal(x.hnet(0).head.bias, y.hnet(0).head.bias) and x.parts.data != y.parts.data
    assert y.latents("hnet", 0).shape[1] == len(own) and len(y.embeddings["train"]["clip"]) == len(own)


def replace_question(task, i):
    import msgspec

    return msgspec.structs.replace(task, question=f"extra {i}?")
