"Tasks: what is written comes back, what is broken is refused, what is split stays whole."

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.tasks import (
    Task,
    check_task,
    fill_template,
    image_disjoint,
    leave_out,
    load_tasks,
    save_tasks,
    split_validation,
    task_from_labels,
    task_problems,
)

NAMES = st.text(min_size=1, max_size=8).filter(str.strip)  # any script, braces and all


@st.composite
def sound_tasks(draw, question=NAMES):
    answers = draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    images = draw(st.lists(NAMES, min_size=2, max_size=9, unique=True))
    examples = [(image, draw(st.integers(0, len(answers) - 1))) for image in images]
    cut = draw(st.integers(1, len(images) - 1))
    return Task(
        question=draw(question),
        answers=tuple(answers),
        prompts=tuple(fill_template("it is {}!", a) for a in answers),
        support=tuple(examples[:cut]),
        query=tuple(examples[cut:]),
        family=draw(st.text(max_size=3)),
        cell=draw(st.sampled_from("ab")),
    )


@settings(max_examples=50, deadline=None)
@given(tasks=st.lists(sound_tasks(), max_size=5, unique_by=lambda task: task.question))
def test_what_is_saved_is_loaded(tasks, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks.json"
    assert load_tasks(save_tasks(path, tasks)) == tasks


@given(template=st.text("{} ab"), answer=NAMES)
def test_a_template_has_exactly_one_hole(template, answer):
    if template.count("{}") == 1:
        assert fill_template(template, answer) == template.replace("{}", answer)
    else:
        with pytest.raises(ValueError, match="exactly one"):
            fill_template(template, answer)


CHANGES = {
    "question: expected a question": {"question": " "},
    "answers: expected at least 2": {
        "answers": ("a",),
        "prompts": ("x",),
        "support": (("i", 0),),
        "query": (("j", 0),),
    },
    "prompts: expected one per answer": {"prompts": ("x",)},
    "answers\\[1\\]: expected text": {"answers": ("a", " ")},
    "'a' occurs more than once": {"answers": ("a", "a")},
    "prompts: 'x' occurs": {"prompts": ("x", "x")},
    "support: expected at least one example": {"support": ()},
    "query: expected at least one example": {"query": ()},
    "query\\[0\\]: expected an answer id from 0 to 1, got 2": {"query": (("j", 2),)},
    "support\\[0\\]: expected an answer id from 0 to 1, got -1": {"support": (("i", -1),)},
    "support\\[0\\]: expected an image id": {"support": (("", 0),)},
    "image 'i' occurs more than once": {"query": (("i", 1),)},
}


@pytest.mark.parametrize("message", CHANGES)
def test_each_fault_is_found(message, tmp_path):
    sound = Task(question="q", answers=("a", "b"), prompts=("x", "y"), support=(("i", 0),), query=(("j", 1),))
    assert task_problems(sound) == []
    broken = msgspec.structs.replace(sound, **CHANGES[message])
    with pytest.raises(ValueError, match=message):
        check_task(broken, "here")
    with pytest.raises(ValueError):
        save_tasks(tmp_path / "tasks.json", [sound, broken])
    assert not list(tmp_path.iterdir())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), task=sound_tasks())
def test_a_damaged_file_is_refused_or_sound(data, task, tmp_path_factory):
    path = save_tasks(tmp_path_factory.mktemp("tasks") / "tasks.json", [task])
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(
        data.draw(
            st.sampled_from(
                [
                    content[:place],
                    content[:place] + b"\x00" + content[place + 1 :],
                    content[:place] + b"7" + content[place + 1 :],
                    content + b"}",
                ]
            )
        )
    )
    try:
        loaded = load_tasks(path)
    except FileError as error:
        assert str(path) in str(error)
    else:
        assert all(not task_problems(task) for task in loaded)


def test_a_question_twice_is_refused(tmp_path):
    record = '{"train": [["i", "a"]], "test": [["j", "b"]], "answers": ["a", "b"], "prompt": "it is {}"}'
    path = tmp_path / "tasks.json"
    path.write_text('{"q": %s, "q": %s}' % (record, record))
    with pytest.raises(FileError, match="'q' occurs more than once"):
        load_tasks(path)


@settings(max_examples=50, deadline=None)
@given(
    cells=st.lists(st.sampled_from(["", "a", "b", "c", "question 0"]), min_size=4, max_size=40),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_validation_holds_whole_cells(cells, fraction, seed):
    tasks = [
        Task(
            question=f"q{i}", answers=("a", "b"), prompts=("x", "y"), support=(("i", 0),), query=(("j", 1),), cell=cell
        )
        for i, cell in enumerate(cells)
    ]
    kept, aside = split_validation(tasks, fraction, seed)
    assert sorted(t.question for t in kept + aside) == sorted(t.question for t in tasks)
    assert not {t.cell for t in kept if t.cell} & {t.cell for t in aside if t.cell}
    assert len(aside) >= round(fraction * len(tasks))
    if not any(cells):
        assert len(aside) == round(fraction * len(tasks))


@settings(max_examples=50, deadline=None)
@given(train=st.lists(sound_tasks(), max_size=4), test=st.lists(sound_tasks(), max_size=3))
def test_disjoint_training_shares_no_image(train, test):
    kept, lost = image_disjoint(train, test)
    banned = {image for task in test for image in task.images}
    assert not banned & {image for task in kept for image in task.images}
    assert len(lost) == sum(bool(banned & set(task.images)) for task in train)
    for task in kept:
        assert check_task(task)
    everything, none_lost = leave_out(train, [])
    assert none_lost == [] and all(task in train for task in everything)


@settings(max_examples=50, deadline=None)
@given(labels=st.dictionaries(NAMES, st.sampled_from("abc"), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_labels_are_divided_answer_by_answer(labels, seed):
    try:
        task = task_from_labels("q?", labels, "it is {}", seed=seed)
    except ValueError as error:
        assert "at least" in str(error)
        return
    back = {image: task.answers[answer] for image, answer in task.support + task.query}
    assert back == labels
    for i, answer in enumerate(task.answers):
        n = list(labels.values()).count(answer)
        assert sum(a == i for _, a in task.support) == round(0.7 * n)


def test_the_published_layout_is_a_valid_file(tmp_path):
    path = tmp_path / "meta_train.json"
    path.write_text(json.dumps({"What is it?": {"train": [["i", "a"]], "test": [["j", "b"]], "answers": ["a", "b"]}}))
    assert load_tasks(path, lambda question: "it is {}")[0].prompts == ("it is a", "it is b")
    with pytest.raises(FileError, match="`prompt` or `prompts`"):
        load_tasks(path)
