"Text to weights: the shipped ones are the recipe's, what is exported answers as its run does, bad files are named."

import json
import resource
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import EMBED
from test_experiment import TINY, experiment

from hyperclip_nb.basenet.adapter import AdapterNet
from hyperclip_nb.core import hub
from hyperclip_nb.core.blocks import NumbersError
from hyperclip_nb.core.files import FileError, fingerprint, load_tensors, save_tensors
from hyperclip_nb.dataset.small_clip import ASSETS, load_small_clip
from hyperclip_nb.evaluation.export import EXPORTED, export_measured, export_run, measure
from hyperclip_nb.evaluation.generated import Adapter
from hyperclip_nb.evaluation.methods import train_method
from hyperclip_nb.evaluation.pretrained import SHIPPED, TextToWeights
from hyperclip_nb.evaluation.recipe import PAPER, Recipe, fields_of, to_kept

SIZES = ["small", "medium", "large"]


@pytest.fixture(scope="module")
def shipped():
    return TextToWeights.from_pretrained("scenes")


def adapter(networks=3, seed=0, **changes):
    draw, net = torch.Generator().manual_seed(seed), AdapterNet(8, 4)
    weights, prompts = torch.randn(networks, net.size, generator=draw), torch.randn(3, 8, generator=draw)
    return Adapter(
        **{"net": net, "weights": weights, "answer_features": prompts, "question": "?", "answers": SIZES} | changes
    )


# What ships


def test_the_shipped_weights_are_those_of_the_default_recipe(shipped):
    "A changed recipe fails here until `hyperclip_nb export --out hyperclip_nb/assets/scenes` after a new demo."
    kept = to_kept(Recipe())
    wanted = {name: kept[name] for name in fields_of("hvae_hyperldm") if name in kept}
    made = {name: value for name, value in shipped.config.recipe.items() if name not in ("data", "seed")}
    assert made == json.loads(json.dumps(wanted))
    assert (shipped.config.world, shipped.config.seed, shipped.row.generator) == (0, 0, "hvae")
    assert shipped.config.encoder == load_small_clip().fingerprint


def test_the_shipped_weights_are_small_and_better_than_one_network_for_all(shipped):
    found = shipped.config.metrics
    assert found["clip_zero_shot"] < found["multitask"] < found["this"] - 4
    assert sum(path.stat().st_size for path in SHIPPED["scenes"].iterdir()) < 2.3e6
    assert {path.name for path in SHIPPED["scenes"].iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (SHIPPED["scenes"] / "README.md").read_text()
    assert all(f"| {value:.1f} |" in card for value in found.values()) and "## Limits" in card


def test_noise_belongs_to_seed_question_and_sample(shipped):
    ten = shipped.weights("What size is the comet?")
    shipped.weights("What color is the cat?")  # asked in between
    assert torch.equal(shipped.weights("What size is the comet?", samples=1), ten[:1])
    assert torch.equal(shipped.weights("What size is the comet?", samples=13)[:10], ten)
    assert not torch.equal(shipped.weights("What size is the comet?", seed=1), ten)
    before = torch.random.get_rng_state()
    TextToWeights.from_pretrained()("What size is the comet?")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_shipped_weights_need_neither_open_clip_nor_figures():
    import subprocess

    code = (
        "import sys, hyperclip_nb as hc; t = hc.TextToWeights.from_pretrained('scenes'); t('What size is the comet?');"
        "print(sorted({'open_clip', 'torchvision', 'PIL', 'matplotlib', 'sklearn', 'scipy'} & {*sys.modules}))"
    )
    said = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_a_scenes_question_comes_in_the_scenes_words(shipped):
    net = shipped(" what SIZE is the comet ")
    assert (net.question, net.answers) == ("What size is the comet?", SIZES)
    assert net.about["prompts"][0] == "the comet is small"
    own = shipped("What size is the comet?", SIZES, prompts=["tiny", "so so", "huge"])
    assert own.about["prompts"] == ("tiny", "so so", "huge") and torch.equal(own.weights, net.weights)


@pytest.mark.parametrize(
    "asked, said",
    [
        (("What is love?",), "at least two answers"),
        (("What is love?", "red, blue"), "expected a list of texts"),
        (("", ["a", "b"]), "expected a question"),
        ((None, ["a", "b"]), "question: expected a text, got None"),
        (("How many?", [1, 2]), r"answers: expected a list of texts, got \[1, 2\]"),
        (("What size is the comet?", SIZES, float("nan")), "guidance: expected a number from 0 to 10"),
        (("What size is the comet?", SIZES, 1.5, 0), "samples: expected a whole number from 1 to 100"),
        (("What size is the comet?", SIZES, 1.5, 1, -1), "seed: expected"),
        (("What size is the comet?", SIZES, 1.5, 1, 0, ["tiny"]), "prompts: expected one for each of 3"),
    ],
)
def test_what_cannot_be_asked(shipped, asked, said):
    with pytest.raises(ValueError, match=said):
        shipped(*asked)


# Files


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda f: (f / "config.json").unlink(), "config.json: expected a JSON file, found none"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: expected a safetensors file, found none"),
        (lambda f: change(f, schema=3), "expected schema 2, found 3"),
        (lambda f: change(f, kind="Adapter"), "Adapter.from_pretrained reads"),
        (lambda f: change(f, seed=1), "those of another one"),
        (lambda f: change(f, latent={"by": "walking"}), "latent"),
        (lambda f: change(f, colour=1), "colour"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickled"), "model.safetensors: expected a whole"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors: expected content with sha256"),
    ],
)
def test_a_damaged_folder_gets_a_sentence(tmp_path, spoil, said):
    shutil.copytree(SHIPPED["scenes"], tmp_path / "w")
    spoil(tmp_path / "w")
    with pytest.raises(FileError, match=said) as error:
        TextToWeights.from_pretrained(tmp_path / "w")
    assert str(tmp_path / "w") in str(error.value)


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def cut(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_another_encoder_is_refused(shipped):
    other = SimpleNamespace(fingerprint={**shipped.config.encoder, "weights": "0" * 64})
    with pytest.raises(ValueError, match="another is its weights"):
        TextToWeights.from_pretrained("scenes", encoder=other)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", ASSETS / "nowhere", "user/name", None, 3])
def test_a_name_that_is_nothing(name, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileError, match="expected 'scenes', a folder that save_pretrained wrote"):
        TextToWeights.from_pretrained(name)


def test_to_the_hub_and_back(tmp_path, monkeypatch, shipped):
    kept = {}

    class Api:
        def create_repo(self, name, private, exist_ok):
            return f"https://hub.example/{name}"

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
            kept[repo_id] = sorted(allow_patterns)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path / "hub" / name))
    assert shipped.push_to_hub("me/scenes") == "https://hub.example/me/scenes"
    assert kept == {"me/scenes": sorted([hub.CONFIG, hub.TENSORS, hub.CARD])}
    again = TextToWeights.from_pretrained("hf-hub:me/scenes")
    assert torch.equal(
        again.weights("What size is the comet?", samples=2), shipped.weights("What size is the comet?", samples=2)
    )
    adapter().push_to_hub("me/sizes")
    assert Adapter.from_pretrained("me/sizes").answers == SIZES
    with pytest.raises(ValueError, match="user/name"):
        shipped.push_to_hub("scenes")


def test_a_run_is_no_place_for_a_model(tmp_path, shipped):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FileError, match="found a run or a bank"):
        shipped.save_pretrained(tmp_path)
    with pytest.raises(FileError, match="expected a folder for a model, found a file"):
        shipped.save_pretrained(tmp_path / "manifest.json")


def rewritten(tensors, config):
    "The same tensors, said to be those of another configuration."
    found, meta = load_tensors(tensors)
    save_tensors(tensors, found, meta | {"config": fingerprint(config)})


MUCH = 10**12


def latent(c, **changes):
    return {"latent": c["latent"] | {"denoiser": c["latent"]["denoiser"] | changes}}


@pytest.mark.parametrize(
    "changes, field",
    [
        (lambda c: {"widths": [MUCH]}, r"widths\[0\]: expected sizes"),
        (lambda c: {"question_size": MUCH}, "question_size: expected sizes"),
        (lambda c: {"read_size": MUCH, "whitened": True}, "read_size: expected sizes"),
        (lambda c: {"condition_size": MUCH}, "condition_size: expected sizes"),
        (lambda c: {"latent_size": MUCH}, "latent_size: expected sizes"),
        (lambda c: {"regression": [MUCH, *c["regression"][1:]]}, r"regression\[0\]: expected sizes"),
        (lambda c: {"regression": [c["regression"][0], MUCH, 1]}, r"regression\[1\]: expected sizes"),
        (lambda c: latent(c, hidden=MUCH), "latent.denoiser.hidden: expected sizes"),
        (lambda c: latent(c, depth=MUCH), "depth: expected at most 1,000"),
        (lambda c: {"net": {"embed": MUCH, "hidden": MUCH}}, "expected"),
        (
            lambda c: {"net": {"embed": MUCH, "hidden": MUCH}, "latent_size": 0, "latent": None},
            "net.hidden: expected sizes",
        ),
    ],
)
def test_a_small_file_can_not_ask_for_much_memory(tmp_path, changes, field):
    folder = tmp_path / "w"
    shutil.copytree(SHIPPED["scenes"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= changes(config)
    (folder / "config.json").write_text(json.dumps(config))
    rewritten(folder / "model.safetensors", config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError, match=field) as error:
        TextToWeights.from_pretrained(folder)
    assert str(folder) in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# From a run

RECIPES = {
    "regression": TINY,
    "embedding": replace(TINY, question_regression=None),
    "whitened": replace(TINY, question_regression=None, directions=3),
    "unit": replace(TINY, question_regression=None, embedding_scale="unit"),
    "stored": replace(TINY, question_regression=None, embedding_scale="stored", feature_scale="stored"),
    "components": replace(TINY, hvae=replace(TINY.hvae, decodes="components")),
    "published": replace(TINY, denoiser_kind="published_second", clamp=None, variance="posterior"),
}


@pytest.mark.parametrize("kind", ["hvae", "hnet"])
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_exported_generates_as_its_run_does(tmp_path, name, kind):
    x = experiment(tmp_path / "run", RECIPES[name])
    model, e = export_run(x, f"{kind}_hyperldm_g1", 1), x.embeddings["test"]
    read = e[x.recipe.question]
    assert torch.allclose(model.condition(read), x.condition(kind, 1, e), atol=1e-5)
    noise = lambda: torch.Generator().manual_seed(0)
    z = x.sample(kind, 1, e, generator=noise())
    assert torch.allclose(model.parts["decoder"](z[0]), x.generator(kind, 1)(z[0]), atol=1e-5)
    again = TextToWeights.from_pretrained(model.save_pretrained(tmp_path / "kept", torch.float32))
    one = [m.weights("What is it?", embedding=read[:1], samples=2) for m in (model, again)]
    assert torch.equal(*one) and one[0].shape == (2, x.net.size)
    assert again.config == model.config and again.feature_size == EMBED


ALONE = [id for id in EXPORTED if "hyperldm" not in id]  # those that draw no noise


@pytest.mark.parametrize("id", ALONE)
@pytest.mark.parametrize("recipe", ["regression", "whitened", "stored", "components"])
def test_every_row_is_exported_as_its_run_has_it(tmp_path, recipe, id):
    x = experiment(tmp_path / "run", RECIPES[recipe])
    if "question_regression" in id and x.recipe.question_regression is None:
        pytest.skip("the recipe has no question regression")
    model, e = export_run(x, id, 1), {name: part[:1] for name, part in x.embeddings["test"].items()}
    w = train_method(x, 1, id).weights(e, torch.Generator().manual_seed(0))
    again = TextToWeights.from_pretrained(model.save_pretrained(tmp_path / "kept", torch.float32))
    for m in model, again:
        found = m.weights("What is it?", embedding=e[model.config.question], samples=7, guidance=3.0)
        assert found.shape == (1, x.net.size) and torch.allclose(found, w[:, 0], atol=1e-4)
    assert again.config == model.config and repr(model).startswith("TextToWeights(")


def test_the_embedding_as_condition_is_exported_too(tmp_path):
    x = experiment(tmp_path / "run")
    model, e = export_run(x, "hvae_hyperldm_g1.5~embedding@10", 1), x.embeddings["test"]
    assert "regression" not in model.parts
    read = e[model.config.question]
    assert torch.allclose(model.condition(read), x.condition(x.recipe.question, 1, e), atol=1e-5)
    z = model.hyperldm.denoiser.state_dict()
    own = x.hyperldm("hvae", 1, x.recipe.question).denoiser.state_dict()
    assert all(torch.equal(z[name], own[name]) for name in own)
    assert model.weights("What is it?", embedding=read[:1]).shape == (10, x.net.size)  # as the row has them


@pytest.mark.parametrize("id", ["hvae_hyperldm_g1.5~pictures@10", "few_shot", "nearest_latent", "clip_zero_shot", "?"])
def test_a_row_that_makes_no_weights_of_words_alone_is_refused(tmp_path, id):
    with pytest.raises(ValueError, match="method: expected a row out of multitask"):
        export_run(experiment(tmp_path / "run"), id)


def test_a_row_that_nobody_knows_is_named(tmp_path, shipped):
    folder = shipped.save_pretrained(tmp_path / "mine")
    tensors, text = (folder / "model.safetensors"), (folder / "config.json").read_text()
    config = json.loads(text) | {"method": "hvae_hyperldm_g99@10"}
    (folder / "config.json").write_text(json.dumps(config))
    rewritten(tensors, config)
    with pytest.raises(FileError, match="config.json: method: expected methods out of"):
        TextToWeights.from_pretrained(folder)


def test_metrics_are_measured_of_the_rounded_weights(tmp_path):
    x = experiment(tmp_path / "run")
    kept = export_measured(x, tmp_path / "kept")
    assert kept.config.metrics == measure(kept, x) and {"clip_zero_shot", "multitask", "this"} == {*kept.config.metrics}
    with pytest.raises(ValueError, match="can't be loaded by its name"):
        kept("What is it?", ["a", "b"])


def test_numbers_too_large_for_half_precision_are_not_written(tmp_path):
    model = export_run(experiment(tmp_path / "run"))
    model.parts["decoder"][0].weight.data[0, 0] = 1e6
    with pytest.raises(NumbersError, match="float16 is too narrow"):
        model.save_pretrained(tmp_path / "kept")
    assert not (tmp_path / "kept" / "model.safetensors").exists()


def test_the_papers_recipe_has_no_parts_that_cannot_be_told():
    assert PAPER.question_regression is None and PAPER.embedding_scale == "stored"  # the branch above, at its real size


# Adapters


def test_an_adapter_answers_whatever_the_length_and_type_of_features():
    net, x = adapter(), torch.randn(6, 8)
    assert torch.allclose(net(x).exp().sum(-1), torch.ones(6), atol=1e-5)
    for same in (1e4 * x, x / x.norm(dim=-1, keepdim=True), x.double()):
        assert torch.allclose(net(same), net(x), atol=1e-4)
    assert net(x.bfloat16()).argmax(-1).shape == (6,) and net(x[:0]).shape == (0, 3)
    assert adapter().to(torch.float64)(x).dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, 1e30])
def test_features_without_direction_are_refused(bad):
    x = torch.randn(6, 8)
    x[2] = bad
    with pytest.raises(NumbersError, match="features: expected"):
        adapter()(x)


@pytest.mark.parametrize("shape", [(8,), (2, 7), (2, 3, 8)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"features: expected \[N, 8\]"):
        adapter()(torch.randn(shape))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"weights": torch.zeros(3, 5)}, r"weights: expected \[K, 76\]"),
        ({"weights": torch.zeros(0, 76)}, "weights: expected"),
        ({"weights": torch.full((1, 76), torch.nan)}, "weights: expected finite"),
        ({"answer_features": torch.ones(2, 8)}, "answer_features: expected"),
        ({"answer_features": torch.zeros(3, 8)}, "without one"),
    ],
)
def test_what_is_no_adapter(changes, said):
    with pytest.raises(ValueError, match=said):
        adapter(**changes)


def test_a_saved_adapter_of_another_base_network_needs_it(tmp_path):
    net = adapter()
    net.save_pretrained(tmp_path)
    with pytest.raises(FileError, match="net: expected"):
        Adapter.from_pretrained(tmp_path, net=AdapterNet(8, 5))
    assert torch.equal(Adapter.from_pretrained(tmp_path, net=AdapterNet(8, 4)).weights, net.weights)
    with pytest.raises(FileError, match="TextToWeights.from_pretrained reads"):
        Adapter.from_pretrained(SHIPPED["scenes"])


def test_a_joined_adapter_survives_the_disk_with_each_networks_prompts(tmp_path):
    both, x = adapter(2, 0).join(adapter(3, 1)), torch.randn(4, 8)
    assert torch.equal(Adapter.from_pretrained(both.save_pretrained(tmp_path))(x), both(x)) and len(both) == 5


@pytest.mark.parametrize(
    "features, found", [([[0.0] * 8], "list"), (torch.ones(2, 8, dtype=torch.long), "torch.int64")]
)
def test_features_of_another_type_are_refused(features, found):
    with pytest.raises(ValueError, match=rf"features: expected a floating-point tensor \[N, 8\], got {found}"):
        adapter()(features)


def test_text_to_weights_computes_in_float32_and_float64_and_says_so():
    question, x = "What size is the comet?", torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    model = TextToWeights.from_pretrained("scenes").double()
    made, embedding = model(question, SIZES, samples=1), model.encoder.encode_texts([question], model.config.question)
    assert made.weights.dtype == made(x).dtype == torch.float64 and embedding.dtype == torch.float32
    assert torch.equal(model.weights(question, samples=1, embedding=embedding.double()), made.weights)
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=f"expected parameters of float32 or float64, got {half}"):
            model.to(half)(question, SIZES)
