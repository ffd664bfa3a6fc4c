"""How time and memory grow, and what fewer sampling steps cost.

    python benchmarks/scale.py growth      # time against the number of tasks and the largest task: growth.png
    python benchmarks/scale.py memory      # peak of a process with Meta-VQA, 8,700 COCO tasks, 100 views per task
    python benchmarks/scale.py samplers    # accuracy and time with 5 to 350 sampling steps
    python benchmarks/scale.py grid        # a comparison by 1 and 2 workers
    python benchmarks/scale.py builders    # features by 1 and 2 processes
    python benchmarks/scale.py tasks       # a data set of 100,000 tasks: time and memory until a batch can be drawn
    python benchmarks/scale.py views       # memory of fine-tuning and of an HVAE, by the number of views
    python benchmarks/scale.py questions   # kernel regression from 3,000 to 100,000 questions
    python benchmarks/scale.py largest     # the tables of docs/largest.md, from results/*.json

Figures go to `results/scale.json`, one entry per command. One thread; times are the processor's, so that others on
the machine don't count. `grid` and `builders` report both, and the machine's load before: wall time says something on
a quiet machine only.
"""

import json
import os
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

sys.path.insert(0, str(Path(__file__).parent))
from rows import LATENT, NET, E, Latency, RandomBank, alike, all_tasks, generator_network

from hyperclip_nb.basenet.network import set_accuracy
from hyperclip_nb.core.blocks import Standardizer
from hyperclip_nb.core.seeds import seeded
from hyperclip_nb.core.training import TrainConfig, run
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.tasks import Task
from hyperclip_nb.diffusion.denoisers import PUBLISHED_SIZE, PublishedDenoiser
from hyperclip_nb.diffusion.hyperldm import HyperLDM, LDMConfig, train_hyperldm
from hyperclip_nb.hypernet.metatrain import Adaptation, Episodes, adapt, fit_meta
from hyperclip_nb.hypernet.store import store_adaptations

FOLDER = Path(__file__).parent / "results"


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(work, repeats: int = 2) -> float:
    "Processor time, the best of some."
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def repeated(tasks: list[Task], count: int) -> list[Task]:
    "As many tasks as wanted: a choice of alike sizes, or copies under new names that share the images."
    if count <= len(tasks):
        return alike(tasks, count)
    import msgspec

    return [
        msgspec.structs.replace(tasks[i % len(tasks)], question=f"{i}: {tasks[i % len(tasks)].question}")
        for i in range(count)
    ]


def by_tasks() -> list[dict]:
    "One step of `store_adaptations` for more and more tasks."
    hnet, found = generator_network("cpu").requires_grad_(False), []
    for count in 100, 300, 870, 3_000:
        tasks = repeated(all_tasks(), count)
        tasks = TaskSet(tasks, RandomBank(tasks))
        store = partial(store_adaptations, hnet, tasks, Adaptation(steps=1), views=1)
        spent = seconds(store)
        found.append({"tasks": count, "seconds": spent, "examples": int(tasks.sizes("all").sum())})
        print(found[-1], flush=True)
        del tasks
    return found


def by_largest() -> list[dict]:
    "One gradient step for 32 tasks of which one grows."
    hnet, found = generator_network("cpu").requires_grad_(False), []
    few = sorted(alike(all_tasks(), 32), key=lambda task: len(task.support))[:31]  # the largest one is made by hand
    for size in 100, 400, 1_242, 4_000:
        giant = Task(
            question="the large one",
            answers=("a", "b"),
            prompts=("it is a", "it is b"),
            query=(("q", 0),),
            support=tuple((f"giant-{i}", i % 2) for i in range(size)),
        )
        tasks = TaskSet([*few, giant], RandomBank([*few, giant]))
        start = hnet.z0.detach()
        one = lambda batch: adapt(hnet, start, batch, Adaptation(steps=1))
        ragged = seconds(lambda: one(tasks.ragged(tasks.all_ids)))
        padded = seconds(lambda: one(tasks.batch(tasks.all_ids)))
        found.append({"largest": size, "examples": int(tasks.support_size.sum()), "ragged": ragged, "padded": padded})
        print(found[-1], flush=True)
    return found


def draw(found: dict) -> None:
    "The picture of `growth`."
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), dpi=90, layout="constrained")
    counts, times = ([row[key] for row in found["tasks"]] for key in ("tasks", "seconds"))
    left.loglog(counts, times, "o-", color="#0072B2")
    left.loglog(counts, [times[-1] * n / counts[-1] for n in counts], ":", color="0.5", label="proportional")
    left.set(xlabel="tasks", ylabel="seconds per latent step", title="Time grows with the number of tasks")
    left.legend(frameon=False)
    sizes = [row["largest"] for row in found["largest"]]
    right.loglog(sizes, [row["padded"] for row in found["largest"]], "o-", color="#D55E00", label="one padded batch")
    right.loglog(
        sizes, [row["ragged"] for row in found["largest"]], "o-", color="#009E73", label="parts of alike sizes"
    )
    right.set(
        xlabel="examples of the largest of 32 tasks", ylabel="seconds per latent step", title="What padding costs"
    )
    right.legend(frameon=False)
    right.set_yticks([0.2, 0.5, 1, 2, 5], labels=["0.2", "0.5", "1", "2", "5"], minor=False)
    right.minorticks_off()
    for ax in (left, right):
        ax.grid(alpha=0.3, which="major")
    fig.savefig(FOLDER / "growth.png")


def growth() -> dict:
    "Time against the number of tasks and against the largest one."
    found = {"tasks": by_tasks(), "largest": by_largest()}
    draw(found)
    return found


def memory() -> dict:
    "Meta-training on both kinds of tasks, storing, and diffusion training on 870 x 100 latents, in this process."
    generator, vqa = torch.Generator().manual_seed(0), all_tasks()
    pictures = torch.randint(82_783, (8_700, 5, 10), generator=generator).tolist()  # of COCO's training set
    coco = [
        Task(
            question=f"coco {t}",
            answers=tuple("abcde"),
            prompts=tuple(f"A picture of a {t} {c}" for c in "abcde"),
            support=tuple((f"coco-{i}", c) for c in range(5) for i in classes[c][:5]),
            query=tuple((f"coco-{i}", c) for c in range(5) for i in classes[c][5:]),
        )
        for t, classes in enumerate(pictures)
    ]
    tasks = TaskSet([*vqa, *coco], RandomBank([*vqa, *coco]))
    found = {"tasks": len(tasks), "images": len(tasks.images), "data_mb": peak_mb()}
    hnet = generator_network("cpu")
    whole = Episodes(support=None, query=None)
    updates = fit_meta(
        hnet, tasks, TrainConfig(steps=10**6), adaptation=Adaptation(steps=1), order="first", episodes=whole
    )
    next(updates)
    found["meta_training_mb"] = peak_mb()
    del updates, tasks
    for p in hnet.parameters():
        p.grad = None
    hnet.requires_grad_(False)
    vqa = TaskSet(vqa, RandomBank(vqa))
    latents = torch.empty(100, len(vqa), LATENT)
    latents[:1] = store_adaptations(hnet, vqa, Adaptation(steps=1), views=1)  # the other 99 need the same room again
    latents[1:] = latents[:1] + 0.1 * torch.randn(latents[1:].shape, generator=generator)
    found["storing_mb"] = peak_mb()
    ldm = HyperLDM.make(E, LATENT, Standardizer(latents), denoiser=PUBLISHED_SIZE, kind=PublishedDenoiser)
    run(train_hyperldm(ldm, latents, vqa.embeddings(), TrainConfig(steps=20, lr=2.5e-4), LDMConfig()))
    z = ldm.generate(vqa.embeddings()[:373], generator=generator, check=False)[0]  # hardly trained
    found["accuracy"] = set_accuracy(lambda ids: hnet(z[ids % 373]), vqa, NET).mean().item()
    found["peak_mb"] = peak_mb()
    print(found)
    return found


def samplers(draws: int = 5) -> dict:
    "Networks for the validation questions from a HyperLDM with 350 timesteps."
    from hyperclip_nb.evaluation.experiment import scenes_experiment

    x = scenes_experiment()
    r, latents, hnet, val = x.recipe, x.latents("hnet", 0), x.hnet(0), x.sets["val"]
    train, asked = (x.embedding(x.embeddings[split]) for split in ("train", "val"))
    ldm = HyperLDM.make(
        train.shape[1], r.latent_size, Standardizer(latents, r.scale), replace(r.diffusion, timesteps=350), r.denoiser
    )
    run(train_hyperldm(ldm, latents, train, r.hyperldm, r.ldm))
    found, paper = [], Latency("latency_20", "same", False, "cpu")
    for sampler in "ddpm", "ddim", "dpm":
        for steps in 5, 10, 20, 50, 350:
            z = ldm.generate(
                asked,
                gamma=1.5,
                sampler=sampler,
                steps=steps,
                samples=draws,
                clamp=r.clamp,
                generator=seeded(0, "samplers"),
            )
            with torch.no_grad():
                scores = [100 * set_accuracy(hnet(one), val, x.net).mean().item() for one in z]
            ms = 1e3 * seconds(
                lambda: paper.logits(sampler=sampler, steps=steps), 9
            )  # one question at the paper's scale, as in speed.py
            found.append(
                {
                    "sampler": sampler,
                    "steps": steps,
                    "accuracy": sum(scores) / draws,
                    "low": min(scores),
                    "high": max(scores),
                    "ms": ms,
                }
            )
            print(found[-1], flush=True)
    return {"gamma": 1.5, "draws": draws, "questions": len(val), "rows": found}


def spent() -> float:
    "Processor time of this process and of its children that have ended."
    of = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in of)


def measured(work) -> dict:
    began, before = time.perf_counter(), spent()
    work()
    return {"wall_s": time.perf_counter() - began, "processor_s": spent() - before}


ROWS_OF_GRID = (
    "multitask",
    "hnet_maml",
    "cond_multitask",
    "hnet_hyperldm_g1",
    "hvae_hyperldm_g1.5",
    "question_regression",
)


def grid() -> dict:
    "The same rows of the smoke test by one process and by two."
    import tempfile

    from hyperclip_nb.dataset.sources import scenes_bank
    from hyperclip_nb.evaluation.reproduce import reproduce

    scenes_bank()  # drawn and encoded before anything is timed
    found: dict = {"load": os.getloadavg()[0], "grid": []}
    for workers in 1, 2:
        with tempfile.TemporaryDirectory() as folder:
            cost = measured(
                lambda: reproduce("smoke", out=folder, methods=ROWS_OF_GRID, seeds=2, workers=workers)  # noqa: B023
            )
            log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        found["grid"].append({"workers": workers, "jobs": len(log), "jobs_s": sum(x["seconds"] for x in log), **cost})
        print(found["grid"][-1], flush=True)
    one, two = found["grid"]
    found["efficiency"] = one["wall_s"] / two["wall_s"] / 2
    found["processor time kept"] = one["processor_s"] / two["processor_s"]
    print(found)
    return found


def builders() -> dict:
    "Pictures of the scenes into one bank, by one process and by two."
    import tempfile
    from multiprocessing import get_context

    found: dict = {"load": os.getloadavg()[0], "rows": []}
    for count in 1, 2:
        with tempfile.TemporaryDirectory() as folder:
            processes = [get_context("spawn").Process(target=encode, args=(folder,)) for _ in range(count)]

            def build() -> None:
                for process in processes:  # noqa: B023
                    process.start()
                for process in processes:  # noqa: B023
                    process.join()

            cost = measured(build)
            if any(process.exitcode for process in processes):
                raise SystemExit("a builder failed")
        found["rows"].append({"processes": count, "pictures/s": PICTURES / cost["wall_s"], **cost})
        print(found["rows"][-1], flush=True)
    return found


PICTURES = 4_096


def encode(folder: str) -> None:
    "A builder of one bank: drawn scenes, the small CLIP, pieces of 512 pictures."
    from hyperclip_nb.dataset.features import build_bank
    from hyperclip_nb.dataset.questions import Question, draw_images, image_id
    from hyperclip_nb.dataset.small_clip import load_small_clip

    torch.set_num_threads(1)
    images = [image_id(0, Question("color", "creature"), i) for i in range(PICTURES)]
    task = Task(
        question="?",
        answers=("a", "b"),
        prompts=("it is a", "it is b"),
        support=tuple((image, 0) for image in images),
        query=(),
    )
    build_bank(Path(folder) / "bank", load_small_clip(), [task], draw_images, shard=512, batch_size=64, workers=0)


TASKS, VIEWS, P, Z = 100_000, 100, 394_240, 128


def elsewhere(*arguments: object) -> dict:
    "A part of a command in a process of its own, so that its peak of memory is its own."
    import subprocess

    command = [sys.executable, __file__, "--part", *map(str, arguments)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    print(found, flush=True)
    return found


def part_tasks(count: int) -> dict:
    "Tasks of 50 pictures out of 123,287, as extended COCO tasks are; features as of ViT-B-32, in half precision."
    from hyperclip_nb.dataset.tasks import load_tasks, save_tasks

    generator, empty = torch.Generator().manual_seed(0), peak_mb()
    first = torch.randint(123_287, (count, 1), generator=generator)
    pictures = ((first + 2_003 * torch.arange(50)) % 123_287).view(count, 5, 10).tolist()
    tasks = [
        Task(
            question=f"coco {t}",
            answers=tuple("abcde"),
            prompts=tuple(f"A picture of a {t % 500} {c}" for c in "abcde"),
            support=tuple((f"coco-{i}", c) for c in range(5) for i in classes[c][:5]),
            query=tuple((f"coco-{i}", c) for c in range(5) for i in classes[c][5:]),
        )
        for t, classes in enumerate(pictures)
    ]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        save_tasks(path, tasks)
        size, reading = path.stat().st_size / 1e6, seconds(lambda: load_tasks(path), 1)
    listed = peak_mb()
    began = time.process_time()
    together = TaskSet(tasks, RandomBank(tasks))
    made = time.process_time() - began
    batch = seconds(lambda: together.ragged(torch.randperm(count, generator=generator)[:32], "all"), 5)
    return {
        "tasks": count,
        "file_mb": size,
        "read_s": reading,
        "set_s": made,
        "batch_ms": 1e3 * batch,
        "empty_mb": empty,
        "tasks_mb": listed - empty,
        "peak_mb": peak_mb(),
    }


def tasks_() -> dict:
    return {"rows": [elsewhere("tasks", count) for count in (10_000, 30_000, 100_000)]}


def part_views(views: int, where: str) -> dict:
    "Fine-tune 16 tasks, fit an HVAE's directions, train it a little, encode all."
    import re
    import tempfile
    import threading

    from hyperclip_nb.basenet.adapter import AdapterNet
    from hyperclip_nb.core.files import mapped
    from hyperclip_nb.hypernet.finetune import draw_views, finetune
    from hyperclip_nb.hypernet.hvae import HVAE, PAPER_HVAE_SIZE, hvae_latents, train_hvae
    from hyperclip_nb.hypernet.hypernetworks import MNet

    status = Path("/proc/self/status")
    own = lambda: int(re.search(r"RssAnon:\s+(\d+)", status.read_text())[1]) / 1024
    done, most = threading.Event(), [own()]

    def watch() -> None:
        while not done.wait(0.005):
            most.append(max(most[-1], own()))

    net, tasks = AdapterNet(E, 16), alike(all_tasks(), 16)
    tasks = TaskSet(tasks, RandomBank(tasks))
    model = MNet(net).requires_grad_(False)
    before = own()
    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        shape = (views, len(tasks), net.size)
        out = mapped(shape, folder) if where == "file" else None
        weights = finetune(model, tasks, Adaptation(steps=1), draw_views(tasks, views), out=out)
        hvae = HVAE.make(net, weights, model.z0.detach(), replace(PAPER_HVAE_SIZE, components=32))
        run(train_hvae(hvae, weights, train=TrainConfig(steps=20)))
        latents = hvae_latents(hvae, weights)[0]
    done.set()
    watcher.join()
    return {
        "where": where,
        "views": views,
        "weights_mb": weights.numel() * 4 / 2**20,
        "own_mb": most[-1] - before,
        "sum": latents.double().sum().item(),
    }


def views_() -> dict:
    return {"rows": [elsewhere("views", views, where) for where in ("memory", "file") for views in (32, 64, 128, 256)]}


def part_questions(count: int, landmarks: int) -> dict:
    "Latents that eight directions of a question decide, and noise; 2,000 new questions."
    from hyperclip_nb.guidance.question_regression import KernelRegression

    generator, empty = torch.Generator().manual_seed(0), peak_mb()
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    first, second = normal(8, LATENT), normal(8, LATENT)
    truth = lambda e: (e[:, :8] @ first / 3).tanh() + (e[:, :8] @ second / 3).sin()
    e, new = normal(count, 16), normal(2_000, 16)
    z = truth(e) + 0.3 * normal(count, LATENT)
    began = time.process_time()
    regression = KernelRegression.fit(e, z, bandwidth=1.0, ridge=1.0, landmarks=landmarks or None)
    spent = time.process_time() - began
    left = ((regression(new) - truth(new)).square().mean() / truth(new).var(0).mean()).item()
    more = {"seconds": spent, "own_mb": peak_mb() - empty, "unexplained": left}
    return {"questions": count, "landmarks": len(regression.train), **more}


def questions_() -> dict:
    cases = (3_000, 0), (10_000, 0), (10_000, 4_096), (10_000, 1_024), (30_000, 0), (100_000, 0)
    return {"rows": [elsewhere("questions", *case) for case in cases]}


def largest() -> dict:
    "What 100,000 tasks and COCO's pictures take, from measured cost per unit."
    unit = {row["part"]: row for row in json.loads((FOLDER / "paper_size.json").read_text())["costs"]["rows"]}
    known = json.loads((FOLDER / "scale.json").read_text())
    picture = json.loads((FOLDER / "features.json").read_text())["speed"][0]["bank processor ms per image"] / 1e3
    hours = lambda part, count: unit[part]["seconds"] * count / 3600
    views, fine = TASKS * VIEWS, TASKS * 8
    latents, weights = f"{views * Z * 4 / 1e9:.1f} GB, mapped", f"{fine * P * 4 / 1e9:,.0f} GB in a file"
    solved = known["questions"]["rows"][-1]
    data = known["tasks"]["rows"][-1]["peak_mb"] / 1e3
    rows = [
        ("features of COCO, ViT-B-32", "123,287 pictures", picture * 123_287 / 3600, "0.2 GB", "31 pieces"),
        ("HNet, meta-training", "27,000 steps", hours("hnet", 27_000), f"{data + 1:.1f} GB", "a batch's tasks"),
        ("fine-tuned weights", f"{fine:,} views", hours("fine-tuned weights", fine), weights, "no"),
        ("their components", f"{fine:,} views", hours("their components", fine), "2.4 GB", "no"),
        ("stored latents", f"{views:,} views", hours("stored latents", views), latents, "views"),
        ("the same for HyperCLIP", f"{views:,} views", hours("stored latents for HyperCLIP", views), latents, "views"),
        ("HyperLDM", "7,000 steps", hours("hnet_hyperldm", 7_000), latents, "a batch's latents"),
        (
            f"kernel regression, {solved['landmarks']:,} landmarks",
            "20 solutions",
            20 * solved["seconds"] / 3600,
            f"{solved['own_mb'] / 1e3:.1f} GB",
            "no",
        ),
    ]
    head = "| part | how much of it | core-hours | memory | side by side |\n|---|---|---|---|---|\n"
    table = head + "".join(f"| {a} | {b} | {c:,.1f} | {d} | {e} |\n" for a, b, c, d, e in rows)
    written("table", table)
    found = known["tasks"]["rows"]
    head = "| tasks | file | reading it | `TaskSet` | a batch of 32 | tasks | all |\n|---|---|---|---|---|---|---|\n"
    written(
        "tasks",
        head
        + "".join(
            f"| {r['tasks']:,} | {r['file_mb']:,.0f} MB | {r['read_s']:.1f} s | {r['set_s']:.1f} s "
            f"| {r['batch_ms']:.1f} ms | {r['tasks_mb'] / 1e3:.1f} GB | {r['peak_mb'] / 1e3:.1f} GB |\n"
            for r in found
        ),
    )
    found = {(r["views"], r["where"]): r for r in known["views"]["rows"]}
    head = (
        "| views | their weights | own memory, weights in memory | own memory, weights in a file |\n|---|---|---|---|\n"
    )
    written(
        "views",
        head
        + "".join(
            f"| {v} | {found[v, 'file']['weights_mb']:,.0f} MB | {found[v, 'memory']['own_mb']:,.0f} MB "
            f"| {found[v, 'file']['own_mb']:,.0f} MB |\n"
            for v in sorted({views for views, _ in found})
        ),
    )
    head = "| questions | landmarks | processor time | memory | unexplained variance |\n|---|---|---|---|---|\n"
    written(
        "questions",
        head
        + "".join(
            f"| {r['questions']:,} | {'all' if r['landmarks'] == r['questions'] else format(r['landmarks'], ',')} "
            f"| {r['seconds']:,.1f} s | {r['own_mb'] / 1e3:.1f} GB | {100 * r['unexplained']:.1f} % |\n"
            for r in known["questions"]["rows"]
        ),
    )
    return {row[0]: {"core_hours": row[2], "memory": row[3]} for row in rows}


def written(name: str, table: str) -> None:
    "Put a table into docs/largest.md."
    page = Path(__file__).parent.parent / "docs" / "largest.md"
    begin, end = f"<!-- {name} of scale.py -->\n", f"<!-- end of the {name} -->"
    before, found, rest = page.read_text().partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"{page}: expected {begin.strip()} and {end}")
    page.write_text(f"{before}{begin}{table}{end}{rest.partition(end)[2]}")


def main() -> None:
    commands = {
        "growth": growth,
        "memory": memory,
        "samplers": samplers,
        "grid": grid,
        "builders": builders,
        "tasks": tasks_,
        "views": views_,
        "questions": questions_,
        "largest": largest,
    }
    if sys.argv[1:2] == ["--part"]:
        torch.set_num_threads(1)
        part, *arguments = sys.argv[2:]
        parts = {"tasks": part_tasks, "views": part_views, "questions": part_questions}
        print(json.dumps(parts[part](*(int(a) if a.isdecimal() else a for a in arguments))))
        return
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise SystemExit(__doc__)
    torch.set_num_threads(1)
    path, found = FOLDER / "scale.json", commands[sys.argv[1]]()
    known = json.loads(path.read_text()) if path.exists() else {"schema": 1}
    path.write_text(json.dumps({**known, sys.argv[1]: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
