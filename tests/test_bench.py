import pytest
from test_cli import call

from hyperclip_nb.cli import bench


def test_outside_of_a_checkout_it_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.hyperclip_nb, "__file__", str(tmp_path / "hyperclip_nb" / "__init__.py"))
    code, text = call(capsys, "bench", "--quick")
    assert code == 2 and "checkout" in text and str(tmp_path) in text


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--only", "a,g"], "got g"),
        (["--device", "tpu"], "tpu"),
        (["--core", "one"], "one"),
        (["--core", "9999"], "core: expected one of 0"),
        (["--core", "-1"], "core: expected one of 0"),
        (["--out", "/"], "out: expected a file to write, got /"),
    ],
)
def test_wrong_arguments_get_a_sentence(capsys, arguments, said):
    code, text = call(capsys, "bench", *arguments)
    assert code == 2 and said in text and "Traceback" not in text


@pytest.mark.parametrize("id", ["latency_20", "sample_g1"])
def test_the_benchmark_compares_before_it_measures(id):
    "Product and plain way agree at the paper's scale; a row whose sides differ ends the run."
    speed = bench.benchmark_module()
    row = speed.ROWS[id](id, "same", True, "cpu")
    found = speed.compare(row)
    assert found["difference"] <= 1e-4 and found["flops"] > 0
    pairs = row.compare()
    row.compare = lambda: [(mine + 1e-3 * plain.abs().max(), plain) for mine, plain in pairs]
    with pytest.raises(SystemExit, match=id):
        speed.compare(row)
