"The recipe: what was written before is found again, every setting can be reached, and each does what it says."

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest
import torch
from conftest import ToyBank
from hypothesis import given, settings
from hypothesis import strategies as st
from test_experiment import TINY, experiment

from hyperclip_nb.cli.commands import main
from hyperclip_nb.core import devices
from hyperclip_nb.core.files import RunError, mapped
from hyperclip_nb.core.runs import to_settings
from hyperclip_nb.core.training import TrainConfig, fit
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.sources import MixedEpisodes
from hyperclip_nb.evaluation.overrides import differences, find, listing, override, read_settings, settings_of
from hyperclip_nb.evaluation.presets import PRESETS, shortened
from hyperclip_nb.evaluation.recipe import ADDED, NEEDS, PAPER, Recipe, fields_of, read_recipe, to_kept
from hyperclip_nb.evaluation.reproduce import check_same
from hyperclip_nb.evaluation.seeds import score_seed
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes

RECIPES = {"scenes": Recipe(), "paper": PAPER, "tiny": TINY}


# --- runs of earlier versions


def test_a_recipe_of_version_0_1_is_today_s_and_is_written_as_it_was():
    "Its parts are compared with these settings: a field that is new since must be in `ADDED`."
    old = json.loads((Path(__file__).parent / "recipe_0_1.json").read_text())
    assert read_recipe(old) == Recipe()
    assert to_settings(to_kept(Recipe())) == old


def test_an_added_field_is_kept_where_it_has_another_value():
    assert to_kept(replace(Recipe(), order="first"))["order"] == "first"
    assert to_kept(replace(Recipe(), hnet=TrainConfig(epochs=3)))["hnet"]["epochs"] == 3
    for recipe in RECIPES.values():
        assert read_recipe(json.loads(json.dumps(to_settings(to_kept(recipe))))) == recipe
    for owner, names in ADDED.items():
        assert {*names} <= {field.name for field in fields(owner)}, owner


def test_infinities_survive_a_run():
    recipe = override(Recipe(), {"hnet.clip": "inf"})
    assert read_recipe(json.loads(json.dumps(to_settings(recipe)))) == recipe


def test_parts_that_depend_on_a_new_setting_are_made_anew_and_others_are_found(tmp_path):
    first = experiment(tmp_path)
    first.hnet(0), first.hvae(0)
    again = experiment(tmp_path, replace(TINY, order="first"), train=False)
    assert again.hvae(0) and again.multitask(0)
    with pytest.raises(RunError, match="hnet-0"):
        again.hnet(0)


# --- every setting can be reached


def as_texts(recipe):
    "The settings of a listing, as `--set` takes them."
    return [line[2:].split("  ")[0].rstrip() for line in listing(recipe).splitlines()]


@pytest.mark.parametrize("name", RECIPES)
def test_a_listing_can_be_read_back(name):
    texts = as_texts(RECIPES[name])
    assert override(Recipe(), read_settings(texts)) == RECIPES[name]
    assert override(RECIPES[name], read_settings(texts)) == RECIPES[name]


def test_every_field_is_listed_with_its_type_and_a_line_about_it():
    found = settings_of(Recipe(), everything=True)
    names = {path.partition(".")[0] for path in found}
    assert names == {field.name for field in fields(Recipe)}
    for path, kind in get_type_hints(Recipe).items():
        if is_dataclass(kind):
            inside = {p.partition(".")[2] for p in found if p.startswith(f"{path}.")}
            assert inside == {field.name for field in fields(kind)} - {"seed"}
    assert [path for path, setting in found.items() if not setting.about] == []


def test_values_are_converted_and_checked_as_in_the_source():
    r = override(Recipe(), {"hvae.beta": 1, "conditional_hidden": 64, "inner.steps": [2, 5], "clamp": None})
    assert (r.hvae_loss.beta, r.conditional_hidden, r.inner.steps, r.clamp) == (1.0, (64,), (2, 5), None)
    r = override(Recipe(), read_settings(["guidance_prior=0.5,bayes", "stored_for_hyperclip.steps=50"]))
    assert r.guidance_prior == (0.5, "bayes") and r.stored_for_hyperclip == Adaptation(steps=50)
    assert override(r, {"stored_for_hyperclip": None}).stored_for_hyperclip is None
    assert override(r, {"stored": Adaptation(steps=3)}).stored == Adaptation(steps=3)
    assert override(Recipe(), {}) == Recipe()


def test_steps_and_epochs_take_each_other_s_place():
    epochs = override(Recipe(), {"hnet.epochs": 20})
    assert (epochs.hnet.steps, epochs.hnet.epochs) == (None, 20)
    assert override(epochs, {"hnet.steps": 900}) == Recipe()
    with pytest.raises(ValueError, match="None beside 5 steps"):
        override(Recipe(), {"hnet.epochs": 20, "hnet.steps": 5})


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"hvae.betta": 1}, "nearest are hvae_loss.beta"),
        ({"hyperldm.batch": 1}, "ldm.batch"),
        ({"veiws": 3}, "views"),
        ({"views": 0}, "Recipe.views: expected at least 1, got 0"),
        ({"views": 2.5}, "views: expected int, got 2.5"),
        ({"views": True}, "views: expected int, got True"),
        ({"views": None}, "views: expected int, got None"),
        ({"hnet.lr": -1}, "TrainConfig.lr: expected a positive number"),
        ({"hnet.lr": float("nan")}, "TrainConfig.lr: expected a positive number"),
        ({"hvae_fraction": [0.5]}, "float, float"),
        ({"question": 3}, "question: expected str, got 3"),
        ({"guidance_langevin": 0.1}, "Guidance.langevin: expected 0, or above 0 with optimizer 'sgd'"),
        ({"guidance_steps": []}, "at least one"),
        ({"hvae": 3}, "one of the settings hvae.latent_size"),
        ({"hvae": None}, "one of the settings hvae.latent_size"),
        ({"paper.views": 3}, "views"),
    ],
)
def test_what_can_t_be_is_a_sentence(changes, said):
    with pytest.raises(ValueError) as error:
        override(Recipe(), changes)
    assert said in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_path_is_found_or_refused(path):
    known = list(settings_of(Recipe()))
    try:
        assert find(path, known) in known
    except ValueError as error:
        assert "the nearest are" in str(error)


def test_a_text_that_is_no_setting_is_refused():
    for text in ("views", "=3", ""):
        with pytest.raises(ValueError, match="such as"):
            read_settings([text])
    with pytest.raises(ValueError, match="twice"):
        read_settings(["views=1", "views=2"])


def test_both_recipes_of_a_preset_are_reached():
    preset = PRESETS["scenes"].override({"views": 3, "paper.views": 5})
    assert (preset.recipe.views, preset.paper.views) == (3, 5)
    with pytest.raises(ValueError, match="only recipe"):
        PRESETS["paper"].override({"paper.views": 3})


def test_the_command_lists_and_refuses(capsys):
    main(["reproduce", "--preset", "paper", "--show-recipe", "--set", "hvae.latent_size=32"])
    out = capsys.readouterr().out
    assert "* hvae.latent_size=32" in out and "  hvae_training.epochs=2000" in out
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "--set", "hvae.latent=1"])
    assert end.value.code == 2 and "hvae.latent_size" in capsys.readouterr().err


def test_a_run_of_other_settings_is_refused(tmp_path):
    x = experiment(tmp_path)
    check_same(tmp_path, TINY)  # nothing there yet, and no recipe in its config
    x.multitask(0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "config": {"recipe": to_settings(TINY)}}))
    check_same(tmp_path, TINY)
    other = override(TINY, {"hvae.beta": 0.5, "views": 3, "hidden": 4, "clamp": None})
    with pytest.raises(RunError, match="hidden=4 instead of 3; views=3 instead of 2; .* and 1 more.*another --out"):
        check_same(tmp_path, other)
    assert differences(TINY, TINY) == []


# --- epochs


def test_epochs_are_steps_once_items_and_batch_are_known():
    config = TrainConfig(epochs=600, lr=0.1)
    assert config.for_items(870, 64) == TrainConfig(steps=600 * 14, lr=0.1)
    assert config.for_items(64, 64).updates == 600 and config.for_items(1, 64).updates == 600
    assert TrainConfig(epochs=0.1).for_items(10, 5).updates == 1
    assert TrainConfig(steps=7).for_items(870, 64).steps == 7
    assert TrainConfig().steps == 2_000 and TrainConfig(epochs=1).steps is None


def test_wrong_epochs_are_refused():
    for wrong in ({"epochs": 0}, {"epochs": -1.0}, {"epochs": float("inf")}, {"epochs": 1, "steps": 2}):
        with pytest.raises(ValueError, match="epochs"):
            TrainConfig(**wrong)
    with pytest.raises(ValueError, match="got 3 epochs"):
        fit(torch.nn.Linear(1, 1), None, None, TrainConfig(epochs=3))
    with pytest.raises(ValueError, match="at least 1 item"):
        TrainConfig(epochs=3).for_items(0, 5)
    with pytest.raises(ValueError, match="warmup"):
        TrainConfig(epochs=3, warmup=50).for_items(10, 5)


def test_both_lengths_are_shortened():
    assert TrainConfig(steps=1_000, warmup=50).shortened(0.01) == TrainConfig(steps=10, warmup=9)
    assert TrainConfig(epochs=1_000, warmup=50).shortened(0.01) == TrainConfig(epochs=10, warmup=0)
    short = shortened(PAPER, 0.01)
    assert short.hvae_training.epochs == 20 and short.hnet.steps == 270 and short.diffusion == PAPER.diffusion


def test_trainings_with_epochs_run_as_long_as_with_steps(tmp_path):
    "Of all parts; 8 training tasks, batches of 4 and 8, and all of them in a meta-batch."
    lengths = {"multitask": 4, "hnet": 4, "hvae_training": 4, "hyperldm": 4, "hyperclip_training": 4}
    batches = {"multitask": 32, "hnet": 32, "hvae_training": 4, "hyperldm": 8, "hyperclip_training": 4}
    epochs = {name: TrainConfig(epochs=steps / -(-8 // batches[name]), lr=1e-3) for name, steps in lengths.items()}
    by_steps, by_epochs = experiment(tmp_path / "a"), experiment(tmp_path / "b", replace(TINY, **epochs))
    for make in (
        lambda x: x.multitask(0).z0,
        lambda x: x.hnet(0).head.bias,
        lambda x: x.hvae(0).head.bias,
        lambda x: x.hyperldm("hnet", 0).denoiser.head.weight,
        lambda x: x.hyperclip("hnet", 0).free_scale,
    ):
        assert torch.equal(make(by_steps), make(by_epochs))


# --- what the settings do


def test_nothing_is_left_out_where_nothing_is_adapted(ragged):
    generator = torch.Generator().manual_seed(0)
    for episodes in (Episodes(support=None, query=None), MixedEpisodes(own=3, support=None, query=None)):
        support, query = episodes.draw(ragged, generator, adapts=False)
        assert sum(int(part.mask.sum()) for part in query.parts) == int(ragged.sizes("all").sum())
        assert torch.equal(support.index, query.index)
        adapted, scored = episodes.draw(ragged, generator)
        assert sum(int(part.mask.sum()) for part in scored.parts) == int(ragged.sizes("query").sum())


def test_parts_need_what_they_read():
    from_maml = fields_of("hvae", replace(Recipe(), hvae_start="mnet_maml"))
    assert from_maml - fields_of("hvae") == {"mnet", "inner", "anchor", "order"}
    assert all("episodes" in fields_of(part) and "feature_scale" in fields_of(part) for part in NEEDS)
    for part in NEEDS:
        known = "conditional_fraction" in fields_of(part)
        assert known == (part not in ("multitask", "mnet_maml", "hnet", "hvae")), part


def test_a_fraction_of_the_questions_is_known_to_those_that_read(tmp_path):
    x = experiment(tmp_path / "all")
    y = experiment(tmp_path / "half", replace(TINY, conditional_fraction=0.5))
    assert len(y.sets["train"]) == len(y.embeddings["train"]["clip"]) == 4 and len(y.unconditional[0]) == 8
    for kind in ("hnet", "hvae"):  # the generators are the same, and so are the latents that are left
        for a, b in zip(x.generator(kind, 0).parameters(), y.generator(kind, 0).parameters()):
            assert torch.equal(a, b)
        assert y.latents(kind, 0).shape == (2, 4, x.latents(kind, 0).shape[2])
    torch.testing.assert_close(y.latents("hvae", 0), x.latents("hvae", 0)[:, y.known])
    y.hyperldm("hnet", 0), y.hyperclip("hvae", 0), y.conditional(0)
    less = experiment(tmp_path / "less", replace(TINY, conditional_fraction=0.25))
    assert {*less.known.tolist()} < {*y.known.tolist()}


def test_the_hvae_starts_where_it_is_told(tmp_path):
    x, y = experiment(tmp_path / "a"), experiment(tmp_path / "b", replace(TINY, hvae_start="mnet_maml"))
    assert torch.equal(x.fine_tuned(0).start, x.multitask(0).z0)
    assert torch.equal(y.fine_tuned(0).start, y.mnet_maml(0).z0)
    assert torch.equal(y.hvae(0).w0, y.mnet_maml(0).z0)


def test_hyperclip_learns_from_adaptations_of_its_own(tmp_path):
    x = experiment(tmp_path, replace(TINY, stored_for_hyperclip=Adaptation(steps=9, lr=0.1)))
    plain, its = x.stored("hnet", 0), x.stored("hnet", 0, for_hyperclip=True)
    assert plain.latents.shape == its.latents.shape and not torch.equal(plain.latents, its.latents)
    assert torch.equal(x.stored("hvae", 0).latents, x.stored("hvae", 0, for_hyperclip=True).latents)
    x.hyperclip("hnet", 0)
    assert (tmp_path / "hnet_latents_for_hyperclip-0.safetensors").exists()


def test_the_hvae_has_views_of_its_own(tmp_path):
    x = experiment(tmp_path, replace(TINY, hvae_views=3))
    assert x.latents("hnet", 0).shape[0] == 2 and x.latents("hvae", 0).shape[0] == 3
    x.hyperldm("hvae", 0), x.hyperclip("hvae", 0)


def test_guidance_starts_where_it_is_told(tmp_path):
    def walk(start):
        y = experiment(tmp_path, replace(TINY, guidance_start=start))
        return next(y.walk("hnet", 0, y.embeddings["test"], 1, 0.0))

    x = experiment(tmp_path)
    torch.testing.assert_close(walk("z0")[0], x.hnet(0).z0)
    torch.testing.assert_close(walk("mean")[0], x.latents("hnet", 0).flatten(0, 1).mean(0))


@pytest.mark.parametrize(
    "row, changes",
    [
        ("hnet_hyperclip", {"guidance_optimizer": "sgd", "guidance_langevin": 0.1}),
        ("hnet_hyperclip", {"guidance_noise": 0.1, "guidance_schedule": "cosine", "guidance_prior": ("bayes",)}),
        ("hnet_hyperldm_g1.5", {"metric": "gauss_newton"}),
        ("hnet_hyperldm_g1.5", {"metric": "hessian", "variance": "posterior"}),
        ("hnet_hyperldm_g1.5", {"denoiser.null": "learned"}),
        ("hvae_hyperldm_g1.5", {"posterior": 1.0, "embedding_scale": "stored", "question_regression": None}),
        ("cond_multitask_film", {"film_start": "identity", "feature_scale": "stored", "embedding_scale": "unit"}),
        ("cond_hnet_maml", {"order": "first", "episodes.support": None, "episodes.query": None}),
    ],
    ids=str,
)
def test_options_of_the_library_are_reached_from_the_recipe(tmp_path, row, changes):
    recipe = override(TINY, changes)
    scores, _ = score_seed(experiment(tmp_path, recipe), 0, (row,), controls=False)
    again, _ = score_seed(experiment(tmp_path, recipe, train=False), 0, (row,), controls=False)
    assert torch.isfinite(scores[row]).all() and torch.equal(scores[row], again[row])


def test_scales_reach_networks(tmp_path):
    stored = experiment(tmp_path, replace(TINY, embedding_scale="stored", feature_scale="stored"))
    assert torch.equal(stored.embedding(), stored.embeddings["train"]["clip"])
    assert stored.sets["train"].images.norm(dim=1).std() > 0.1
    unit = experiment(tmp_path, replace(TINY, embedding_scale="unit"))
    torch.testing.assert_close(unit.embedding().norm(dim=1), torch.ones(8))
    torch.testing.assert_close(unit.sets["train"].images.square().mean(1), torch.ones(len(unit.sets["train"].images)))


def test_coco_tasks_reach_both_generators(tmp_path):
    x = experiment(tmp_path / "own")
    own = x.sets["train"].tasks
    extra = [msgspec.structs.replace(task, question=f"extra {i}?") for i, task in enumerate(own * 4)]
    bank = ToyBank([*own, *extra])
    mixed = TaskSet([*own, *extra], bank), MixedEpisodes(own=len(own), extra=0.5)
    y = experiment(tmp_path / "more", mixed=mixed)
    y.sets["train"].bank = bank  # the toy bank of an experiment knows its own tasks only
    assert len(y.to_fine_tune()) == 16 and y.fine_tuned(0).weights.shape[1] == 16
    assert not torch.equal(x.hvae(0).head.bias, y.hvae(0).head.bias)
    assert y.latents("hvae", 0).shape[1] == len(own)


# --- presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_holds_what_can_be_made(name):
    "A recipe checks itself when it is made; here it also goes through text and back."
    preset = PRESETS[name]
    for recipe in filter(None, (preset.recipe, preset.paper)):
        assert override(Recipe(), read_settings(as_texts(recipe))) == recipe


def test_the_preset_paper_is_as_long_as_the_paper():
    r = PRESETS["paper"].recipe
    lengths = {"hvae_training": 2_000, "hyperldm": 1_000, "hyperclip_training": 600}
    assert {name: getattr(r, name).epochs for name in lengths} == lengths
    rates = {"hvae_training": 1e-4, "hyperldm": 2.5e-4, "hyperclip_training": 3e-4}
    assert {name: getattr(r, name).lr for name in rates} == rates
    meta = {"multitask", "mnet", "hnet", "conditional", "film", "conditional_maml"}
    assert {getattr(r, name) for name in meta} == {TrainConfig(steps=27_000, lr=1e-3)}
    trained = [value for value in (getattr(r, field.name) for field in fields(r)) if isinstance(value, TrainConfig)]
    assert all(config.weight_decay == 0 and config.schedule == "constant" and config.clip == 10 for config in trained)
    assert (r.ldm.batch, r.contrast.batch, r.hvae_loss.batch, r.episodes.tasks) == (128, 64, 32, 32)
    assert (r.diffusion.timesteps, r.diffusion.beta_start, r.diffusion.beta_end) == (350, 1e-4, 0.06)
    assert (r.diffusion.schedule, r.diffusion.prediction) == ("linear", "epsilon")
    assert (r.stored.steps, r.stored_for_hyperclip.steps, r.finetuned.steps) == (10, 50, 50)


def test_fine_tuned_weights_for_which_memory_has_no_room_lie_in_a_file(tmp_path, monkeypatch):
    "The HVAE, its latents and its report are the same from there, also where some tasks are left out."
    recipe = replace(TINY, conditional_fraction=0.5)
    plain = experiment(tmp_path / "memory", recipe)
    before = plain.hvae(0).state_dict(), plain.stored("hvae", 0)
    asked = []
    monkeypatch.setattr(devices, "free_memory", lambda: 1_000.0)
    monkeypatch.setattr(devices, "mapped", lambda shape, folder: asked.append(folder) or mapped(shape, folder))
    x = experiment(tmp_path / "file", recipe)
    after = x.hvae(0).state_dict(), x.stored("hvae", 0)
    assert asked == [x.run.path] and len(before[1].latents[0]) < len(x.to_fine_tune())
    assert torch.equal(x.fine_tuned(0).weights, plain.fine_tuned(0).weights)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert not [*x.run.path.glob(".mapped*")]
