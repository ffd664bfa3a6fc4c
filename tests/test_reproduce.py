"The comparison around the experiment: what is packed, claimed, audited and refused."

import msgspec
import pytest
import torch
from test_experiment import experiment

from hyperclip_nb.evaluation.audit import AUDITED, audit_seed, numbers_table
from hyperclip_nb.evaluation.calibration import Probabilities, Scored
from hyperclip_nb.evaluation.claims import (
    choose_guided,
    claims,
    claims_table,
    few_shot_rows,
    summarised,
    what_generation_brings,
)
from hyperclip_nb.evaluation.presets import PRESETS, Source, run_folder, shortened
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.evaluation.reproduce import reproduce
from hyperclip_nb.evaluation.results import tabulate
from hyperclip_nb.evaluation.rows import FEW_SHOT_ROWS, ROWS
from hyperclip_nb.evaluation.seeds import flattened, packed, unflattened, unpacked


def test_scores_and_settings_survive_the_packing():
    scores, chosen = {"a~b@10+null": torch.rand(3), "c": torch.rand(3)}, {"c": {"λ": 0.1, "steps": 3}}
    found, settings = unpacked(packed(scores, chosen))
    assert settings == chosen and all(torch.equal(scores[name], found[name]) for name in scores)


def test_all_that_is_measured_survives_the_packing():
    some = Probabilities(torch.rand(3), torch.rand(15, 3))
    row = Scored(torch.rand(3), some, some, torch.tensor(1.5), torch.rand(2))
    scored = {
        "a~b@10": row,
        "a~b@10+null": Scored(torch.rand(3), some, some, torch.tensor(1.5)),
        "c": Scored(torch.rand(3)),
    }
    again = unflattened(unpacked(packed(flattened(scored), {}))[0])
    assert again.keys() == scored.keys() and again["c"].raw is None and again["a~b@10+null"].validation is None
    assert torch.equal(again["a~b@10"].tempered.bins, some.bins) and again["a~b@10"].temperature == 1.5
    assert all(torch.equal(again[id].accuracy, scored[id].accuracy) for id in scored)


def test_every_preset_names_rows_that_exist_and_shortening_touches_steps_only():
    for preset in PRESETS.values():
        assert set(preset.methods) | set(preset.paper_methods) <= {*ROWS, *FEW_SHOT_ROWS}
        assert {*preset.methods} <= {*preset.zero_shot_methods, *preset.few_shot_methods}
        assert {*preset.zero_shot_methods} <= {*ROWS} and {*preset.few_shot_methods} <= {*FEW_SHOT_ROWS}
    short = shortened(Recipe(), 0.1)
    assert (
        short.hnet.steps == Recipe().hnet.steps // 10
        and short.hnet.lr == Recipe().hnet.lr
        and short.stored == Recipe().stored
    )


def test_claims_follow_their_intervals():
    g = torch.Generator().manual_seed(0)
    base = 50 + torch.randn(3, 100, generator=g, dtype=torch.float64)
    scores = {
        "multitask": base,
        "cond_multitask": base + 2,
        "hnet_hyperclip": base + 1,
        "hnet_hyperclip+shuffled": base - 1,
    }
    few = {"few_shot/1": base, "few_shot~hnet_hyperldm_g1.5/1": base + 1}
    found = claims(scores, few, {"1": "hnet_hyperclip"})
    holds = {claim.text: claim.holds for claim in found}
    assert holds["HNet + HyperCLIP above unconditional multitask"] == "yes"
    assert holds["HNet + HyperCLIP above Conditional multitask"] == "no"
    assert holds["HNet + HyperCLIP loses at least 3 points with shuffled questions"] == "no"
    assert holds["HNet, 1 shots: a guided start above the unguided"] == "yes"
    assert f"{len(found)} comparisons" in claims_table(found)
    assert all(claim.p <= claim.adjusted <= 1 for claim in found)


def test_the_guided_row_is_chosen_on_validation_whatever_the_test_says():
    good, bad = torch.full((2, 9), 60.0), torch.full((2, 9), 50.0)
    validation = {"hnet_hyperclip": good, "hvae_hyperldm_g1": bad, "hvae_hyperldm_g1.5@10": bad, "multitask": 2 * good}
    guided = choose_guided(validation)
    assert guided == {"1": "hnet_hyperclip", "10": "hvae_hyperldm_g1.5@10"}
    scores = {"hnet_hyperclip": bad, "hvae_hyperldm_g1": good, "question_regression": bad}
    texts = [claim.text for claim in claims(scores, {}, {"1": "hnet_hyperclip"})]
    assert texts == ["HNet + HyperCLIP above Question regression"]


def test_ten_networks_are_claimed_against_ten_where_there_are_ten():
    base = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)).double() * 100
    ids = "hvae_hyperldm_g1.5@10", "hvae_hyperldm_g1.5", "cond_multitask", "cond_multitask@10", "question_regression"
    found = claims(dict.fromkeys(ids, base), {}, {"10": ids[0]})
    row = "HVAE + HyperLDM γ = 1.5, 10 samples averaged"
    assert [claim.text for claim in found] == [
        f"{row} above Conditional multitask, 10 samples averaged",
        f"{row} above Question regression (one network)",
        f"{row} above one sample",
    ]
    assert {claim.holds for claim in found} == {"open"} and {claim.p for claim in found} == {1.0}


@pytest.mark.parametrize("gain, said", [(5.0, "above"), (0.0, "not distinguishable from"), (-5.0, "below")])
def test_the_sentences_never_call_a_difference_a_gain_whose_interval_holds_zero(gain, said):
    g = torch.Generator().manual_seed(0)
    normal = lambda: torch.randn(2, 60, generator=g, dtype=torch.float64)
    base = 50 + 5 * normal()
    noise = normal()
    rows = {
        "multitask": base,
        "question_regression": base + gain + noise - noise.mean(),
        "hvae_hyperldm_g1.5@10": base + 2 * gain + 0.1 * normal() * (gain != 0),
        "hvae_hyperldm_g1.5": base + gain,
        "hvae_hyperldm_g1.5@10+shuffled": base - 1,
    }
    options = {"n": torch.ones(60), "dataset": "x", "world_seed": 0, "seeds": [0, 1], "tasks": {}, "wall_s": 0}
    results = tabulate(rows, **options)
    assert "made before" in what_generation_brings(results)
    sentences = what_generation_brings(msgspec.structs.replace(results, guided={"10": "hvae_hyperldm_g1.5@10"}))
    assert sentences.count(". ") == 2 and sentences.endswith(".")
    for sentence, other in zip(
        sentences.split(". "), ("Unconditional multitask", "Question regression", "one of them")
    ):
        assert f"{said} {other}" in sentence, sentence


def test_the_audit_and_the_curves_are_tables(tmp_path):
    x = experiment(tmp_path)
    numbers = audit_seed(x, 0)
    assert set(numbers) == {f"{kind}/{name}" for kind in ("hnet", "hvae") for name in AUDITED}
    for kind in ("hnet", "hvae"):
        _, _, copied, _, _, _ = numbers[f"{kind}/nearest question's network"].tolist()
        assert copied == 100
        assert numbers[f"{kind}/ten networks"][1:3].isnan().all()  # no single network has these weights
    text = numbers_table({name: torch.stack([value, value]) for name, value in numbers.items()})
    assert text.count("\n") == 2 + len(numbers) and "–" in text
    ids = [f"few_shot{shots}" for shots in ("/0", "/20_as_they_come", "/10", "/2", "", "~frequencies", "/2+shuffled")]
    table = few_shot_rows(summarised({id: torch.rand(2, 5) for id in ids})).splitlines()
    heads = ["Start", "0 shots", "2 shots", "10 shots", "20 as they come", "all shots"]
    assert table[0] == f"| {' | '.join(heads)} |" and [line.split(" | ")[0] for line in table[2:]] == [
        "| HNet, z0",
        "| Few-shot adaptation on the support set, with its answers' frequencies",
    ]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"preset": "none"}, "expected preset"),
        ({"methods": ["magic"]}, "magic"),
        ({"seeds": 0}, "at least 1 seed"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        reproduce(**{"preset": "smoke", "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_a_source_with_half_of_its_files_is_refused():
    for half in ({"features": "x"}, {"tasks": "x"}):
        with pytest.raises(ValueError, match="both tasks and features"):
            Source(**half)
    with pytest.raises(ValueError, match="task files beside instances"):
        Source(instances="x")
    with pytest.raises(ValueError, match="split: expected task files for 'image-disjoint', got the scenes"):
        Source(split="image-disjoint")
    for world in (-1, 2**31, 2**80):
        with pytest.raises(ValueError, match=f"world: expected 0 to 2147483647, got {world}"):
            Source(world=world)


def test_runs_of_other_worlds_and_data_have_their_own_folder(tmp_path):
    names = [
        run_folder("scenes", source).name
        for source in (
            Source(data=tmp_path),
            Source(data=tmp_path, world=1),
            Source(data=tmp_path, tasks=tmp_path / "vqa", features=tmp_path / "features"),
        )
    ]
    assert names == ["scenes", "scenes-world-1", "scenes-vqa"]
    assert run_folder("scenes", Source(), tmp_path) == tmp_path
