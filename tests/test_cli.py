import json

import pytest

from hyperclip_nb.cli.commands import main


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    out = capsys.readouterr()
    return end.value.code, out.out + out.err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["adapt"], "equired"),
        (["demo", "--steps", "3"], "--steps"),
        (["reproduce", "--seeds", "0"], "at least 1 seed"),
        (["reproduce", "--methods", "magic"], "magic"),
        (["reproduce", "--tasks", "x"], "both tasks and features"),
        (["fly"], "fly"),
        (["demo", "--seeds", "0"], "at least 1 seed"),
        (["demo", "--seeds", "many"], "many"),
        (["adapt", "What?", "--run", "no-such-run"], "no-such-run"),
        (["adapt", "What?", "--samples", "0"], "samples: expected a whole number from 1 to 100, got 0"),
        *(
            (["adapt", "What?", "--gamma", γ], "gamma: expected a number from 0 to 10")
            for γ in ("nan", "inf", "-3", "1e9")
        ),
        (["adapt", "What?", "--images", "5000"], "images: expected"),
        (["adapt", "What?", "--seed", "-1"], "seed: expected"),
        *((["reproduce", "--device", name], "expected a device that is there") for name in ("banana", "meta", "cpu:3")),
        (["demo", "--device", "cuda:99"], "expected a device that is there"),
        (["demo", "--workers", "-2"], "workers: expected 0 or more"),
        (["reproduce", "--world", "-1"], "world: expected 0 or more"),
        (["meta-vqa"], "build"),
        (["meta-vqa", "build", "--vqa", "x"], "--out"),
        (["meta-vqa", "build", "--vqa", "nowhere", "--out", "x"], "nowhere"),
        (["meta-vqa", "check"], "DIR"),
        (["meta-vqa", "check", "nowhere"], "found neither"),
        (["features", "--tasks", "nowhere", "--images", "x", "--out", "x", "--model", "small"], "nowhere"),
        (
            ["features", "--tasks", "nowhere", "--images", "x", "--out", "x", "--model", "small", "--batch", "0"],
            "--batch",
        ),
        (
            ["features", "--tasks", "nowhere", "--images", "x", "--out", "x", "--model", "small", "--dtype", "float8"],
            "float8",
        ),
    ],
)
def test_wrong_arguments_get_a_sentence_and_exit_code_2(capsys, arguments, said):
    code, text = call(capsys, *arguments)
    assert code == 2 and said in text and "Traceback" not in text


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "expected a JSON file, found none"),
        ("methods: [multitask]", "expected JSON"),
        ({"methods": ["multitask"]}, "missing required field `grid`"),
        ({"methods": ["multitask"], "grid": {"multitask.lr": [0.1]}, "preset": "mine"}, "expected preset demo, scenes"),
        ({"methods": ["few_shot"], "grid": {"multitask.lr": [0.1]}}, "rows that see no picture"),
        ({"methods": ["magic"], "grid": {"multitask.lr": [0.1]}}, "magic"),
        ({"methods": ["multitask"], "grid": {"multitask.speed": [0.1]}}, "the nearest are multitask."),
        ({"methods": ["multitask"], "grid": {"multitask.lr": ["fast"]}}, "multitask.lr: expected float"),
        ({"methods": ["multitask"], "grid": {"multitask.lr": []}}, "at least 1 value of each setting"),
        ({"methods": ["multitask"], "grid": {"multitask.lr": [0.1]}, "seeds": 0}, "at least 1 seed"),
    ],
)
def test_a_sweep_s_file_is_checked_before_anything_is_done(capsys, tmp_path, content, said):
    file, out = tmp_path / "sweep.json", tmp_path / "run"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    code, text = call(capsys, "sweep", str(file), "--out", str(out))
    assert code == 2 and said in text and str(file) in text and "Traceback" not in text and not out.exists()


def test_a_cluster_that_is_none_is_named(capsys, tmp_path):
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({"preset": "smoke", "methods": ["multitask"], "grid": {"multitask.lr": [0.1]}}))
    for command in (["sweep", str(file)], ["reproduce", "--preset", "smoke"]):
        code, text = call(capsys, *command, "--out", str(tmp_path / "run"), "--cluster", "many")
        assert code == 2 and "cluster: expected local:N" in text and "got 'many'" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sweep", "--help"],
        ["--help"],
        ["demo", "--help"],
        ["adapt", "--help"],
        ["reproduce", "--help"],
        ["meta-vqa", "--help"],
        ["meta-vqa", "build", "--help"],
        ["meta-vqa", "check", "--help"],
        ["features", "--help"],
    ],
)
def test_help_is_there(capsys, arguments):
    code, text = call(capsys, *arguments)
    assert code in (0, None) and "hyperclip_nb" in text


def test_a_run_directory_without_weights_is_refused_and_left_as_it_was(capsys, tmp_path):
    from hyperclip_nb.core.runs import Run
    from hyperclip_nb.evaluation.recipe import Recipe

    run = Run.create(tmp_path / "run", {"dataset": "scenes", "world_seed": 0, "recipe": Recipe()})
    before = sorted(p.name for p in run.path.rglob("*"))
    code, text = call(capsys, "adapt", "What color is the cat?", "--run", str(run.path))
    assert code == 2 and "expected trained weights, found none" in text
    assert sorted(p.name for p in run.path.rglob("*")) == before


def test_a_run_directory_of_something_else_is_refused(capsys, tmp_path):
    from hyperclip_nb.core.runs import Run

    Run.create(tmp_path / "run", {"dataset": "other"})
    code, text = call(capsys, "adapt", "What color is the cat?", "--run", str(tmp_path / "run"))
    assert code == 2 and str(tmp_path / "run") in text and "of a run on the scenes" in text


def test_warnings_are_sentences(capsys, monkeypatch):
    import warnings

    from hyperclip_nb.cli import commands as cli

    monkeypatch.setattr(
        cli.Demo, "__call__", lambda self: warnings.warn("these words are unknown: zebra", stacklevel=2)
    )
    main(["demo"])
    assert capsys.readouterr().err == "hyperclip_nb: these words are unknown: zebra\n"
