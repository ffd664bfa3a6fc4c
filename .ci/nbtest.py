"""Test every notebook: python .ci/nbtest.py [options of nbdev_test].

Notebooks share trained parts. Each would train what it finds missing, and two side by side would do the same work
twice. So the parts are made first, once, by two processes; then nbdev_test runs all notebooks. (`nbdev_test` alone
passes, too; it takes longer on a fresh clone.)
"""

import os
import subprocess
import sys
import time

from hyperclip_nb import scenes_bank, scenes_experiment


def train(kind: str) -> None:
    "The parts that more than one notebook opens, of one weight generator."
    x = scenes_experiment()
    x.hyperldm(kind, 0)
    x.hyperclip(kind, 0)
    x.conditional(0, condition="clip" if kind == "hvae" else None)


def main() -> int:
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2])
        return 0
    began = time.time()
    print("parts that several notebooks share:", flush=True)
    scenes_bank()  # features of the pictures, once, before two processes ask for them
    trainers = [subprocess.Popen([sys.executable, __file__, "--train", kind]) for kind in ("hnet", "hvae")]
    if any([trainer.wait() for trainer in trainers]):
        return 1
    print(f"parts are ready: {time.time() - began:.0f} s", flush=True)
    options = sys.argv[1:] or ["--n_workers", str(min(2, os.cpu_count() or 1)), "--timing"]
    return subprocess.call(["nbdev_test", *options])


if __name__ == "__main__":
    sys.exit(main())
