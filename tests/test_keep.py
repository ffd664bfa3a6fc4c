"Fitted models in folders: what is read is what was written, for every verb; other networks and bad files are named."

import json
import resource
from dataclasses import replace

import msgspec
import pytest
import torch
from test_fit import SHORT, mlp, task_set
from torch import nn

import hyperclip_nb as hc
from hyperclip_nb.core.blocks import NumbersError
from hyperclip_nb.core.files import FileError
from hyperclip_nb.core.hub import save_model
from hyperclip_nb.evaluation.keep import build, describe, told_of
from hyperclip_nb.guidance.guide import Guidance

TASKS = task_set()
E = TASKS.embeddings("text")
KINDS = ["cond_multitask", "cond_multitask_film", "cond_hnet_maml"]


@pytest.fixture(scope="module")
def models():
    net = mlp()
    start = hc.fit_multitask(net, TASKS, recipe=SHORT)
    found = {"multitask": start}
    found |= {kind: hc.fit_conditional(net, TASKS, start, kind=kind, recipe=SHORT) for kind in KINDS}
    for name, fit in {"hnet": hc.fit_hnet, "hvae": hc.fit_hvae}.items():
        found[name] = generator = fit(net, TASKS, start, recipe=SHORT)
        found[f"{name} hyperldm"] = hc.fit_hyperldm(generator, TASKS, recipe=SHORT)
        found[f"{name} regression"] = hc.fit_question_regression(generator, TASKS, recipe=SHORT)
        found[f"{name} hyperclip"] = hc.fit_hyperclip(generator, TASKS, recipe=SHORT)
    return found


NAMES = ["multitask", *KINDS] + [
    f"{kind}{part}" for kind in ("hnet", "hvae") for part in ("", " hyperldm", " regression", " hyperclip")
]


def weights(model):
    if hasattr(model, "sample"):
        return model.sample(E, samples=2, check=False)
    if hasattr(model, "guide"):
        return model.guide(E, Guidance(steps=2))
    if hasattr(model, "latents") and isinstance(model.latents, torch.Tensor):
        return model(model.latents)
    return model.z0 if isinstance(model, hc.MNet) else model(E)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_makes_the_same_weights(models, name, tmp_path):
    other = hc.ModuleNet(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))  # begins elsewhere
    model = models[name]
    again = hc.load_fitted(hc.save_fitted(model, tmp_path / "kept"), other)
    assert type(again) is type(model) and again.net is other and not again.training
    assert torch.equal(weights(again), weights(model))
    assert describe(again) == describe(model)
    assert not any(p.requires_grad for p in again.parameters())


def test_more_is_trained_on_a_generator_that_was_read(models, tmp_path):
    again = hc.load_fitted(hc.save_fitted(models["hvae"], tmp_path), mlp())
    anew = hc.fit_hyperldm(again, TASKS, recipe=SHORT)
    assert torch.equal(weights(anew), weights(models["hvae hyperldm"]))
    with pytest.raises(ValueError, match="expected the 12 tasks that the generator was trained on"):
        hc.fit_hyperldm(again, task_set(seed=1), recipe=SHORT)


def test_double_precision_stays(models, tmp_path):
    ldm = models["hvae hyperldm"].to(torch.float64)
    try:
        again = hc.load_fitted(hc.save_fitted(ldm, tmp_path), mlp())
        assert {x.dtype for x in again.state_dict().values()} == {x.dtype for x in ldm.state_dict().values()}
    finally:
        ldm.to(torch.float32)


@pytest.mark.parametrize(
    "net, said",
    [
        (lambda: hc.ModuleNet(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))), "net: .*content"),
        (lambda: hc.ModuleNet(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))), "net: .*content"),
        (lambda: hc.AdapterNet(5, 4), "another is its"),
    ],
)
def test_another_base_network_is_refused(models, net, said, tmp_path):
    hc.save_fitted(models["cond_multitask"], tmp_path)
    with pytest.raises(ValueError, match=said):
        hc.load_fitted(tmp_path, net())
    with pytest.raises(TypeError, match=r"ModuleNet\(Linear\(...\)\) makes one"):
        hc.load_fitted(tmp_path, nn.Linear(5, 3))


def test_what_is_fixed_in_a_base_network_tells_it_apart_and_what_is_generated_does_not():
    def head(seed, fixed):
        torch.manual_seed(fixed)
        body = nn.Linear(5, 4)
        torch.manual_seed(seed)
        return hc.ModuleNet(nn.Sequential(body, nn.Linear(4, 3)), trainable=("1.weight", "1.bias"))

    assert told_of(head(0, 0)) == told_of(head(1, 0)) != told_of(head(0, 1))
    tower = nn.Linear(5, 5)
    assert told_of(hc.LoRANet(tower, rank=2)) == told_of(hc.LoRANet(tower, rank=2)) != told_of(hc.LoRANet(tower))
    assert told_of(hc.AdapterNet(5, 3)) != told_of(hc.AdapterNet(5, 4))


def test_other_models_and_numbers_that_are_none_are_refused(models, tmp_path):
    with pytest.raises(TypeError, match="what a `fit_…` verb gives, got Linear"):
        hc.save_fitted(nn.Linear(2, 2), tmp_path)
    start = hc.fit_multitask(mlp(), TASKS, recipe=SHORT)
    start.z0[3] = torch.nan
    with pytest.raises(NumbersError, match="z0: expected finite numbers"):
        hc.save_fitted(start, tmp_path)
    assert not [*tmp_path.iterdir()]


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: change(f, kind="Adapter"), "expected kind 'Fitted', found 'Adapter'"),
        (lambda f: change(f, schema=2), "expected schema 1, found 2"),
        (lambda f: change(f, model="Other"), "model"),
        (lambda f: change(f, latents=[1, 2, 3]), "expected the tensors of this config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "model.safetensors"),
    ],
)
def test_bad_files_are_named(models, damage, said, tmp_path):
    hc.save_fitted(models["hvae hyperldm"], tmp_path)
    damage(tmp_path)
    with pytest.raises(FileError, match=said):
        hc.load_fitted(tmp_path, mlp())


def test_sizes_that_do_not_fit_the_tensors_are_named(models, tmp_path):
    config, tensors = describe(models["cond_multitask"]), models["cond_multitask"].state_dict()
    save_model(tmp_path, config, {**tensors, "network.z0": torch.zeros(3)}, "")
    with pytest.raises(FileError, match=r"network.z0: expected \[6\], found \[3\]"):
        hc.load_fitted(tmp_path, mlp())
    save_model(tmp_path, config, {name: x for name, x in tensors.items() if name != "scaler.std"}, "")
    with pytest.raises(FileError, match=r"scaler.std: expected \[6\], found none"):
        hc.load_fitted(tmp_path, mlp())
    save_model(tmp_path, config, {**tensors, "scaler.std": torch.full((6,), torch.inf)}, "")
    with pytest.raises(FileError, match="scaler.std: expected finite numbers"):
        hc.load_fitted(tmp_path, mlp())


def test_a_description_alone_gives_the_same_tensors(models):
    for model in models.values():
        shapes = lambda m: {name: x.shape for name, x in m.state_dict().items()}
        assert shapes(build(describe(model), model.net)) == shapes(model)


MUCH = 10**12


def hvae(**changes):
    return lambda c: {"hvae": replace(c.hvae, **changes)}


def denoiser(**changes):
    return lambda c: {"recipe": c.recipe | {"denoiser": c.recipe["denoiser"] | changes}}


@pytest.mark.parametrize(
    "name, changes, field",
    [
        ("cond_multitask", lambda c: {"widths": (MUCH,)}, r"widths\[0\]: expected"),
        ("cond_multitask", lambda c: {"widths": (MUCH, MUCH)}, r"widths\[.\]: expected"),
        ("cond_multitask_film", lambda c: {"question_size": MUCH}, "question_size: expected"),
        ("hnet", lambda c: {"latents": (1, MUCH, 2)}, r"latents\[1\]: expected"),
        ("hnet", lambda c: {"latents": (0, MUCH, 0)}, "latents: expected sizes of at least 1"),
        ("hvae", hvae(hidden=(MUCH,)), r"hvae.hidden\[0\]: expected"),
        ("hvae", hvae(latent_size=MUCH), "hvae.latent_size: expected"),
        ("hvae", hvae(decodes="components", components=MUCH), "hvae.components: expected"),
        ("hvae hyperldm", denoiser(hidden=MUCH), "recipe.denoiser.hidden: expected"),
        ("hvae hyperldm", denoiser(depth=MUCH), "depth: expected at most 1,000"),
        ("hvae hyperldm", denoiser(tower=MUCH), "tower: expected at most 1,000"),
        ("hvae hyperldm", denoiser(time_size=MUCH), "recipe.denoiser.time_size: expected"),
        ("hvae regression", lambda c: {"regression": (MUCH, 1, 1)}, r"regression\[0\]: expected"),
        ("hvae regression", lambda c: {"regression": (c.regression[0], MUCH, 1)}, r"regression\[1\]: expected"),
        ("hvae hyperclip", lambda c: {"hyperclip": replace(c.hyperclip, size=MUCH)}, "hyperclip.size: expected"),
    ],
)
def test_a_small_file_can_not_ask_for_much_memory(models, name, changes, field, tmp_path):
    config, tensors = describe(models[name]), models[name].state_dict()
    save_model(tmp_path, msgspec.structs.replace(config, **changes(config)), tensors, "")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match=field) as error:
        hc.load_fitted(tmp_path, mlp())
    assert str(tmp_path) in str(error.value) and (
        "000000000000" in str(error.value).replace(",", "") or "latents: " in str(error.value)
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
