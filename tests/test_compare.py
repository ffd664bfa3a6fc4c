"A table for one's own data: numbers are those of plain functions, the control deals out other cells' questions."

import pytest
import torch
from test_fit import SHORT, mlp, task_set

import hyperclip_nb as hc
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.evaluation.statistics import Bootstrap

NET, TASKS = mlp(), task_set(count=10)
E = TASKS.embeddings("text")


def reading(scale):
    "A method that reads: a fixed linear map of the embedding."
    table = scale * torch.randn(E.shape[1], NET.size, generator=torch.Generator().manual_seed(0))
    return lambda e: e @ table


def test_numbers_are_those_of_the_plain_functions():
    one, two = reading(1.0), reading(2.0)
    w = torch.randn(1, NET.size, generator=torch.Generator().manual_seed(1))
    table = hc.compare(NET, {"one": one, "two": lambda e: torch.stack([one(e), two(e)]), "none": w}, TASKS, "none")
    bootstrap = Bootstrap(len(TASKS))
    scores = {name: 100 * hc.accuracies(NET, x, TASKS).double() for name, x in {"one": one(E), "none": w}.items()}
    assert torch.equal(table.scores["one"], scores["one"])
    assert table["one"].accuracy == pytest.approx(100 * hc.accuracy(NET, one(E), TASKS))
    assert table["one"].ci95 == bootstrap.interval(scores["one"])
    gap = scores["one"] - scores["none"]
    assert table["one"].difference == (pytest.approx(gap.mean().item()), bootstrap.interval(gap))
    assert table["two"].accuracy == pytest.approx(100 * hc.accuracy(NET, torch.stack([one(E), two(E)]), TASKS))
    assert table["none"].difference is None and table["none"].shuffled is None and table.cells == len(TASKS)
    text = table._repr_markdown_()
    assert text.count("\n|") == 4 and "| none |" in text and "10 tasks" in text


def test_the_control_gets_the_questions_of_other_cells():
    given = []

    def noted(e):
        given.append(e)
        return reading(1.0)(e)

    tasks = [
        hc.TensorTask(f"{i}?", ["a", "b"], range(20), [i % 2] * 19 + [1 - i % 2], cell=str(i // 2)) for i in range(8)
    ]
    vectors = torch.eye(8, 6)
    some = TaskSet.from_tensors(
        torch.randn(20, 5), tasks, embed_question=lambda q: vectors[int(q[:-1]) % 6] + int(q[:-1])
    )
    table = hc.compare(NET, {"noted": noted}, some)
    own, other = given
    assert table.cells == 4 and torch.equal(own, some.embeddings("text"))
    assert sorted(map(tuple, own.tolist())) == sorted(map(tuple, other.tolist()))
    places = [own.tolist().index(row) for row in other.tolist()]
    assert all(i // 2 != place // 2 for i, place in enumerate(places))
    assert hc.compare(NET, {"noted": noted}, some, seed=1) and not torch.equal(given[3], other)


def test_what_can_not_be_compared_is_named():
    for bad, message in [
        (lambda: hc.compare(NET, {}, TASKS), "methods: expected at least one"),
        (lambda: hc.compare(NET, {"a": reading(1.0)}, TASKS, "b"), "versus: expected one of a, got 'b'"),
        (lambda: hc.compare(NET, {"short": lambda e: e}, TASKS), r"methods\['short'\]: w: expected weights"),
        (
            lambda: hc.compare(NET, {"few": torch.zeros(3, NET.size)}, TASKS),
            r"methods\['few'\]: w: expected .* of 1 or 10",
        ),
        (lambda: hc.compare(NET, {"a": reading(1.0)}, TASKS, encoder="clip"), "question encoder"),
        (lambda: hc.compare(NET, {"a": reading(1.0)}, task_set(count=1)), "at least 2 tasks"),
    ]:
        with pytest.raises(ValueError, match=message):
            bad()


def test_a_fitted_model_is_a_method():
    start = hc.fit_multitask(NET, TASKS, recipe=SHORT)
    conditional = hc.fit_conditional(NET, TASKS, start, recipe=SHORT)
    table = hc.compare(NET, {"shared": start.z0[None], "conditional": conditional}, TASKS)
    assert table.versus == "shared" and 0 <= table["conditional"].shuffled <= 100
