"Which parts a row reads, and what those are made from."

import json
from dataclasses import replace

import pytest
import torch
from test_experiment import TINY, experiment

from hyperclip_nb.core.workers import Here, as_ready
from hyperclip_nb.evaluation.graph import in_order, made_from, read_by
from hyperclip_nb.evaluation.grid import Study, jobs_of, run_grid
from hyperclip_nb.evaluation.learners import score_few_shot_row
from hyperclip_nb.evaluation.presets import PRESETS, Source
from hyperclip_nb.evaluation.recipe import NEEDS, PAPER, fields_of
from hyperclip_nb.evaluation.rows import FEW_SHOT_ROWS, ROWS
from hyperclip_nb.evaluation.seeds import measure_row
from hyperclip_nb.hypernet.metatrain import Adaptation

VARIANTS = {
    "ours": TINY,
    "as the paper's": replace(
        TINY,
        start="identity",
        film_start="identity",
        hvae_start="mnet_maml",
        question_regression=None,
        stored_for_hyperclip=Adaptation(steps=4, lr=0.1),
    ),
}


@pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS)
def test_the_graph_is_what_rows_make_from_nothing(tmp_path, recipe):
    for i, id in enumerate((*ROWS, *FEW_SHOT_ROWS)):
        x = experiment(tmp_path / str(i), recipe)
        if id in FEW_SHOT_ROWS:
            score_few_shot_row(x, 0, id, (0, 1), "val")
        else:
            measure_row(x, 0, id, "val", controls=False)
        assert {*x.run.manifest.files} == {f"{part}-0.safetensors" for part in in_order(read_by(id), recipe)}, id


def test_the_settings_of_a_part_hold_those_of_all_that_it_is_made_from():
    for recipe in (*VARIANTS.values(), PAPER):
        for part in NEEDS:
            for other in in_order(made_from(part, recipe), recipe):
                assert fields_of(other, recipe) <= fields_of(part, recipe), (part, other)


def test_only_what_asked_rows_need_is_made(tmp_path):
    x = experiment(tmp_path)
    study = Study(folder=tmp_path, recipe=TINY, methods=("multitask", "cond_multitask"))
    jobs, needs = jobs_of(study, [0], x)
    assert [*jobs] == ["multitask-0", "cond_multitask-0", "rows/multitask-0", "rows/cond_multitask-0"]
    assert needs["cond_multitask-0"] == needs["rows/multitask-0"] == {"multitask-0"}
    for preset in PRESETS.values():  # the curves of a preset cost no training
        rows = {p for id in preset.methods for p in in_order(read_by(id), preset.recipe)}
        assert rows >= {p for id in preset.few_shot_methods for p in in_order(read_by(id), preset.recipe)}
    few = PRESETS["scenes"].only(["cond_multitask", "hvae_hyperldm_g1~paper"])
    assert few.few_shot_methods == () and few.paper_methods == ("hvae_hyperldm_g1",)
    with pytest.raises(ValueError, match="got multitask~paper"):
        PRESETS["scenes"].only(["multitask~paper"])


def test_calls_in_a_circle_are_refused():
    with pytest.raises(ValueError, match=r"circle among \['a', 'b'\]"):
        list(as_ready(Here(), print, {"a": (), "b": ()}, {"a": ["b"], "b": ["a"]}))


def test_what_two_recipes_make_by_the_same_settings_is_made_once(tmp_path):
    ours, theirs = TINY, replace(TINY, hyperldm=replace(TINY.hnet, steps=5), clamp=2.5)
    methods = ("multitask", "hvae_hyperldm_g1")
    studies = {
        Study(folder=tmp_path / name, recipe=recipe, methods=methods, label=label): experiment(tmp_path / name, recipe)
        for name, label, recipe in (("ours", "", ours), ("theirs", "theirs/", theirs))
    }
    run_grid(Source(), studies, [0])
    jobs = [json.loads(line)["job"] for study in studies for line in open(study.folder / "log.jsonl")]
    assert len(jobs) == len({*jobs}) and jobs.count("hvae_latents-0") == 1
    assert {job for job in jobs if job.startswith("theirs/")} == {
        "theirs/hvae_hyperldm-0",
        "theirs/rows/multitask-0",
        "theirs/rows/hvae_hyperldm_g1-0",
    }
    x, y = studies.values()
    for part in ("multitask-0", "hvae-0", "hvae_latents-0"):
        assert x.run.load(part).keys() == y.run.load(part).keys()
        assert all(torch.equal(a, b) for a, b in zip(x.run.load(part).values(), y.run.load(part).values()))
    alone = experiment(tmp_path / "alone", theirs)
    assert torch.equal(alone.hvae(0)(alone.hvae(0).z0[None]), y.hvae(0)(y.hvae(0).z0[None]))
