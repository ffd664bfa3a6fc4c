"""What a bank of features costs beside the model itself, how much memory it takes, and how fast it opens.

    python benchmarks/features.py speed [--images 256] [--rounds 3] [--workers 1]  # build_bank against encode_image
    python benchmarks/features.py memory  # peak memory at 20,000 and 80,000 images
    python benchmarks/features.py open  # a bank of Meta-VQA's size

`speed` writes JPEG files of COCO's size and lets a ViT-B-32 with random weights encode them, in turns: encode_image
alone,
on batches that lie ready in memory, then everything: decoding, resizing, encoding, writing, joining, hashing. Both
run in one
process, one after the other, so that a busy machine slows both; the ratio is what counts. Processor time, workers
included, is reported beside wall time, because other processes don't count in it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hyperclip_nb.dataset.encoders import ClipEncoder, ImageFolder, Preprocessing
from hyperclip_nb.dataset.features import FeatureBank, build_bank
from hyperclip_nb.dataset.tasks import Task


def tasks_of(images: list[str], tasks: int = 1, answers: int = 2) -> list[Task]:
    "Tasks over these images that ask for `tasks * answers` prompts."
    return [
        Task(
            question=f"What color is bowl {t}?",
            answers=tuple(f"a{c}" for c in range(answers)),
            prompts=tuple(f"bowl {t} is a{c}" for c in range(answers)),
            support=tuple((image, 0) for image in images[t::tasks]),
            query=(),
        )
        for t in range(tasks)
    ]


def write_jpegs(folder: Path, count: int) -> list[str]:
    "Files of 640 x 480 pixels and some 130 kB, like COCO's; 32 different ones, each under several names."
    (folder / "train2014").mkdir(parents=True)
    rng, names = np.random.default_rng(0), [f"COCO_train2014_{i:012}" for i in range(count)]
    for i, name in enumerate(names):
        path = folder / "train2014" / f"{name}.jpg"
        if i >= 32:
            path.hardlink_to(folder / "train2014" / f"{names[i % 32]}.jpg")
            continue
        smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth, np.int16) + rng.integers(-15, 16, (480, 640, 3), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return names


def timed(action: Callable) -> tuple[float, float]:
    "(wall, processor) seconds; the processor's with those of finished worker processes."

    def processor() -> float:
        mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(use.ru_utime + use.ru_stime for use in (mine, theirs))

    wall, used = time.perf_counter(), processor()
    action()
    return time.perf_counter() - wall, processor() - used


class NoTexts(ClipEncoder):
    "The pictures are what is measured here."

    def encode_texts(self, texts, pooling="clip", batch_size=256):
        return torch.zeros(len(texts), 512)


def speed(images: int, rounds: int, workers: int, batch: int) -> dict:
    "Images per second of both, and their ratio."
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).eval()
    pictures = Preprocessing(224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    encoder = NoTexts(model, open_clip.get_tokenizer("ViT-B-32"), pictures, "ViT-B-32, random weights")
    _ = encoder.fingerprint  # hashed once, not timed
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        ids = write_jpegs(folder / "jpegs", images)
        load, tasks = ImageFolder(folder / "jpegs", pictures), tasks_of(ids)
        ready = pictures.normalize(torch.from_numpy(load(ids[:batch])))

        def bare():
            with torch.no_grad():
                for start in range(0, images, batch):
                    model.encode_image(ready[: images - start])

        rows = {"bare": [], "bank": []}
        with torch.no_grad():
            model.encode_image(ready[:8])  # warm
        for done in range(rounds):
            rows["bare"].append(timed(bare))
            rows["bank"].append(
                timed(
                    lambda: build_bank(folder / f"bank{done}", encoder, tasks, load, batch_size=batch, workers=workers)
                )
            )
    total = {name: np.sum(values, axis=0) for name, values in rows.items()}
    ratio = np.array(rows["bare"]) / np.array(rows["bank"])
    return {
        "images": images,
        "rounds": rounds,
        "workers": workers,
        "batch": batch,
        "threads": torch.get_num_threads(),
        **{f"{name} images/s": round(images * rounds / seconds[0], 2) for name, seconds in total.items()},
        **{
            f"{name} processor ms per image": round(1e3 * seconds[1] / images / rounds, 1)
            for name, seconds in total.items()
        },
        "share of bare images/s, wall": round(float(total["bare"][0] / total["bank"][0]), 3),
        "share, processor time": round(float(total["bare"][1] / total["bank"][1]), 3),
        "rounds' shares (wall, processor)": ratio.round(3).tolist(),
    }


class Wide:
    "Features of the paper's size at no cost."

    fingerprint = {"model": "random rows"}

    def encode_images(self, images):
        return torch.rand(len(images), 768)

    def encode_texts(self, texts, pooling):
        return torch.rand(len(texts), 768)


def blank(ids) -> np.ndarray:
    "Pixels of the paper's size."
    return np.zeros((len(ids), 336, 336, 3), np.uint8)


def build_wide(folder: Path, images: int, tasks: int = 1, answers: int = 2, **options) -> None:
    "A bank of random rows."
    ids = [f"COCO_train2014_{i:012}" for i in range(images)]
    build_bank(folder, Wide(), tasks_of(ids, tasks, answers), blank, batch_size=64, **options)


def memory(images: int) -> dict:
    "Peak of this process while it builds."
    with tempfile.TemporaryDirectory() as folder:
        build_wide(Path(folder) / "bank", images, workers=1)
    return {
        "images": images,
        "matrix_mb": images * 768 * 2 // 10**6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    }


def open_bank(folder: Path) -> dict:
    "Seconds to open, and how much of the image matrix is in memory then."

    def resident_kb() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        return sum(
            int(next(row for row in lines if row.startswith("Rss:")).split()[1])
            for line in lines
            if "images.safetensors" in line
        )

    banks = []
    wall, used = timed(lambda: banks.append(FeatureBank.open(folder)))
    bank = banks[0]
    return {
        "open_s": round(wall, 3),
        "processor_s": round(used, 3),
        "image_data_in_memory_kb": resident_kb(),
        "matrix_kb": bank.images.nbytes // 1000,
        "images": len(bank.images),
        "prompts": len(bank.prompts),
    }


def alone(*arguments) -> dict:
    "This script in a process of its own."
    return json.loads(
        subprocess.run(
            [sys.executable, __file__, *map(str, arguments)], check=True, capture_output=True, text=True
        ).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "open", "memory-of", "open-of"])
    parser.add_argument("argument", nargs="?")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    if args.what == "speed":
        print(json.dumps(speed(args.images, args.rounds, args.workers, args.batch), indent=2))
    elif args.what == "memory":
        print(json.dumps([alone("memory-of", images) for images in (20_000, 80_000)], indent=2))
    elif args.what == "memory-of":
        print(json.dumps(memory(int(args.argument))))
    elif args.what == "open-of":
        print(json.dumps(open_bank(Path(args.argument))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            build_wide(Path(folder) / "bank", 64_665, tasks=1243, answers=9, workers=0)
            print(json.dumps([alone("open-of", Path(folder) / "bank") for _ in range(5)], indent=2))


if __name__ == "__main__":
    main()
