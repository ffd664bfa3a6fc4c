"The comparison around the experiment: what is packed, claimed, audited and refused."

import pytest
import torch
from test_experiment import experiment

from hyperclip_nb.evaluation.claims import claims, few_shot_rows, summarised
from hyperclip_nb.evaluation.presets import PRESETS, Source, run_folder, shortened
from hyperclip_nb.evaluation.recipe import Recipe
from hyperclip_nb.evaluation.reproduce import audits, reproduce
from hyperclip_nb.evaluation.rows import FEW_SHOT_ROWS, ROWS
from hyperclip_nb.evaluation.seeds import packed, unpacked


def test_scores_and_settings_survive_the_packing():
    scores, chosen = {"a~b@10+null": torch.rand(3), "c": torch.rand(3)}, {"c": {"λ": 0.1, "steps": 3}}
    found, settings = unpacked(packed(scores, chosen))
    assert settings == chosen and all(torch.equal(scores[name], found[name]) for name in scores)


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
    text = claims(scores, {"few_shot/1": base, "few_shot~hnet_hyperldm_g1.5/1": base + 1})
    lines = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines()[2:]}
    assert lines["HNet + HyperCLIP above unconditional multitask"] == "yes"
    assert lines["HNet + HyperCLIP above Conditional multitask"] == "no"
    assert lines["HNet + HyperCLIP loses at least 3 points with shuffled questions"] == "no"
    assert lines["HNet, 1 shots: a guided start above the unguided"] == "yes"


def test_the_audit_and_the_curves_are_tables(tmp_path):
    x = experiment(tmp_path)
    text = audits(x, 0)
    assert all(f"{kind} + HyperLDM, {of}" in text for kind in ("HNet", "HVAE") for of in ("latents", "predictions"))
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
