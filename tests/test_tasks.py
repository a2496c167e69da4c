"""Class orders, equal to those of other projects, and their division into tasks."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.tasks import (
    class_order,
    known_names,
    labels_with_images,
    split_classes,
    with_known_classes,
)


def split(n_classes: int, **rule: int) -> list[int]:
    """The sizes of the tasks of ``n_classes`` classes."""
    tasks = split_classes(range(n_classes), [f"c{label}" for label in range(n_classes)], **rule)
    return [len(task.labels) for task in tasks]


@pytest.mark.parametrize(
    ("n_classes", "first"),
    [
        (100, [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]),
        (200, [168, 136, 51, 9, 183, 101, 171, 99, 42, 159]),
        (300, [169, 221, 146, 296, 92, 229, 49, 70, 126, 77]),
    ],
)
def test_lamda_order_equals_the_published_order(n_classes, first):
    """must give the published first classes of seed 1993 with every version of numpy"""
    order = class_order("lamda", n_classes, 1993)
    assert list(order[:10]) == first
    assert sorted(order) == list(range(n_classes))


def test_mammoth_reads_the_permutation_of_lamda_the_other_way_round():
    """must give the classes of Mammoth's first task, and share 2 of 10 with that of lamda"""
    order = class_order("mammoth", 100, 1993)
    assert set(order[:10]) == {3, 12, 15, 23, 34, 57, 69, 84, 87, 89}
    lamda = class_order("lamda", 100, 1993)
    assert len(set(order[:10]) & set(lamda[:10])) == 2
    assert [order[label] for label in lamda] == list(range(100))


def test_icarl_order_is_one_of_100_classes():
    order = class_order("icarl", 100, 1)
    assert sorted(order) == list(range(100))
    assert (order[:4], order[-3:]) == ((87, 0, 52, 58), (26, 35, 39))
    with pytest.raises(ConfigError, match="'icarl' is an order of 100 classes and these are 7"):
        class_order("icarl", 7, 1)


def test_lamda_order_does_not_change_the_global_numpy_stream():
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    class_order("lamda", 100, 1993)
    assert np.random.rand() == expected


def test_natural_and_listed_orders_are_used_unchanged():
    assert class_order("natural", 4, 1993) == (0, 1, 2, 3)
    assert class_order([2, 0, 3, 1], 4, 1993) == (2, 0, 3, 1)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("lambda", "found 'lambda'; use 'natural', 'lamda', 'mammoth', 'icarl' or"),
        ([0, 1, 1], "each label 0..2 once, found 3 entries, 2 of them different"),
        ([0, 1], "each label 0..2 once, found 2 entries"),
        ([0, 1, 3], "each label 0..2 once"),
    ],
)
def test_invalid_order_is_refused(rule, words):
    with pytest.raises(ConfigError, match=words):
        class_order(rule, 3, 1993)


@pytest.mark.parametrize(
    ("n_classes", "rule", "sizes"),
    [
        (100, {"classes_per_task": 10}, [10] * 10),
        (100, {"classes_per_task": 10, "initial_classes": 50}, [50] + [10] * 5),
        (300, {"classes_per_task": 30, "initial_classes": 150}, [150] + [30] * 5),
        (100, {"classes_per_task": 20, "initial_classes": 50}, [50, 20, 20, 10]),
        (7, {"classes_per_task": 3}, [3, 3, 1]),
        (7, {"classes_per_task": 7}, [7]),
        (7, {"classes_per_task": 9, "initial_classes": 7}, [7]),
        (7, {"classes_per_task": 3, "limit": 2}, [3, 3]),
        (7, {"classes_per_task": 3, "limit": 9}, [3, 3, 1]),
    ],
)
def test_sizes_of_tasks(n_classes, rule, sizes):
    assert split(n_classes, **rule) == sizes


def test_tasks_follow_the_order_and_number_its_classes():
    names = ["a", "b", "c", "d", "e"]
    first, second, third = split_classes([3, 1, 4, 0, 2], names, classes_per_task=2)
    assert [task.labels for task in (first, second, third)] == [(3, 1), (4, 0), (2,)]
    assert [task.names for task in (first, second, third)] == [("d", "b"), ("e", "a"), ("c",)]
    assert [(task.first, task.last) for task in (first, second, third)] == [(0, 2), (2, 4), (4, 5)]
    assert [task.index for task in (first, second, third)] == [0, 1, 2]


def test_later_group_without_new_classes_is_a_task():
    """must have earlier classes alone, and shift no number of those after it"""
    tasks = split_classes(
        [1, 0, 2, 4, 3], "abcde", classes_per_task=2, group_sizes=[3, 0, 2], appended="one_task"
    )
    tasks = with_known_classes(tasks, [(), (2, 1), (0,)])
    assert [task.names for task in tasks] == [("b", "a"), ("c",), (), ("e", "d")]
    assert [task.group for task in tasks] == [0, 0, 1, 2]
    assert [task.known for task in tasks[2:]] == [(0, 2), (1,)]
    assert [task.classes for task in tasks] == [(0, 1), (2,), (0, 2), (1, 3, 4)]
    assert labels_with_images(tasks) == [(1, 0), (2,), (1, 2), (0, 4, 3)]
    assert known_names(tasks) == [[], [], ["b", "c"], ["a"]]


def test_each_index_can_be_one_task():
    groups = {"group_sizes": [3, 0, 2], "classes_per_task": "all"}
    tasks = split_classes([1, 0, 2, 4, 3], "abcde", **groups)
    assert [task.names for task in tasks] == [("b", "a", "c"), (), ("e", "d")]
    assert split_classes([1, 0, 2, 4, 3], "abcde", limit=1, **groups) == tasks[:1]
    assert split(7, classes_per_task="all") == [7]


def test_first_task_larger_than_the_data_is_refused():
    with pytest.raises(
        ConfigError, match="needs 8 classes and data.index has 7; lower tasks.initial"
    ):
        split(7, classes_per_task=2, initial_classes=8)
