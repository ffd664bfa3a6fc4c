"The described digits: what is asked is what the words say, and what is held out is the function, however it is said"

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hyperclip_nb.basenet.module import ModuleNet
from hyperclip_nb.basenet.network import set_accuracy
from hyperclip_nb.dataset import digits as d
from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.tensors import TensorTask
from hyperclip_nb.evaluation.asking import open_experiment
from hyperclip_nb.evaluation.digits import answer_shares, answers_figure, filters_figure, networks_for
from hyperclip_nb.evaluation.fit import accuracy
from hyperclip_nb.evaluation.overrides import override
from hyperclip_nb.evaluation.presets import PRESETS, Source, shortened
from hyperclip_nb.evaluation.reproduce import reproduce
from hyperclip_nb.evaluation.results import read_results
from hyperclip_nb.evaluation.statistics import task_scores

SPLITS = ("train", "val", "test")


# An oracle that reads English and knows nothing of the grammar's code.


def true_of(phrase: str, k: int) -> bool:
    "Is a predicate true of a digit?"
    numbers = [int(n) for n in re.findall(r"\d+", phrase)]
    match phrase.split()[0], phrase:
        case "even", _:
            return k in (0, 2, 4, 6, 8)
        case "odd", _:
            return k in (1, 3, 5, 7, 9)
        case "prime", _:
            return k > 1 and all(k % m for m in range(2, k))
        case "greater", _:
            return k >= numbers[0] + 1
        case "less", _:
            return k <= numbers[0] - 1
        case "from", _:
            return k in range(numbers[0], numbers[1] + 1)
        case "within", _:
            return k in range(numbers[1] - numbers[0], numbers[1] + numbers[0] + 1)
        case "closer", _:
            near, far = numbers
            return 2 * k < near + far if near < far else 2 * k > near + far
        case _, "a square number":
            return round(k**0.5) ** 2 == k
        case "a", _:
            return k in range(0, 10, numbers[0])
        case "at", _:
            return k not in range(numbers[0]) if "least" in phrase else k in range(numbers[0] + 1)
        case _:  # "1 more than a multiple of 3"
            return k in range(numbers[0], 10, numbers[1])


def numbers_in(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d", text)]


PREDICATE = (
    r"(?:even|odd|prime|a square number|a multiple of \d|\d more than a multiple of \d|(?:greater|less) than \d"
    r"|at (?:least|most) \d|within \d of \d|from \d to \d|closer to \d than to \d)"
)
SHOW = "Does the picture show a number that is"
JOINED = {
    "and": (r"Is it (P) and (P)\?", r"Is the digit both (P) and (P)\?", rf"{SHOW} (P) and also (P)\?"),
    "or": (r"Is it (P) or (P)\?", r"Is the digit either (P) or (P)\?", rf"{SHOW} (P) or else (P)\?"),
    "not": (r"Is it (P) but not (P)\?", r"Is the digit (P) without being (P)\?", rf"{SHOW} (P) yet not (P)\?"),
    "one": (r"Is it exactly one of (P) and (P)\?", r"Is the digit either (P) or (P) but not both\?"),
}
HOW = {
    "and": lambda p, q: p and q,
    "or": lambda p, q: p or q,
    "not": lambda p, q: p and not q,
    "one": lambda p, q: p + q == 1,
}


def read(question: str, answers: tuple[str, ...]) -> list[int]:
    "The table that a question's words say."
    if set(answers) == {"no", "yes"}:
        truth = [answers.index("yes") if yes else answers.index("no") for yes in _yes(question)]
        return truth
    if set(answers) == {"a", "b", "c"}:
        a, b = (
            numbers_in(part)
            for part in re.split(r"group b|, b for|; b:", re.split(r"the rest|, and c|; c:", question)[0])
        )
        return [answers.index("a" if k in a else "b" if k in b else "c") for k in range(10)]
    if set(answers) == {"small", "medium", "large"}:
        low, high = sorted(numbers_in(question))
        return [answers.index("small" if k <= low else "medium" if k <= high else "large") for k in range(10)]
    asked = numbers_in(question)
    assert [str(k) for k in asked] == list(answers), "a choice names its answers in their order"
    return [asked.index(k) if k in asked else -1 for k in range(10)]


def _yes(question: str) -> list[bool]:
    if found := re.fullmatch(rf"(?:Is it|Is the digit|{SHOW}) ({PREDICATE})\?", question):
        return [true_of(found[1], k) for k in range(10)]
    for how, forms in JOINED.items():
        for form in forms:
            if found := re.fullmatch(form.replace("P", PREDICATE), question):
                return [bool(HOW[how](true_of(found[1], k), true_of(found[2], k))) for k in range(10)]
    named, negated = numbers_in(question), any(w in question for w in ("none of", "other than", "neither"))
    return [(k in named) != negated for k in range(10)]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list]:
    return {split: [x for x, _ in zip(d.draw_questions(0, split), range(2_000))] for split in SPLITS}


def test_every_wording_says_its_table(drawn):
    for found in (f for some in drawn.values() for f, _ in some):
        for wording in found.wordings:
            assert read(wording, found.answers) == list(found.table), wording


def test_no_held_out_function_occurs_in_training_under_any_wording(drawn):
    # The partition is computed from what the words say, not from what the code calls the cell.
    def partitions(split: str) -> set:
        return {
            frozenset(
                frozenset(k for k in range(10) if table[k] == i) for i in range(len(f.answers))
            )
            for f, question in drawn[split]
            for table in [read(question, f.answers)]
        }  # fmt: skip

    train, val, test = map(partitions, SPLITS)
    assert not train & test and not train & val and not val & test
    assert min(map(len, (train, val, test))) > 100


def test_answers_occur_and_questions_are_not_asked_twice(drawn):
    for some in drawn.values():
        for found, question in some:
            assert {*found.table} - {-1} == {*range(len(found.answers))}
            assert question in found.wordings
        assert len({found.wordings for found, _ in some}) == len(some)
        assert {found.family for found, _ in some} == {*d.FAMILIES}


def test_splits_take_their_shares():
    cells = {found.cell for split in SPLITS for found, _ in zip((f for f, _ in d.draw_questions(1, split)), range(500))}
    assert all(d.split_of(cell) in SPLITS for cell in cells)
    numbers = [d.split_of(f"{i} | {j}") for i in range(100) for j in range(100)]
    shares = {split: numbers.count(split) / len(numbers) for split in SPLITS}
    assert np.allclose([shares[s] for s in SPLITS], [0.72, 0.10, 0.18], atol=0.02)


def test_pictures_of_splits_are_disjoint_and_answers_have_equally_many():
    _, digits = d.digit_pictures()
    seen = {}
    for split in SPLITS:
        some = d.digits_tasks(250, 3, split)
        scored = [task.rows if task.support is None else task.rows[~task.support] for task in some]
        seen[split] = set(torch.cat(scored).tolist())
        for task, rows in zip(some, scored):
            assert len(rows.unique()) == len(rows)
            labels = task.labels if task.support is None else task.labels[~task.support]
            assert torch.bincount(labels).tolist() == [d.EACH[split]] * len(task.answers)
            table = read(task.question, tuple(task.answers))
            assert [table[k] for k in digits[task.rows].tolist()] == task.labels.tolist()
            shown = torch.bincount(digits[rows], minlength=10)
            for i in range(len(task.answers)):  # the digits of an answer share its pictures equally
                own = shown[[k for k in range(10) if table[k] == i]]
                assert own.max() - own.min() <= 1
            if task.support is not None:
                assert set(torch.bincount(digits[task.rows[task.support]]).tolist()) <= {0, d.LABELLED}
                shots = set(torch.cat(d.picture_parts()["shots"]).tolist())
                assert set(task.rows[task.support].tolist()) <= shots
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"] and not seen["val"] & seen["test"]


def test_tasks_are_determined_by_their_seed_and_fewer_are_the_beginning_of_more():
    told = lambda tasks: [(t.question, t.rows.tolist(), t.labels.tolist(), t.cell) for t in tasks]
    for split in SPLITS:
        assert told(d.digits_tasks(130, 5, split)) == told(d.digits_tasks(230, 5, split))[:130]
    assert told(d.digits_tasks(20, 5)) != told(d.digits_tasks(20, 6))
    d.predicates.cache_clear(), d.picture_parts.cache_clear(), d.digit_pictures.cache_clear()
    assert told(d.digits_tasks(20, 5)) == told(d.digits_tasks(20, 5))
    with pytest.raises(ValueError, match="count: expected at least 1 task, got 0"):
        d.digits_tasks(0)
    with pytest.raises(ValueError, match="split: expected 'train', 'val' or 'test', got 'all'"):
        d.digits_tasks(1, split="all")


def test_a_bank_has_the_tasks_of_all_splits():
    splits, bank = d.digits_bank(40, 7, val=20, test=30)
    assert {split: len(tasks) for split, tasks in splits.items()} == {"train": 40, "val": 20, "test": 30}
    for split, seed in ("train", 7), ("val", 0), ("test", 0):
        own = d.digits_tasks(len(splits[split]), seed, split)
        for task, made in zip(own, splits[split]):
            assert (task.question, tuple(task.answers), task.cell) == (made.question, made.answers, made.cell)
            pairs = sorted(zip(map(str, task.rows.tolist()), task.labels.tolist()))
            assert sorted((*made.support, *made.query)) == pairs
    assert bank.content == d.digits_bank(40, 7, val=20, test=30)[1].content


def test_the_encoder_tells_orders_apart_and_depends_on_nothing_else():
    first, second = d.hashed_question("Which of 3 and 8 is it?"), d.hashed_question("Which of 8 and 3 is it?")
    assert first.shape == (256,) and not torch.equal(first, second)
    assert torch.equal(first, d.hashed_question("which of 3 AND 8 is it"))
    # sha256("prime") begins with 0xf5 by any implementation of it
    from hashlib import sha256

    byte = sha256(b"prime").digest()[0]
    assert d.code_of("prime")[:8].tolist() == [1.0 if byte >> (7 - i) & 1 else -1.0 for i in range(8)]
    assert torch.isfinite(d.hashed_question("")).all()


def test_a_sheet_shows_the_question_and_its_pictures():
    task = d.digits_tasks(1, 0, "test")[0]
    plain, answered = d.digits_sheet(task), d.digits_sheet(task, truth=True)
    assert plain.size == answered.size and plain.tobytes() != answered.tobytes()
    assert d.digits_sheet(task, count=8).height < plain.height


def test_a_known_function_can_be_learnt():
    "Most of the way to a network that is right comes from labels: the tasks are possible."
    tasks = TaskSet.from_tensors(d.digit_pictures()[0], d.digits_tasks(8, 2), embed_question=d.hashed_question)
    torch.manual_seed(0)
    net = ModuleNet(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)))
    batch = tasks.batch(tasks.all_ids, "support")
    w = net.initial()[None].repeat(8, 1).requires_grad_()
    optimizer = torch.optim.Adam([w], 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        net.loss(w, batch).sum().backward()
        optimizer.step()
    assert set_accuracy(w.detach(), tasks, net).mean() > 0.9


def test_balanced_accuracy_is_the_plain_loop_s():
    "Answers of very different frequency, examples that are padded, and an answer that does not occur."
    g = torch.Generator().manual_seed(3)
    examples, tasks = torch.randn(200, 5, generator=g), []
    for i in range(9):
        rows = torch.randperm(200, generator=g)[: 20 + 7 * i]
        labels = (torch.rand(len(rows), generator=g) ** 3 * (2 + i % 2)).long()
        tasks.append(TensorTask(f"question {i}", ["a", "b", "c"][: 2 + i % 2], rows, labels))
    tasks = TaskSet.from_tensors(examples, tasks, embed_question=lambda text: torch.zeros(1))
    net = ModuleNet(nn.Linear(5, 3))
    w = torch.randn(3, len(tasks), net.size, generator=g)
    expected = []
    for t, task in enumerate(tasks.tasks):
        x = examples[[int(i) for i, _ in task.query]]
        weight, bias = w[0, t, :15].view(3, 5), w[0, t, 15:]
        answers = (x @ weight.T + bias)[:, : len(task.answers)].argmax(1).tolist()
        shares = []
        for answer in range(3):
            of = [a == answer for a, (_, label) in zip(answers, task.query) if label == answer]
            shares += [sum(of) / len(of)] if of else []
        expected.append(sum(shares) / len(shares))
    expected = torch.tensor(expected)
    assert torch.allclose(set_accuracy(w[0], tasks, net, balanced=True), expected, atol=1e-6)
    assert torch.allclose(task_scores(w[0], tasks, net, balanced=True), 100 * expected.double(), atol=1e-4)
    assert accuracy(net, w[0], tasks, balanced=True) == pytest.approx(expected.mean().item(), abs=1e-6)
    assert not torch.allclose(set_accuracy(w[0], tasks, net), expected, atol=1e-3)
    constant = torch.cat([torch.zeros(15), torch.tensor([1.0, 0.0, 0.0])])[None]
    occurring = torch.tensor([len({label for _, label in task.query}) for task in tasks.tasks])
    assert torch.allclose(set_accuracy(constant, tasks, net, balanced=True), 1 / occurring)


# --- the experiment

SHORT = {
    "guidance_steps": (1,),
    "guidance_prior": (0.0,),
    "few_shot_steps": (2,),
    "diffusion.timesteps": 4,
    "hvae.components": 16,
    "hyperclip.components": 16,
}
FEW = ("multitask", "cond_multitask@10", "hvae_hyperldm_g1@10", "mlp_regression", "mlp_regression~task")
FEW += ("regression_gaussian@10", "latent_regression", "few_shot~multitask")


SHORT_RECIPE = override(shortened(PRESETS["digits"].recipe, 0.005), SHORT)


def short_run(out):
    preset = replace(PRESETS["digits"], recipe=SHORT_RECIPE, methods=FEW, kinds=(), shots=(0, 1, "all"))
    return reproduce(preset, out=out, source=Source(data_set="digits", count=40), seeds=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A short run of the preset, and its results."
    out = tmp_path_factory.mktemp("digits")
    return short_run(out), out


def test_a_short_run_of_the_preset_leaves_its_table(small):
    results, out = small
    assert results.dataset == "digits (40 training tasks)" and results.seeds == [0, 1]
    assert results.tasks == {"train": 40, "val": 200, "test": 400}
    rows = {row.method: row for row in results.rows}
    assert {*FEW, "mlp_regression+shuffled", "hvae_hyperldm_g1@10+null", "chance", "majority"} <= {*rows}
    # Every answer has equally many pictures: chance, and whoever gives one answer, are the mean of 1/C.
    chance = np.mean([100 / len(task.answers) for task in d.digits_tasks(400, 0, "test")])
    assert rows["chance"].accuracy == pytest.approx(chance, abs=1e-3)
    assert rows["majority"].accuracy == pytest.approx(chance, abs=1e-3)
    assert {"multitask", "cond_multitask@10", "mlp_regression"} <= {*rows["hvae_hyperldm_g1@10"].vs}
    assert read_results(out) == results and "Perceptron from question to latent" in (out / "results.md").read_text()
    assert {path.name for path in (out / "figures").glob("*.png")} >= {"forest.png", "reliability.png"}


def test_only_a_run_made_in_one_call_tells_its_seconds_as_those_of_the_whole(small, tmp_path):
    results, out = small
    again = short_run(shutil.copytree(out, tmp_path / "run"))
    assert results.resumed is not True and " s in all." in (out / "results.md").read_text()
    assert again.resumed is True and again.rows == results.rows
    text = (tmp_path / "run" / "results.md").read_text()
    assert " s in all." not in text and "found what earlier calls had made" in text


def test_a_run_is_found_again_and_answers_a_new_question(small):
    _, out = small
    x = open_experiment(out)  # that may not train
    assert len(x.sets["train"]) == 40 and x.net.size == 2_212
    w = networks_for(x, "Is it even but not prime?", samples=3)
    assert w.shape == (3, 2_212) and torch.equal(w, networks_for(x, "Is it even but not prime?", samples=3))
    assert not torch.equal(w, networks_for(x, "Is it odd?", samples=3))
    pictures = d.digit_pictures()[0][:20]
    shares = answer_shares(x.net, w, pictures, 2)
    modules = [x.net.module(one) for one in w]
    assert torch.allclose(shares, torch.stack([m(pictures)[:, :2].softmax(-1) for m in modules]).mean(0), atol=1e-6)
    axes = answers_figure(x, "Is it even but not prime?", ("no", "yes"), w)
    assert sum(int(ax.get_title(loc="left").split(": ")[1].split()[0]) for ax in axes) == 347
    with pytest.raises(ValueError, match="answers: expected what may be answered to 'Is it blue"):
        answers_figure(x, "Is it blue?", w=w)
    assert len(filters_figure(x.net, {"a": w[0], "b": w[1]})) == 2


def test_a_perceptron_of_the_task_s_loss_changes_itself_and_not_the_generator(small):
    _, out = small
    x = open_experiment(out)
    before = {name: value.clone() for name, value in x.hvae(0).state_dict().items()}
    latent, task = x.mlp_regression("hvae", 0), x.mlp_regression("hvae", 0, "task")
    assert set(latent.state_dict()) == set(task.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(latent.parameters(), task.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in x.hvae(0).state_dict().items())
