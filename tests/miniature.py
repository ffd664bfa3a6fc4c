"""VQA v2 and COCO 2014 in miniature: the official files and photographs, made from rendered scenes.

    python tests/miniature.py DIR      # DIR/vqa, DIR/coco/{train2014,val2014}, DIR/coco/instances_{train,val}2014.json

Pictures of three hundred scenes, JPEG files of 640 x 480 pixels named as COCO names its own; twenty-five questions,
each asked about part of the pictures of its category, so that tasks share pictures; and what the real files have too
and Meta-VQA leaves out: yes/no questions, rare questions, answers seen once, a second entry for an image, an "or".
What it takes is deterministic.
"""

import json
import random
import sys
from itertools import count
from pathlib import Path

from PIL import Image

from hyperclip_nb.dataset.coco_tasks import INSTANCES
from hyperclip_nb.dataset.meta_vqa import ANNOTATIONS, QUESTIONS
from hyperclip_nb.dataset.questions import FAMILIES, Question, image_id, scene_of
from hyperclip_nb.dataset.scenes import BOXES, SIDE, SIZES, Scene, draw_scene

WIDTH, HEIGHT = 640, 480
FAMILIES_ASKED = ("color", "size", "pattern", "background", "place")
ASKED = ("creature", "shape", "plant", "tool", "game piece")
PARTS = ("train", "val")


def photographs(folder: Path, per_category: int) -> dict[str, dict[int, Scene]]:
    "Write the JPEG files; category -> number of the image -> what it shows. Even: train2014, odd: val2014."
    numbers, shown = count(100), {}
    for category in ASKED:
        for i in range(per_category):
            _, scene, _, tape = scene_of(image_id(0, Question("color", category), i))
            number = next(numbers)
            path = folder / f"{PARTS[number % 2]}2014" / f"COCO_{PARTS[number % 2]}2014_{number:012}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_scene(scene, tape)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
                path, quality=92
            )
            shown.setdefault(category, {})[number] = scene
    return shown


def entries(
    shown: dict[str, dict[int, Scene]], per_question: int, rng: random.Random
) -> list[tuple[int, str, str, str]]:
    "(image, question, answer type, answer), in random order."
    found = []
    for category, scenes in shown.items():
        for family in FAMILIES_ASKED:
            question = Question(family, category).text
            asked = rng.sample(sorted(scenes), per_question)
            found += [
                (image, question, "other", FAMILIES[family].read(scenes[image], scenes[image].things[0]))
                for image in asked
            ]
            found += [
                (asked[0], question, "other", "a second answer"),
                (asked[1], f"{question[:-1]} or not?", "other", "or"),
                (asked[2], f"Rarely asked: {question}", "number", "2"),
                (asked[3], f"Is there a {category}?", "yes/no", "yes"),
            ]
        found.append((asked[4], Question("color", category).text, "other", "seen once"))
    found += [
        (image, f"Is the {category} red or blue?", "other", "red" if i % 2 else "blue") for i, image in enumerate(asked)
    ]
    rng.shuffle(found)
    return sorted(found, key=lambda entry: entry[3] == "a second answer")  # a second entry comes after the first


def write_vqa(folder: Path, found: list[tuple[int, str, str, str]]) -> None:
    "The four files of VQA v2, with the fields that the official ones have."
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(2):
        annotations, questions = [], []
        for k, (image, question, kind, answer) in enumerate(found):
            if image % 2 == part:
                number = image * 1000 + k
                annotations.append(
                    {
                        "question_type": "what",
                        "multiple_choice_answer": answer,
                        "answers": [
                            {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)
                        ],
                        "image_id": image,
                        "answer_type": kind,
                        "question_id": number,
                    }
                )
                questions.append({"image_id": image, "question": question, "question_id": number})
        head = {
            "info": {"version": "2.0"},
            "license": {"name": "none needed"},
            "data_type": "mscoco",
            "data_subtype": f"{PARTS[part]}2014",
        }
        (folder / ANNOTATIONS.format(PARTS[part])).write_text(json.dumps({**head, "annotations": annotations}))
        (folder / QUESTIONS.format(PARTS[part])).write_text(
            json.dumps({**head, "task_type": "Open-Ended", "questions": questions})
        )


def write_instances(folder: Path, shown: dict[str, dict[int, Scene]]) -> None:
    "The two files of COCO instances: one object per picture, with the area that it has at this resolution."
    for part in range(2):
        images, annotations = [], []
        for k, scenes in enumerate(shown.values()):
            for number, scene in scenes.items():
                if number % 2 == part:
                    thing, (x0, y0, x1, y1) = scene.things[0], BOXES[scene.things[0].place]
                    w, h = (SIZES[thing.size] * n // SIDE for n in (WIDTH, HEIGHT))
                    x, y = (x0 + x1) * WIDTH // SIDE // 2 - w // 2, (y0 + y1) * HEIGHT // SIDE // 2 - h // 2
                    images.append(
                        {
                            "id": number,
                            "file_name": f"COCO_{PARTS[part]}2014_{number:012}.jpg",
                            "width": WIDTH,
                            "height": HEIGHT,
                        }
                    )
                    annotations.append(
                        {
                            "id": number,
                            "image_id": number,
                            "category_id": k + 1,
                            "area": float(w * h),
                            "bbox": [x, y, w, h],
                            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                            "iscrowd": 0,
                        }
                    )
        (folder / INSTANCES.format(PARTS[part])).write_text(
            json.dumps(
                {
                    "info": {"year": 2014},
                    "images": images,
                    "annotations": annotations,
                    "categories": [
                        {"supercategory": "thing", "id": k + 1, "name": name} for k, name in enumerate(shown)
                    ],
                }
            )
        )


def make(folder: str | Path, per_category: int = 60, per_question: int = 36, seed: int = 0) -> Path:
    "All of it."
    folder = Path(folder)
    shown = photographs(folder / "coco", per_category)
    write_vqa(folder / "vqa", entries(shown, per_question, random.Random(seed)))
    write_instances(folder / "coco", shown)
    return folder


if __name__ == "__main__":
    make(sys.argv[1])
