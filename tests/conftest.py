"A small ragged data set of random features, for tests that need tasks but no pictures."

import pytest
import torch

from hyperclip_nb.core.files import tensors_digest
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.tasks import Task

EMBED = 12


class ToyBank:
    "The part of FeatureBank's interface that TaskSet uses, over tensors in memory."

    def __init__(self, tasks: list[Task], seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self._rows = {
            kind: {key: i for i, key in enumerate(dict.fromkeys(keys))}
            for kind, keys in {
                "image": [i for t in tasks for i, _ in (*t.support, *t.query)],
                "prompt": [p for t in tasks for p in t.prompts],
                "question": [t.question for t in tasks],
            }.items()
        }
        draw = lambda kind: torch.randn(len(self._rows[kind]), EMBED, generator=generator)
        self.images, self.prompts, self.questions = draw("image"), draw("prompt"), {"clip": draw("question")}

    @property
    def content(self):
        return {"tensors": tensors_digest({"images": self.images, "prompts": self.prompts, **self.questions})}

    def _find(self, kind, keys):
        return torch.tensor([self._rows[kind][key] for key in keys])

    def image_rows(self, ids):
        return self._find("image", ids)

    def prompt_rows(self, texts):
        return self._find("prompt", texts)

    def question_rows(self, texts):
        return self._find("question", texts)


def toy_tasks(sizes: list[tuple[int, int, int]]) -> list[Task]:  # (support, query, answers) of each task
    "Tasks of given sizes; some images are shared between tasks."
    tasks = []
    for t, (support, query, answers) in enumerate(sizes):
        example = lambda i: (f"image-{(t * 7 + i) % 60}", (t + i) % answers)
        tasks.append(
            Task(
                question=f"What is {t}?",
                answers=tuple(f"a{c}" for c in range(answers)),
                prompts=tuple(f"{t} is a{c}" for c in range(answers)),
                support=tuple(example(i) for i in range(support)),
                query=tuple(example(i) for i in range(support, support + query)),
                family=f"family {t % 3}",
            )
        )
    return tasks


@pytest.fixture
def ragged() -> TaskSet:
    "Five tasks of different sizes."
    tasks = toy_tasks([(9, 4, 3), (3, 2, 2), (14, 6, 5), (5, 5, 4), (8, 3, 2)])
    return TaskSet(tasks, ToyBank(tasks))


@pytest.fixture(scope="module")
def browser():
    "Chromium, driven by Playwright."
    from browsing import CHROMIUM, FLAGS

    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a GPU; skipped where there is none")
    config.addinivalue_line("markers", "browser: drives JupyterLab or Voilà in Chromium; skipped where that is absent")
    config.addinivalue_line(
        "markers", "drill: faults on purpose; HYPERCLIP_DRILL=long (`make drill`) for the long form"
    )
