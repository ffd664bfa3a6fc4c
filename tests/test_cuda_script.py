"""`benchmarks/cuda.sh` is run on GPUs that nobody has at hand when it is written: here, that it runs at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hyperclip_nb.cli import bench

ROOT = Path(bench.hyperclip_nb.__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("cuda") / "results" / "cuda.json"
    command = [str(ROOT / "benchmarks" / "cuda.sh"), "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return json.loads(out.read_text())


def test_it_runs_everything_small_on_a_cpu(found):
    assert [*found] == ["schema", "tiny", "machine", *gpu.SECTIONS]
    assert found["tests"]["skipped"] > 40 and "failed" not in found["tests"]
    assert found["parity"]["worst"] == 0 and not found["parity"]["errors"] and len(found["parity"]["rows"]) > 30
    fewer = found["precision"]
    assert fewer["worst"] == 0 and len(fewer["parity_of_tf32"]) > 30  # on a CPU the switch does nothing
    assert all(0 < rows["bfloat16"]["difference"] < 0.2 for rows in fewer["speed"].values())
    assert [row["id"] for row in found["speed"]["rows"]] == ["latency_20"]


def test_a_tenth_of_a_seed_has_its_parts_and_what_follows(found):
    seed = found["seed"]
    assert seed["finished"] and {"multitask-0", "hnet-0", "hvae-0", "hvae_hyperldm-0"} <= seed["parts_s"].keys()
    assert seed["extrapolated_minutes"] == pytest.approx(10 * seed["seconds"] / 60)
    assert {"multitask", "hnet_maml", "hnet_hyperclip", "hvae_hyperldm_g1"} <= seed["accuracy"].keys()


def test_a_tenth_is_a_tenth():
    from hyperclip_nb.evaluation.presets import PRESETS

    whole = PRESETS["paper"].recipe
    short = gpu.a_tenth(whole)
    assert short.hnet.steps == round(whole.hnet.steps / 10) and short.hvae_training.epochs == whole.hvae_training.epochs


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "no GPU that torch can use" in capsys.readouterr().err
