"results.json: exactly the documented format, refused when it is not, the same numbers as by hand."

import json
import re

import msgspec
import pytest
import torch

from hyperclip_nb.core.files import FileError
from hyperclip_nb.core.runs import Run
from hyperclip_nb.evaluation.results import (
    Results,
    family_table,
    read_results,
    tabulate,
    to_markdown,
    write_results,
)
from hyperclip_nb.evaluation.rows import Method


@pytest.fixture(scope="module")
def scores():
    g = torch.Generator().manual_seed(0)
    draw = lambda mean, seeds=3: (mean + 10 * torch.randn(seeds, 20, generator=g, dtype=torch.float64)).clamp(0, 100)
    return {
        "few_shot": draw(60),
        "multitask": draw(50),
        "chance": torch.full((20,), 20.0),
        "cond_multitask": draw(54),
        "cond_multitask+shuffled": draw(48),
        "hvae_hyperldm_g1.5@10": draw(56),
        "hvae_hyperldm_g1.5@10+shuffled": draw(47),
    }


@pytest.fixture(scope="module")
def results(scores):
    return tabulate(
        scores,
        n=torch.arange(1, 21),
        dataset="scenes",
        world_seed=0,
        seeds=[0, 1, 2],
        wall_s=412,
        resamples=500,
        tasks={"train": 579, "val": 95, "test": 20},
        chosen={"cond_multitask": {"steps": 1500}},
    )


def test_numbers_by_hand(scores, results):
    row, values = results.row("multitask"), scores["multitask"]
    assert row.accuracy == pytest.approx(values.mean().item(), abs=1e-3)
    assert row.std == pytest.approx(values.mean(1).std(correction=1).item(), abs=1e-3)
    assert row.pooled == pytest.approx(((values * torch.arange(1, 21)).sum(1) / 210).mean().item(), abs=1e-3)
    assert row.ci95[0] < row.accuracy < row.ci95[1]
    assert results.row("chance").std == 0 and results.row("chance").ci95 == (20, 20)
    gap = results.row("cond_multitask").vs["multitask"]
    assert gap.diff == pytest.approx((scores["cond_multitask"] - values).mean().item(), abs=1e-3)


def test_what_is_compared_with_what(results):
    assert set(results.row("multitask").vs) == {"cond_multitask"}
    assert set(results.row("few_shot").vs) == {"multitask", "cond_multitask"}
    assert set(results.row("hvae_hyperldm_g1.5@10+shuffled").vs) == {
        "multitask",
        "cond_multitask",
        "hvae_hyperldm_g1.5@10",
    }
    assert [r.method for r in results.rows] == sorted(
        (r.method for r in results.rows), key=lambda id: Method.parse(id).place
    )


def test_json_has_the_documented_fields(results):
    written = json.loads(msgspec.json.encode(results))
    assert list(written) == ["schema", "dataset", "world_seed", "seeds", "tasks", "rows", "wall_s"]
    assert written["schema"] == 1 and written["seeds"] == [0, 1, 2] and written["wall_s"] == 412.0
    row = next(r for r in written["rows"] if r["method"] == "cond_multitask")
    assert list(row) == ["method", "label", "accuracy", "std", "ci95", "vs", "chosen", "pooled"]
    assert row["chosen"] == {"steps": 1500} and list(row["vs"]["multitask"]) == ["diff", "ci95"]


def test_the_example_of_the_design_is_read(tmp_path):
    rows = [
        {
            "method": "multitask",
            "label": "Unconditional multitask",
            "accuracy": 50,
            "std": 0.2,
            "ci95": [46.6, 53.4],
            "vs": {},
            "chosen": {},
        },
        {
            "method": "cond_multitask",
            "label": "Conditional multitask",
            "accuracy": 53.5,
            "std": 0.2,
            "ci95": [50.1, 56.8],
            "vs": {"multitask": {"diff": 3.5, "ci95": [2.6, 4.5]}},
            "chosen": {"steps": 1500},
        },
    ]
    example = {
        "schema": 1,
        "dataset": "scenes",
        "world_seed": 0,
        "seeds": [0, 1, 2],
        "tasks": {"train": 579, "val": 95, "test": 225},
        "rows": rows,
        "wall_s": 412.0,
    }
    (tmp_path / "results.json").write_text(json.dumps(example))
    assert read_results(tmp_path).row("cond_multitask").vs["multitask"].diff == 3.5
    assert json.loads(msgspec.json.encode(read_results(tmp_path))) == example


@pytest.mark.parametrize("as_run", [False, True])
def test_round_trip(results, tmp_path, as_run):
    where = Run.create(tmp_path / "run", {}) if as_run else tmp_path
    path = write_results(where, results, name="scenes")
    assert path.name == "scenes.json" and read_results(path) == results
    assert path.with_suffix(".md").read_text(encoding="utf-8") == to_markdown(results)
    if as_run:
        assert {"scenes.json", "scenes.md"} <= set(where.manifest.files)
    first = path.read_bytes()
    assert write_results(where, read_results(path), name="scenes").read_bytes() == first


def spoil(**changes):
    def change(table):
        for place, value in changes.items():
            at = table["rows"][0] if place in table["rows"][0] else table
            at[place] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (spoil(schema=2), r"\$\.schema"),
        (spoil(accuracy=101), r"\$\.rows\[0\]\.accuracy"),
        (spoil(accuracy="53"), r"\$\.rows\[0\]\.accuracy"),
        (spoil(ci95=[60, 40]), r"lower end first, got \[60.0, 40.0\].*\$\.rows\[0\]"),
        (spoil(ci95=[1]), r"\$\.rows\[0\]\.ci95"),
        (spoil(method="No Such"), r"method id.*\$\.rows\[0\]"),
        (spoil(vs={"absent": {"diff": 1, "ci95": [0, 2]}}), r"absent"),
        (spoil(vs={"multitask": {"diff": 1}}), r"ci95.*\$\.rows\[0\]\.vs"),
        (spoil(std=-1), r"\$\.rows\[0\]\.std"),
        (lambda t: t.pop("wall_s"), "wall_s"),
        (lambda t: t.update(extra=1), "extra"),
        (lambda t: t["rows"].append(t["rows"][0]), r"once, got \['chance'\]"),
    ],
)
def test_a_table_that_is_none_is_refused_with_file_and_place(results, tmp_path, change, message):
    path = write_results(tmp_path, results)
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(FileError, match="(?s)" + re.escape(str(path)) + ".*" + message):
        read_results(path)


def test_no_table_is_refused(tmp_path):
    with pytest.raises(FileError, match="found none"):
        read_results(tmp_path / "nothing.json")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(FileError, match="expected JSON"):
        read_results(tmp_path)


def test_one_seed_has_no_std(scores):
    one = {m: v.reshape(-1, 20)[:1] for m, v in scores.items()}
    results = tabulate(
        one, n=torch.ones(20), dataset="x", world_seed=None, seeds=[7], tasks={"test": 20}, wall_s=1, resamples=100
    )
    assert {row.std for row in results.rows} == {None}
    assert "world seed" not in to_markdown(results) and "over 1 seed;" in to_markdown(results)
    assert msgspec.convert(json.loads(msgspec.json.encode(results)), Results) == results


def test_scores_of_other_shape_or_unknown_choices_are_refused(scores):
    options = dict(
        n=torch.ones(20), dataset="x", world_seed=0, seeds=[0, 1, 2], tasks={"test": 20}, wall_s=1, resamples=10
    )
    for wrong in ((2, 20), (20, 3), (60,)):
        with pytest.raises(ValueError, match="of multitask, got"):
            tabulate({"multitask": torch.zeros(*wrong)}, **options)
    with pytest.raises(ValueError, match="multitusk"):
        tabulate({"multitask": torch.zeros(3, 20)}, chosen={"multitusk": {}}, **options)
    with pytest.raises(ValueError, match="mine"):
        tabulate({"mine": torch.zeros(3, 20)}, **options)
    assert tabulate({"mine": torch.zeros(3, 20)}, labels={"mine": "Mine"}, **options).rows[0].label == "Mine"


def test_markdown(results):
    lines = to_markdown(results).splitlines()
    assert lines[0].split("|")[5].strip() == "− Unconditional multitask"
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in lines[2 : 2 + len(results.rows)]
    }
    assert {len(c) for c in cells.values()} == {7}
    for row in results.rows:
        gap = row.vs.get("multitask")
        if gap:
            assert cells[row.label][3].startswith("**") == (gap.ci95[0] > 0 or gap.ci95[1] < 0)
    assert cells["Conditional multitask"][-1] == "steps = 1500"


def test_family_table(scores):
    table = family_table(
        {"multitask": scores["multitask"], "chance": scores["chance"]}, ["a"] * 15 + ["b"] * 5
    ).splitlines()
    assert table[0] == "| Method | a (15) | b (5) |" and table[2] == "| Chance | 20.0 | 20.0 |"
    assert table[3].endswith(f"| {scores['multitask'][:, 15:].mean():.1f} |")
