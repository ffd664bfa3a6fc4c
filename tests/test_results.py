"results.json: exactly the documented format, refused when it is not, the same numbers as by hand."

import json
import re
from pathlib import Path

import msgspec
import pytest
import torch

from hyperclip_nb.core.files import FileError
from hyperclip_nb.core.runs import Run
from hyperclip_nb.evaluation.calibration import Probabilities, Scored, calibration_error
from hyperclip_nb.evaluation.results import (
    Results,
    calibration_table,
    controls_table,
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


@pytest.fixture(scope="module")
def measured(scores):
    "The same, with probabilities, and cells of two."
    g = torch.Generator().manual_seed(3)

    def probabilities():
        bins = torch.randint(1, 9, (3, 15, 1), generator=g).double() * torch.tensor([1.0, 0.5, 1.0])
        return Probabilities(1 + torch.rand(3, 20, generator=g, dtype=torch.float64), bins)

    rows = {
        id: Scored(value, probabilities(), probabilities(), torch.rand(3, generator=g) + 1, torch.rand(3, 9) * 100)
        if value.ndim == 2
        else value
        for id, value in scores.items()
    }
    rows["hvae_hyperldm_g1.5"] = rows["question_regression"] = rows["hvae_hyperldm_g1.5@10"]
    rows["cond_multitask@10"] = rows["cond_multitask"]
    table = tabulate(
        rows,
        n=torch.full((20,), 5),
        dataset="x",
        world_seed=0,
        seeds=[0, 1, 2],
        wall_s=1,
        resamples=200,
        tasks={"test": 20},
        cells=[str(i // 2) for i in range(20)],
    )
    return rows, table


def test_probabilities_stand_in_the_table(measured, tmp_path):
    rows, results = measured
    found, row = rows["multitask"], results.row("multitask")
    assert results.cells == 10 and -1 <= row.icc <= 1 and results.row("chance").raw is msgspec.UNSET
    for kind in ("raw", "tempered"):
        written, was = getattr(row, kind), getattr(found, kind)
        assert written.nll == pytest.approx(was.nll.mean().item(), abs=1e-4)
        assert written.of_questions == pytest.approx(was.nll.mean(0).tolist(), abs=1e-3)
        assert written.ece == pytest.approx(calibration_error(was.bins).mean().item(), abs=1e-3)
        assert torch.tensor(written.bins).equal(was.bins.float())
    assert row.temperature == pytest.approx(found.temperature.tolist(), abs=1e-3)
    assert row.validation == pytest.approx(found.validation.mean().item(), abs=1e-3)
    assert results.row("cond_multitask+shuffled").raw.bins is msgspec.UNSET  # only its summary
    gap = results.row("cond_multitask").vs["multitask"]
    difference = (rows["cond_multitask"].tempered.nll - found.tempered.nll).mean().item()
    assert gap.nll == pytest.approx(difference, abs=1e-4) and gap.nll_ci95[0] <= gap.nll <= gap.nll_ci95[1]
    path = write_results(tmp_path, results)
    assert read_results(path) == results
    lines = path.read_text().splitlines()
    assert sum('"ci95"' in line for line in lines) == sum("]" in line and '"ci95"' in line for line in lines)
    assert len(calibration_table(results).splitlines()) == 2 + sum(
        not Method.parse(row.method).control and row.raw is not msgspec.UNSET for row in results.rows
    )


def test_ten_networks_are_compared_with_ten(measured):
    vs = measured[1].row("hvae_hyperldm_g1.5@10").vs
    assert {"hvae_hyperldm_g1.5", "cond_multitask", "cond_multitask@10", "question_regression"} <= set(vs)
    assert "question_regression@10" not in vs and "cond_multitask@10" not in measured[1].row("few_shot").vs
    lines = to_markdown(measured[1]).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "10 cells" in lines[-1] and "intra-class correlation" in lines[-1]
    head = controls_table(measured[1]).splitlines()[0]
    assert "− Question regression" in head and "− Unconditional multitask" in head


def test_a_table_of_an_earlier_version_is_read_and_shown():
    for path in sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("*.json")):
        if '"rows"' in path.read_text() and '"method"' in path.read_text():
            results = read_results(path)
            assert to_markdown(results) and controls_table(results)


def test_json_has_the_documented_fields(results):
    written = json.loads(msgspec.json.encode(results))
    assert list(written) == ["schema", "dataset", "world_seed", "seeds", "tasks", "rows", "wall_s"]
    assert written["schema"] == 1 and written["seeds"] == [0, 1, 2] and written["wall_s"] == 412.0
    row = next(r for r in written["rows"] if r["method"] == "cond_multitask")
    assert list(row) == ["method", "label", "accuracy", "std", "ci95", "vs", "chosen", "pooled"]
    assert row["chosen"] == {"steps": 1500} and list(row["vs"]["multitask"]) == ["diff", "ci95"]


def test_a_resumed_run_does_not_claim_the_last_calls_seconds_for_the_whole(results):
    assert to_markdown(results).rstrip().endswith("412 s in all.")
    text = to_markdown(msgspec.structs.replace(results, resumed=True))
    assert "412 s in all" not in text and "The last call took 412 s" in text


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
        (spoil(guided={"10": "absent"}), r"absent"),
        (lambda t: t["rows"][0].update(raw={"nll": -1, "ci95": [0, 1], "ece": 3}), r"\$\.rows\[0\]\.raw\.nll"),
        (lambda t: t["rows"][0].update(raw={"nll": 1, "ci95": [2, 1], "ece": 3}), r"lower end first"),
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
