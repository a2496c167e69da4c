"""Rows per class that are kept by task: the newest one counts, or their sum."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.class_rows import initial_rows, newest_rows, positions, summed_rows
from pipeline.tasks import Task

TASKS = [
    Task(0, 0, (0, 1), ("a", "b")),
    Task(1, 2, (2,), ("c",), known=(1,)),
    Task(2, 3, (), (), known=(0, 1, 2)),
    Task(3, 3, (3,), ("d",)),
]
PARTS = [torch.full((len(task.classes), 2), 10.0**task.index) for task in TASKS]


def test_newest_row_of_a_class_counts():
    assert newest_rows(PARTS[:1], TASKS[:1]).tolist() == [[1, 1]] * 2
    assert newest_rows(PARTS[:2], TASKS[:2])[:, 0].tolist() == [1, 10, 10]
    assert newest_rows(PARTS, TASKS)[:, 0].tolist() == [100, 100, 100, 1000]


def test_rows_of_a_class_are_added_over_its_tasks():
    assert summed_rows(PARTS, TASKS)[:, 0].tolist() == [101, 111, 110, 1000]


def test_gradient_reaches_the_newest_row_alone():
    parts = [part.clone().requires_grad_() for part in PARTS[:2]]
    newest_rows(parts, TASKS[:2]).sum().backward()
    assert parts[0].grad[:, 0].tolist() == [1, 0] and parts[1].grad[:, 0].tolist() == [1, 1]


def test_known_classes_start_from_their_newest_rows():
    assert initial_rows([], TASKS[:1], 2).tolist() == [[0, 0]] * 2
    assert initial_rows(PARTS[:1], TASKS[:2], 2).tolist() == [[1, 1], [0, 0]]
    biases = [part[:, 0] for part in PARTS]
    assert initial_rows(biases[:2], TASKS[:3]).tolist() == [1, 10, 10]


def test_label_of_another_class_has_no_position():
    assert positions((1, 4, 5), torch.tensor([5, 1, 4, 3])).tolist() == [2, 0, 1, -1]
    with pytest.raises(IndexError):
        positions((1, 4, 5), torch.tensor([6]))
