"Small tasks, pictures and an encoder for the tests of the bank; subprocesses import it too, so it imports little."

import numpy as np
import torch

from hyperclip_nb.dataset.tasks import Task


def task(i: int, n: int = 10) -> Task:
    ids = [f"{i:02}/{j:03}" for j in range(2 * n)]
    return Task(
        question=f"what is {i}?",
        answers=("a", "b"),
        prompts=(f"{i} is a", f"{i} is b"),
        support=tuple((x, j % 2) for j, x in enumerate(ids[:n])),
        query=tuple((x, j % 2) for j, x in enumerate(ids[n:])),
    )


def load(ids):
    "Pixels that the id alone decides."
    return np.stack(
        [np.random.default_rng([int(part) for part in i.split("/")]).integers(0, 256, (4, 4, 3), np.uint8) for i in ids]
    )


class Toy:
    "Pixels as features, the length of a text as its embedding."

    fingerprint = {"model": "toy", "weights": "1"}

    def encode_images(self, images):
        return torch.as_tensor(images).flatten(1).float() / 7

    def encode_texts(self, texts, pooling):
        return torch.tensor([[len(t), pooling == "clip"] for t in texts]).float()


TASKS = [task(i) for i in range(6)]  # 120 images
