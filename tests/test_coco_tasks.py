"COCO tasks against sets and dicts, and the properties of the draw."

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.core.files import FileError
from hyperclip_nb.dataset.coco_tasks import (
    INSTANCES,
    draw_coco_tasks,
    draw_distinct,
    draw_places,
    group_objects,
    read_objects,
)
from hyperclip_nb.dataset.tasks import check_task


@st.composite
def objects_in_images(draw):
    images, classes = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    pairs = draw(st.lists(st.tuples(st.integers(0, images - 1), st.integers(0, classes - 1)), max_size=80))
    return images, classes, pairs


@settings(max_examples=100, deadline=None)
@given(objects_in_images())
def test_grouping_equals_a_dict_of_sets(drawn):
    images, classes, pairs = drawn
    rows = np.array(pairs, int).reshape(-1, 2)
    objects = group_objects([f"c{k}" for k in range(classes)], [f"i{i}" for i in range(images)], rows[:, 0], rows[:, 1])
    for k in range(classes):
        members = objects.members[objects.starts[k] : objects.starts[k + 1]].tolist()
        assert members == sorted({image for image, kind in pairs if kind == k})
    assert objects.sizes.sum() == len(set(pairs))


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(4, 40), min_size=1, max_size=50), k=st.integers(1, 4), seed=st.integers(0, 999))
def test_rows_are_distinct_and_in_range(sizes, k, seed):
    drawn = draw_distinct(np.array(sizes), k, np.random.default_rng(seed))
    assert drawn.shape == (len(sizes), k)
    for row, size in zip(drawn.tolist(), sizes):
        assert len(set(row)) == k and 0 <= min(row) <= max(row) < size


def test_every_member_is_equally_likely_at_every_place():
    drawn = draw_distinct(np.full(200_000, 6), 3, np.random.default_rng(1))
    for place in range(3):
        counts = np.bincount(drawn[:, place], minlength=6)
        assert abs(counts - 200_000 / 6).max() < 5 * (200_000 * 1 / 6 * 5 / 6) ** 0.5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), shared=st.floats(0, 0.2))
def test_tasks_are_sound_and_true(seed, shared):
    rng = np.random.default_rng(seed)
    own = np.arange(300)
    extra = rng.integers(0, 300, int(300 * shared))  # images with objects of a second class
    images, kinds = np.concatenate([own, extra]), np.concatenate([own % 8, rng.integers(0, 8, len(extra))])
    objects = group_objects([f"c{k}" for k in range(8)], [f"i{i}" for i in range(300)], images, kinds)
    truth = {(f"i{i}", f"c{k}") for i, k in zip(images.tolist(), kinds.tolist())}
    tasks = draw_coco_tasks(objects, tasks=40, seed=seed, support=3, query=2)
    for task in tasks:
        check_task(task, question=False)  # no image twice, no answer twice
        assert (len(task.support), len(task.query), len(task.answers)) == (15, 10, 5)
        assert all((image, task.answers[answer]) in truth for image, answer in task.support + task.query)
    assert draw_coco_tasks(objects, tasks=40, seed=seed, support=3, query=2) == tasks


def test_clashes_are_drawn_again_without_a_bias():
    "Two classes share one of three images; of nine draws of one each, the clash never occurs, the others equally."
    objects = group_objects(
        ["a", "b"], ["0", "1", "2", "3", "4"], np.array([0, 1, 2, 0, 3, 4]), np.array([0, 0, 0, 1, 1, 1])
    )
    classes, places = draw_places(objects, 80_000, 2, 1, np.random.default_rng(0))
    flip = classes[:, 0] == 1
    a, b = np.where(flip, places[:, 1, 0], places[:, 0, 0]), np.where(flip, places[:, 0, 0], places[:, 1, 0])
    counts = np.bincount(a * 5 + b)
    counts = counts[counts > 0]
    assert len(counts) == 8 and abs(counts - 10_000).max() < 500


def test_impossible_draws_say_so():
    objects = group_objects(["a", "b"], ["x", "y"], np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="at least 5 classes with 10 images"):
        draw_coco_tasks(objects, tasks=1)
    with pytest.raises(ValueError, match="held an image twice"):
        draw_coco_tasks(objects, tasks=1, ways=2, support=1, query=1)
    with pytest.raises(ValueError, match="at least 1 task"):
        draw_coco_tasks(objects, tasks=0)


def test_both_parts_crowds_small_objects_and_excluded_images(tmp_path):
    for part, category in ("train", 7), ("val", 3):  # the same class under two ids
        images = [{"id": i, "file_name": f"COCO_{part}2014_{i:012d}.jpg"} for i in range(5)]
        annotations = [
            {"image_id": i, "category_id": category, "area": area, "iscrowd": crowd}
            for i, (area, crowd) in enumerate([(20001, 0), (20000, 0), (99999, 1), (30000.5, 0), (50000, 0)])
        ]
        (tmp_path / INSTANCES.format(part)).write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": [{"id": category, "name": "cat"}]})
        )
    objects = read_objects(tmp_path, exclude=["COCO_val2014_000000000003"])
    assert objects.names == ("cat",)
    assert [objects.images[i] for i in objects.members] == [
        f"COCO_{part}2014_{i:012d}" for part, places in (("train", (0, 3, 4)), ("val", (0, 4))) for i in places
    ]


def instances(folder):
    "Two small sound files."
    for part in "train", "val":
        (folder / INSTANCES.format(part)).write_text(
            json.dumps(
                {
                    "images": [{"id": i, "file_name": f"COCO_{part}2014_{i:012d}.jpg"} for i in range(3)],
                    "annotations": [
                        {"image_id": i, "category_id": 7, "area": 30000.5, "iscrowd": 0, "segmentation": [[1.0]]}
                        for i in range(3)
                    ],
                    "categories": [{"id": 7, "name": "cat"}],
                }
            )
        )
    return folder


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["annotations"][1].update(area="large"), r"annotations\[1\].area"),
        (lambda c: c["annotations"][1].update(image_id="1"), r"annotations\[1\].image_id"),
        (lambda c: c["annotations"][1].pop("area"), r"annotations\[1\]: expected `area` or `bbox`"),
        (lambda c: c["annotations"][1].update(iscrowd=2), r"annotations\[1\].iscrowd"),
        (lambda c: c["images"][2].update(id="2"), r"images\[2\].id"),
        (lambda c: c["annotations"][1].update(image_id=99), r"annotations\[1\].*got id 99"),
        (lambda c: c["annotations"][2].update(category_id=8), r"annotations\[2\].*got id 8"),
        (lambda c: c["images"].append(c["images"][0]), r"images\[0\].id: 0 occurs more than once"),
        (lambda c: c["categories"].append(c["categories"][0]), r"categories\[0\].id: 7 occurs"),
        (lambda c: c.pop("categories"), "categories"),
    ],
)
def test_damaged_instances_are_refused_with_their_place(tmp_path, change, words):
    path = instances(tmp_path) / INSTANCES.format("val")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match=words) as error:
        read_objects(tmp_path)
    assert str(path) in str(error.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_or_overwritten_instances_are_read_or_refused(data, tmp_path_factory):
    path = instances(tmp_path_factory.mktemp("coco")) / INSTANCES.format(data.draw(st.sampled_from(["train", "val"])))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(
        content[:place] + data.draw(st.binary(max_size=8)) + data.draw(st.sampled_from([b"", content[place + 1 :]]))
    )
    try:
        read_objects(path.parent)
    except FileError as error:
        assert str(path) in str(error)


def test_a_missing_file_of_instances_is_named(tmp_path):
    (instances(tmp_path) / INSTANCES.format("train")).unlink()
    with pytest.raises(FileError, match="instances_train2014.json: expected a JSON file, found none"):
        read_objects(tmp_path)


def test_fields_that_annotation_tools_leave_out(tmp_path):
    "No iscrowd: no crowd. No area: that of the box. Endings in capitals go, folders stay."
    path = instances(tmp_path) / INSTANCES.format("val")
    content = json.loads(path.read_text())
    expected = read_objects(tmp_path)
    del content["annotations"][0]["iscrowd"]
    content["annotations"][1]["iscrowd"] = False
    del content["annotations"][2]["area"]
    content["annotations"][2]["bbox"] = [0, 0, 200, 150]
    content["images"][0]["file_name"] = content["images"][0]["file_name"].replace(".jpg", ".JPG")
    path.write_text(json.dumps(content))
    seen = read_objects(tmp_path)
    assert seen.images == expected.images and (seen.members == expected.members).all()
    content["annotations"][2]["bbox"] = [0, 0, 20, 15]
    content["annotations"][1]["iscrowd"] = True
    path.write_text(json.dumps(content))
    assert read_objects(tmp_path).sizes.sum() == expected.sizes.sum() - 2


def test_other_years_are_refused_by_name(tmp_path):
    for part in "train", "val":
        (instances(tmp_path) / INSTANCES.format(part)).rename(tmp_path / f"instances_{part}2017.json")
    (tmp_path / INSTANCES.format("val")).unlink(missing_ok=True)
    (tmp_path / INSTANCES.format("train")).unlink(missing_ok=True)
    with pytest.raises(FileError, match="found instances_train2017.json, instances_val2017.json; only those of 2014"):
        read_objects(tmp_path)
