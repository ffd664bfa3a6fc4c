"""Files of VQA v2's shape and full size, and how long `build_meta_vqa` takes over them.

    python benchmarks/vqa_files.py make DIR [--scale 1.0]   # 443,757 + 214,354 questions, about 570 MB at scale 1
    python benchmarks/vqa_files.py time DIR                 # seconds and peak memory of reading, of the whole build

The content is made up; the sizes are not: entries per image, share of answer types, length of the records with their
ten single answers, and a long tail of questions that are asked once.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from hyperclip_nb.dataset.meta_vqa import ANNOTATIONS, QUESTIONS, build_meta_vqa, read_vqa

SIZES = {"train": (443_757, 82_783), "val": (214_354, 40_504)}  # questions, images
THINGS = (
    "bowl hat train dog door vase kite sofa tie tree bus cat cup bag bed box car clock coat cow desk fan fence flag floor "
    "glove grass horse house jacket lamp laptop man napkin oven phone pillow plane plate pole shirt shoe sign sink sky "
    "table tent towel truck wall woman zebra bench bird boat bike"
).split()
FORMS = [
    "What color is the {}?",
    "How many {}s are there?",
    "Where is the {}?",
    "What kind of {} is this?",
    "What is on the {}?",
    "What is the {} made of?",
    "What is the {} doing?",
    "What is behind the {}?",
    "How old is the {}?",
    "What shape is the {}?",
    "Who owns the {}?",
    "What is next to the {}?",
    "What is the color of the {}?",
    "How tall is the {}?",
    "What pattern is on the {}?",
    "How many {}s can be seen?",
    "What is the {} wearing?",
    "Is the {} old or new?",
    "Which way is the {} facing?",
    "What brand is the {}?",
    "What is in the {}?",
    "What is under the {}?",
    "What does the {} say?",
    "What number is on the {}?",
    "What time of day is the {} seen?",
    "How big is the {}?",
]
WORDS = "red blue white black green brown yellow wood metal grass table street beach left right cat dog man woman ball".split()


def make(folder: Path, scale: float, seed: int = 0) -> None:
    "Write the four files, record by record."
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    frequent = [form.format(thing) for form in FORMS for thing in THINGS]
    rng.shuffle(frequent)
    weights = list(accumulate(1 / (i + 5) for i in range(len(frequent))))
    info = '{"info": {"version": "2.0", "description": "made by benchmarks/vqa_files.py"}, "data_type": "mscoco", '
    number = 0
    for part, (questions, images) in SIZES.items():
        with (
            open(folder / ANNOTATIONS.format(part), "w") as answers,
            open(folder / QUESTIONS.format(part), "w") as asked,
        ):
            answers.write(info + '"annotations": [')
            asked.write(info + '"task_type": "Open-Ended", "questions": [')
            for i in range(int(questions * scale)):
                number += 1
                image = (i // 5 * 7919) % images * 7 + (part == "val")
                question_id = image * 1000 + number % 1000 + 10**9 * (number // 1000)
                kind = rng.random()
                if rng.random() < 0.5:
                    question = rng.choices(frequent, cum_weights=weights)[0]
                else:
                    question = f"What is the {rng.choice(WORDS)} {rng.choice(THINGS)} number {number} doing with the {rng.choice(THINGS)}?"
                if kind < 0.38:
                    kind, answer = "yes/no", rng.choice(["yes", "no"])
                elif kind < 0.5:
                    kind, answer = "number", str(rng.choice([0, 1, 1, 1, 2, 2, 3, 4, 5, rng.randint(6, 60)]))
                else:
                    kind, answer = "other", " ".join(rng.sample(WORDS, rng.choice([1, 1, 1, 1, 2])))
                single = ", ".join(
                    f'{{"answer": "{answer}", "answer_confidence": "yes", "answer_id": {k}}}' for k in range(1, 11)
                )
                comma = ", " * (i > 0)
                answers.write(
                    f'{comma}{{"question_type": "what is the", "multiple_choice_answer": "{answer}", "answers": [{single}], '
                    f'"image_id": {image}, "answer_type": "{kind}", "question_id": {question_id}}}'
                )
                asked.write(f'{comma}{{"image_id": {image}, "question": "{question}", "question_id": {question_id}}}')
            answers.write("]}")
            asked.write("]}")
    for file in sorted(folder.iterdir()):
        print(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB")


def measure(folder: Path) -> dict:
    "Reading and building in this process; peak memory is that of the process."
    start = time.perf_counter()
    reading = read_vqa(folder)
    read_s = time.perf_counter() - start
    annotations = reading.annotations
    del reading
    with tempfile.TemporaryDirectory() as out:
        start, cpu = time.perf_counter(), time.process_time()
        built = build_meta_vqa(folder, out)
        build_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return {
        "annotations": annotations,
        "tasks": built.tasks,
        "pairs": built.pairs,
        "read_s": round(read_s, 1),
        "build_s": round(build_s, 1),
        "build_cpu_s": round(cpu_s, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "time", "measure"], help="measure: as time, in this very process")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="share of VQA v2's size")
    args = parser.parse_args()
    if args.command == "make":
        make(args.folder, args.scale)
    elif args.command == "measure":
        print(json.dumps(measure(args.folder)))
    else:  # a process of its own, so that the peak is that of building alone
        print(
            subprocess.run(
                [sys.executable, __file__, "measure", args.folder], check=True, capture_output=True, text=True
            ).stdout,
            end="",
        )


if __name__ == "__main__":
    main()
