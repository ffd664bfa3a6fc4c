"""What the drill works on: a small data set, the long commands as jobs of processes, and what a folder holds.

The short form runs with the ordinary tests; HYPERCLIP_DRILL=long (`make drill`) does the same far more often."""

import contextlib
import hashlib
import json
import multiprocessing.forkserver
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import miniature
import numpy as np
import pytest
from PIL import Image
from test_experiment import TINY

from hyperclip_nb.cli.commands import main
from hyperclip_nb.core.training import TrainConfig
from hyperclip_nb.dataset.questions import Question, image_id, scene_of
from hyperclip_nb.dataset.tasks import Task, save_tasks
from hyperclip_nb.evaluation.presets import Preset, Source
from hyperclip_nb.evaluation.reproduce import reproduce

# imported before the processes part, so that none of them has to
import hyperclip_nb.cli.data  # noqa: F401 isort: skip
import hyperclip_nb.dataset.small_clip  # noqa: F401 isort: skip

LONG = os.environ.get("HYPERCLIP_DRILL") == "long"
SEED = int(os.environ.get("HYPERCLIP_DRILL_SEED", "0"))
PRESET = Preset(
    recipe=replace(TINY, multitask=TrainConfig(steps=450, lr=1e-3)),  # long enough for two checkpoints
    methods=("clip_zero_shot", "multitask", "hnet_maml", "hnet_hyperclip", "hvae_hyperldm_g1.5", "question_regression"),
    shots=(0, 1, "all"),
    kinds=("hnet",),
    seeds=1,
    audit=False,
)


# The data


def tasks_of(count: int, first: int, per_task: int = 10) -> list[Task]:
    "Tasks about pictures that they share, in the words of a child."
    things = ("cat", "dog", "ball", "cup", "hat", "star", "fish", "bird", "tree", "car", "key", "moon")
    tasks = []
    for t in range(first, first + count):
        examples = [(f"p{(3 * t + i) % 40:02}", i % 2) for i in range(per_task)]
        question, answers = f"What color is the {things[t]}?", ("red", "blue")
        prompts = tuple(f"The {things[t]} is {answer}" for answer in answers)
        half = per_task // 2
        tasks.append(
            Task(
                question=question,
                answers=answers,
                prompts=prompts,
                support=tuple(examples[:half]),
                query=tuple(examples[half:]),
            )
        )
    return tasks


def make_home(home: Path) -> Path:
    "Pictures, task files and VQA's four files."
    (home / "pictures").mkdir(parents=True)
    (home / "tasks").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(home / "pictures" / f"p{i:02}.png")
    for name, count, first in (("train", 5, 0), ("val", 3, 5), ("test", 4, 8)):
        save_tasks(home / "tasks" / f"{name}.json", tasks_of(count, first))
    write_vqa_files(home)
    return home


def write_vqa_files(home: Path, per_category: int = 26) -> None:
    "The files of `miniature`, without their photographs."
    shown: dict[str, dict] = {}
    for c, category in enumerate(miniature.ASKED):
        for i in range(per_category):
            scene = scene_of(image_id(0, Question("color", category), i))[1]
            shown.setdefault(category, {})[100 + c * per_category + i] = scene
    miniature.write_vqa(home / "vqa", miniature.entries(shown, per_category - 2, random.Random(0)))
    (home / "coco").mkdir()
    miniature.write_instances(home / "coco", shown)


# The jobs: long commands


def features(home: str, out: str, workers: int = 0, late: float = 0) -> None:
    "`late`: seconds after which a process that loads comes to itself."
    os.register_at_fork(after_in_child=partial(time.sleep, late))
    pictures, tasks = ["--images", f"{home}/pictures"], ["--tasks", f"{home}/tasks"]
    sizes = ["--workers", str(workers), "--batch", "2", "--shard", "8"]
    main(["features", *tasks, *pictures, "--out", out, "--model", "small", *sizes])


def build(home: str, out: str) -> None:
    main(["meta-vqa", "build", "--vqa", f"{home}/vqa", "--out", out])


def training(home: str, out: str, seeds: int = 1, workers: int = 1) -> None:
    source = Source(tasks=Path(home, "tasks"), features=Path(home, "features"))
    reproduce(PRESET, out=out, source=source, seeds=seeds, workers=workers)


JOBS: dict[str, Callable] = {"features": features, "build": build, "training": training}


# Processes


def _work(job: str, home: Path, out: Path, log: Path, **options) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    JOBS[job](str(home), str(out), **options)


def start(job: str, home: Path, out: Path, log: Path | None = None, **options):
    "The job in a process of its own, which the operating system can kill; its words go to OUT.log, or to `log`."
    context = get_context("forkserver")
    context.set_forkserver_preload(["drilling"])
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *filter(None, sys.path)])
    with pytest.MonkeyPatch.context() as patch:  # the server of processes imports what this process does
        patch.setenv("PYTHONPATH", path)
        patch.setenv("PYTHONSAFEPATH", "1")
        multiprocessing.forkserver.ensure_running()
    process = context.Process(target=_work, args=(job, home, out, log or Path(f"{out}.log")), kwargs=options)
    process.start()
    return process


def finish(job: str, home: Path, out: Path, **options) -> float:  # seconds
    "Let a job run to its end."
    began, process = time.monotonic(), start(job, home, out, **options)
    process.join(300)
    assert process.exitcode == 0, Path(f"{out}.log").read_text()[-2000:]
    return time.monotonic() - began


_made: list[tuple[Path, dict[str, float]]] = []


def finished(factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:  # the folder; seconds of each job
    "The data, and what each job makes of them undisturbed, in a folder of its name. Made once; not to be changed."
    if not _made:
        home = make_home(factory.mktemp("drill") / "home")
        _made.append((home, {job: finish(job, home, home / job) for job in JOBS}))
    return _made[0]


def kill(process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode is not None


# What a folder holds


def content(folder: Path) -> dict[str, str]:  # name -> hash of what decides; locks and times are not listed, debris is
    "All files below a folder; how long a run took does not count."
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name == "log.jsonl" or path.name.startswith(".") and path.name.endswith("lock"):
            continue
        data = path.read_bytes()
        if path.name == "results.json":
            timeless = {k: v for k, v in json.loads(data).items() if k not in ("wall_s", "resumed")}
            data = json.dumps(timeless).encode()
        if path.name == "results.md":
            data = re.sub(rb"[\d,]+ s in all\.|The last call took [\d,]+ s, and found[^.]*\.", b"", data)
        if path.name == "manifest.json" and "config" in (manifest := json.loads(data)):
            files = {file: entry for file, entry in manifest["files"].items() if not file.startswith("results.")}
            data = json.dumps({**manifest, "files": files}, sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


long_only = pytest.mark.skipif(not LONG, reason="part of the long form: make drill")
