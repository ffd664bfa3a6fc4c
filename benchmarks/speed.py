"""How fast the product is: against the plain way of doing the same (`reference.py`), and against what the processor
allows.

    python benchmarks/speed.py [--quick] [--only a,b,sample_g1] [--core 0] [--device cpu|cuda] [--out FILE]

Each row runs in two processes that live as long as the row, one for either side, driven in turn (A B A B) on one core
with one thread:
a warm-up, then the repetitions, five of them or as many as fit into five seconds. Before that a third process
compares the numbers of
both sides; a row that differs by more than 1e-4 of the numbers' scale ends the run. All processes are forks of this
one, which does
nothing itself, so a peak of memory is that of the interpreter, the libraries and one side of one row. Large tensors
lie on huge pages
where the system has them (a switch of torch's). The speed of the core itself is measured again between rows, and a
row's limit is
counted with the faster one of the measurements before and after it: on a shared machine it changes from minute to
minute. Task sizes
are Meta-VQA's where HYPERCLIP_META_VQA names the folder of its files, else drawn like them; features are random,
which no kernel can
tell.

The rows, and how their limits are counted, are in `rows.py`.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch, for both sides alike
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from rows import ROWS, Row, all_tasks  # noqa: E402

from hyperclip_nb.basenet.fast.layers import product

RESULTS = Path(__file__).parent / "results" / "speed.json"
README, BEGIN, END = Path(__file__).parent / "README.md", "<!-- table of speed.py -->", "<!-- end of the table -->"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_speed(device: str, least: float = 0.1) -> dict:
    "The fastest single-precision matrix products and the bandwidth of a large copy; each measured for `least` seconds."

    def best(work: Callable[[], object]) -> float:
        work(), synchronize(device)
        clock = (
            time.process_time if device == "cpu" else time.perf_counter
        )  # one thread: what others do on the core doesn't count
        times, began = [], clock()
        while clock() - began < least or len(times) < 3:
            start = clock()
            work(), synchronize(device)
            times.append(clock() - start)
        return min(times)

    speeds = {}
    for m, k, n in (1024, 1024, 1024), (2048, 768, 256):
        x, w = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        kernels = {"linear": lambda: F.linear(x, w)}
        if (
            device == "cpu" and torch.backends.mkldnn.is_available()
        ):  # the same product as a convolution with a kernel of one pixel
            kernels["oneDNN"] = lambda: F.conv2d(x.view(1, m, 1, k).permute(0, 3, 1, 2), w.view(n, k, 1, 1))
            dense, packed = x.to_mkldnn(), w.to_mkldnn()
            kernels["oneDNN packed"] = lambda: F.linear(dense, packed)
        if device == "cpu":
            kernels["numpy"] = lambda: product(x, w.mT)
        for name, kernel in kernels.items():
            speeds[name] = max(speeds.get(name, 0), 2e-9 * m * k * n / best(kernel))
    source = torch.randn(50_000_000, device=device)
    target = torch.empty_like(source)
    copied = 2e-9 * source.nbytes / best(lambda: target.copy_(source))
    return {"sgemm_gflops": {k: round(v, 1) for k, v in speeds.items()}, "copy_gb_per_s": round(copied, 1)}


def describe_machine(device: str) -> dict:
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {
        "processor": name,
        "device": device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def faster(a: dict, b: dict) -> dict:
    "The better of two measurements of the same core."
    return {
        "sgemm_gflops": {k: max(v, b["sgemm_gflops"][k]) for k, v in a["sgemm_gflops"].items()},
        "copy_gb_per_s": max(a["copy_gb_per_s"], b["copy_gb_per_s"]),
    }


def cpu_name() -> str:
    "What /proc/cpuinfo says; the family and model tell more than a virtual machine's name."
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    pairs = (line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    found = {key.strip(): value.strip() for key, value in pairs}
    return "{}, family {}, model {}".format(*(found.get(key, "?") for key in ("model name", "cpu family", "model")))


def serve(arguments: tuple, side: str, pipe: Connection) -> None:
    "The process of one side: a request in, a measurement out."
    row = ROWS[arguments[0]](*arguments)
    if side == "plain":
        row.make_plain()
    if side == "compare":
        return pipe.send(compare(row))
    if side == "describe":
        return pipe.send(describe(row, 0.0))
    while (request := pipe.recv()) is not None:
        work = row.warm_up if (side, request) == ("ours", "warm up") else getattr(row, side)
        wall, cpu = time.perf_counter(), time.process_time()
        work(), synchronize(row.device)
        pipe.send(
            {
                "wall": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )


def compare(row: Row) -> dict:
    "Do both sides agree, and what must be done? Raises `SystemExit` where they differ by more than 1e-4 of the scale."
    worst = 0.0
    for i, (mine, plain) in enumerate(row.compare()):
        if mine.shape != plain.shape:
            raise SystemExit(f"{row.id}: expected {list(plain.shape)}, got {list(mine.shape)}")
        worst = max(worst, ((mine - plain).abs().max() / plain.abs().max().clamp(min=1e-12)).item())
        if not worst <= 1e-4:
            raise SystemExit(f"{row.id}: result {i} differs by {worst:.1e} of its scale")
    return describe(row, worst)


def describe(row: Row, worst: float) -> dict:
    flops, moved = row.limit()
    return {
        "difference": worst,
        "flops": flops,
        "bytes": moved,
        "work": row.work,
        "ours": row.ours_tasks,
        "plain": row.plain_tasks,
    }


class Side:
    "A process of its own, asked for one piece of work at a time."

    def __init__(self, target: Callable, *arguments):
        here, there = multiprocessing.get_context("fork").Pipe()
        self.pipe, self.process = (
            here,
            multiprocessing.get_context("fork").Process(target=target, args=(*arguments, there), daemon=True),
        )
        self.process.start()
        there.close()

    def result(self):
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(f"a measuring process ended with code {self.process.exitcode}") from None

    def ask(self, request: str) -> dict:
        self.pipe.send(request)
        return self.result()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def alone(work: Callable, *arguments):
    "The result of a function that runs in a process of its own."
    side = Side(lambda *given: given[-1].send(work(*given[:-1])), *arguments)
    found = side.result()
    side.process.join()
    return found


def measure(id: str, variant: str, before: dict, quick: bool, device: str) -> tuple[dict, dict]:
    "One row of the table, and the core's speed after it."
    arguments = id, variant, quick, device
    checked = Side(
        serve, arguments, "describe" if quick and variant == "hoisted" else "compare"
    )  # compared in the row before
    row, sides, runs = (
        checked.result(),
        {name: Side(serve, arguments, name) for name in ("plain", "ours")},
        {"plain": [], "ours": []},
    )
    for name, side in sides.items():
        if not (quick and name == "plain"):
            side.ask("warm up")
    began = time.perf_counter()

    def enough() -> bool:
        "Quick: three repetitions or two seconds; else five repetitions and five seconds: short rows come more often."
        done, seconds = len(runs["ours"]), time.perf_counter() - began
        return done >= 3 or seconds >= 2 if quick else done >= 5 and seconds >= 5

    while not enough():
        for name, side in sides.items():
            if not (quick and name == "plain" and runs["plain"]):
                runs[name].append(side.ask("run"))
    for side in sides.values():
        side.close()
    of = lambda name, key: [run[key] for run in runs[name]]
    per_task = {
        (name, clock): statistics.median(of(name, clock)) / row[name] for name in runs for clock in ("wall", "cpu")
    }
    spread = {name: (max(of(name, "wall")) - min(of(name, "wall"))) / row[name] for name in runs}
    after = alone(measure_speed, device, 0.02 if quick else 0.1)
    speed = faster(before, after)
    limit = row["flops"] / max(speed["sgemm_gflops"].values()) / 1e9 + row["bytes"] / speed["copy_gb_per_s"] / 1e9
    return {
        "id": id,
        "variant": variant,
        "work": row["work"],
        "reference_s": per_task["plain", "wall"],
        "ours_s": per_task["ours", "wall"],
        "ratio": per_task["plain", "wall"] / per_task["ours", "wall"],
        "over_limit": per_task["ours", "wall"] / limit,
        "limit_s": limit,
        "reference_peak_mb": max(of("plain", "peak_mb")),
        "peak_mb": max(of("ours", "peak_mb")),
        "reference_cpu_s": per_task["plain", "cpu"],
        "ours_cpu_s": per_task["ours", "cpu"],
        "reference_spread_s": spread["plain"],
        "ours_spread_s": spread["ours"],
        "repeats": len(runs["ours"]),
        "ratio_cpu": per_task["plain", "cpu"] / per_task["ours", "cpu"],
        "over_limit_cpu": per_task["ours", "cpu"] / limit,
        "gflops": max(speed["sgemm_gflops"].values()),
        "gb_per_s": speed["copy_gb_per_s"],
        "reference_tasks": row["plain"],
        "tasks": row["ours"],
        "largest_difference": row["difference"],
    }, after


COLUMNS = (
    "row",
    "reference",
    "ours",
    "range",
    "CPU",
    "ratio",
    "GFLOP/s",
    "GB/s",
    "limit",
    "over limit",
    "by CPU",
    "peak MB (reference)",
    "difference",
)


def table(results: dict) -> str:
    machine, ms = results["machine"], lambda s: f"{1e3 * s:.3g} ms"
    products = ", ".join(f"{name} {speed:g}" for name, speed in machine["sgemm_gflops"].items())
    lines = [
        f"{machine['processor']} ({machine['device']}), torch {machine['torch']}; sgemm {products} GFLOP/s, "
        f"copy {machine['copy_gb_per_s']:g} GB/s at best; one thread; times per task",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for r in results["rows"]:
        name = f"{r['id']}: {r['work']}" + (", evaluations hoisted" if r["variant"] == "hoisted" else "")
        times = [ms(r[key]) for key in ("reference_s", "ours_s", "ours_spread_s", "ours_cpu_s")]
        cells = [
            name,
            *times,
            f"{r['ratio']:.3g}",
            f"{r['gflops']:.0f}",
            f"{r['gb_per_s']:.0f}",
            ms(r["limit_s"]),
            f"{r['over_limit']:.2f}",
            f"{r['over_limit_cpu']:.2f}",
            f"{r['peak_mb']:.0f} ({r['reference_peak_mb']:.0f})",
            f"{r['largest_difference']:.0e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bench(
    quick: bool = False,  # fewer repetitions, few tasks of the plain side: under two minutes on a quiet core
    only: str = "",  # ids separated by commas; empty: all rows
    out: Path | None = None,  # where to write JSON, beside other rows if only some are measured; None: nowhere
    device: str = "cpu",
    core: int | None = None,  # to be pinned to; None: the last one this process may use
) -> dict:  # as in speed.json
    "Measure, print the table, write the figures."
    wanted = [id.strip() for id in only.split(",")] if only else list(ROWS)
    if unknown := [id for id in wanted if id not in ROWS]:
        raise ValueError(f"only: expected ids out of {', '.join(ROWS)}, got {', '.join(unknown)}")
    if out is not None and (out.is_dir() or not out.parent.is_dir() and out.parent.exists()):
        raise ValueError(f"out: expected a file to write, got {out}")
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        if core is not None and core not in allowed:
            raise ValueError(f"core: expected one of {', '.join(map(str, sorted(allowed)))}, got {core}")
        os.sched_setaffinity(0, {max(allowed) if core is None else core})
    torch.set_num_threads(1)
    if quick:  # what each of 25 processes would load for itself, as it does where memory is measured
        importlib.import_module("torch._dynamo")  # the optimiser's
        all_tasks()
    speed = alone(measure_speed, device)
    others = (
        json.loads(out.read_text())["rows"] if only and out is not None and out.exists() else []
    )  # of an earlier run: kept
    results = {"schema": 1, "machine": {**alone(describe_machine, device), **speed}, "quick": quick, "rows": others}
    for id in wanted:
        for variant in ROWS[id].variants:
            began = time.perf_counter()
            row, speed = measure(id, variant, speed, quick, device)
            results["rows"] = sorted(
                [*(r for r in results["rows"] if (r["id"], r["variant"]) != (id, variant)), row],
                key=lambda r: ([*ROWS].index(r["id"]), r["variant"] == "hoisted"),
            )
            results["machine"] |= faster(results["machine"], speed)
            print(
                table({**results, "rows": [row]}).splitlines()[-1], f"[{time.perf_counter() - began:.0f} s]", flush=True
            )
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + table(results))
    if out is not None and out.resolve() == RESULTS.resolve():
        before, after = README.read_text().split(BEGIN)[0], README.read_text().split(END)[1]
        README.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under two minutes: fewer repetitions and reference tasks")
    parser.add_argument("--only", default="", help="ids of rows, separated by commas: " + ", ".join(ROWS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--core", type=int, help="the core to run on; default: the last one allowed")
    parser.add_argument(
        "--out", type=Path, help="JSON file; default: benchmarks/results/speed.json for a full run, none for others"
    )
    options = parser.parse_args()
    out = options.out or (None if options.quick or options.only else RESULTS)
    bench(options.quick, options.only, out, options.device, options.core)


if __name__ == "__main__":
    main()
