"""What `benchmarks/scaling.py` and `benchmarks/ambiguity.py` compute beside the library."""

import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from hyperclip_nb.dataset.batches import TaskSet
from hyperclip_nb.dataset.digits import digit_pictures, digits_tasks, draw_questions, hashed_question, picture_parts
from hyperclip_nb.evaluation.overrides import override

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import ambiguity
import scaling


def test_every_row_has_its_turn_once_and_the_first_seed_comes_first():
    turns = scaling.in_turn()
    assert len({*turns}) == len(turns) == len(scaling.COUNTS) * (3 * len(scaling.ROWS) + len(scaling.TWICE))
    first = [job for job, _ in turns if job.seed or job.effort > 1][0]
    before = {job.count for job, _ in turns[: [job for job, _ in turns].index(first)]}
    assert before == {*scaling.COUNTS}


def test_twice_the_effort_is_twice_the_steps_of_what_is_compared_and_nothing_else():
    one, two = (scaling.Job(100, 0, effort).recipe() for effort in (1, 2))
    for part in "conditional", "hvae_training", "hyperldm":
        assert getattr(two, part).steps == 2 * getattr(one, part).steps
    assert (
        one == override(scaling.DIGITS, {"conditional.lr": scaling.RATES[0]})
        and two.multitask == one.multitask
        and two.finetuned == one.finetuned
    )


def test_a_crossing_is_where_the_line_between_two_counts_is_zero_for_the_last_time():
    of = lambda *values: torch.tensor(values, dtype=torch.float64)
    found = scaling.crossing({100: of(2, 2), 1_000: of(-2, -2), 10_000: of(-3, -3)})
    assert found["at"] == round(10**2.5) and found["ci95"] == [found["at"]] * 2 and found["crosses"] == 1
    found = scaling.crossing({100: of(1, 1), 1_000: of(-1, -1), 10_000: of(3, 3)})
    assert found["at"] == round(10**3.25) and found["above_at_the_end"] == 1
    found = scaling.crossing({100: of(1, -1), 1_000: of(1, -1)})
    assert found == {"crosses": 0, "above_at_the_end": 0.5, "always_above": 0.5, "always_below": 0.5}
    assert scaling.crossing({100: of(1)}) is None


def test_labelled_pictures_are_training_pictures_and_their_labels_those_of_the_question():
    tasks = digits_tasks(30, 0, "test")
    test = TaskSet.from_tensors(digit_pictures()[0], tasks, embed_question=hashed_question)
    learnt, parts = (
        scaling.labelled(test.tasks),
        {name: {*torch.cat(rows).tolist()} for name, rows in picture_parts().items()},
    )
    for task, made in zip(tasks, learnt.tasks):
        table = ambiguity.table_of(task)
        examples = [*made.support, *made.query]
        assert len(examples) == 40 * len(task.answers)
        for picture, label in examples:
            assert int(picture) in parts["train"] and table[int(digit_pictures()[1][int(picture)])] == label


def test_a_question_that_leaves_a_digit_open_allows_its_own_function_and_moves_no_other_named_digit():
    drawn = [one for task in digits_tasks(200, 0, "val") if (one := ambiguity.left_open(task))]
    assert {one.task.family for one in drawn} == {"member", "choice", "groups"}
    for one in drawn:
        own, allowed, rest = ambiguity.table_of(one.task), one.completions(), one.named - {one.digit}
        assert allowed[one.digit] == own and len({*allowed.values()}) == 10 - len(rest)
        assert "another digit" in one.task.question and str(one.digit) not in one.task.question
        for table in allowed.values():
            assert all(table[digit] == own[digit] for digit in rest)
            assert sorted(table) == sorted(own)


def test_tables_are_read_off_pictures():
    described = [found for found, _ in islice(draw_questions(0, "val"), 50)]
    assert [ambiguity.table_of(task) for task in digits_tasks(50, 0, "val")] == [one.table for one in described]


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed):
    generator = torch.Generator().manual_seed(seed)
    score, positive = torch.randint(4, (40,), generator=generator).float(), torch.rand(40, generator=generator) < 0.4
    pairs = score[positive][:, None] - score[~positive][None]
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item()
    assert ambiguity.auroc(score, positive) == pytest.approx(expected)


def test_networks_that_agree_have_no_disagreement_and_each_picture_is_asked_about_once():
    tasks = TaskSet.from_tensors(digit_pictures()[0], digits_tasks(6, 0, "test"), embed_question=hashed_question)
    batch, generator = tasks.batch(tasks.all_ids, "support"), torch.Generator().manual_seed(0)
    shape = (*batch.mask.shape, batch.answer_mask.shape[1])
    logits = torch.randn(5, *shape, generator=generator).masked_fill(~batch.answer_mask[:, None], -torch.inf)
    log_p = logits.log_softmax(-1)
    assert ambiguity.disagreement(log_p[:1].expand(5, -1, -1, -1)).abs().max() < 1e-6
    assert ambiguity.disagreement(log_p).min() > -1e-6
    order = ambiguity.chosen_order(log_p, batch, 10, 0.3)
    assert all(len({*row}) == 10 for row in order.tolist())
    assert batch.mask[torch.arange(len(order))[:, None], order].all()
    assert (order[:, 0] == ambiguity.disagreement(log_p).masked_fill(~batch.mask, -1).argmax(1)).all()
