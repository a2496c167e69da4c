"""Tensors with a row per class, kept by task: a later task can have further images of a class.

Each task keeps a tensor with one row for each of its classes, known ones first, as
:attr:`pipeline.tasks.Task.classes` lists them. The tensors of earlier tasks never change.

Axes: N images · C classes of a task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.tasks import Task


def newest_rows(parts: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """One row for every class so far, in class order: that of the last task that has the class."""
    rows = _first_rows(parts, tasks)
    for part, task in zip(parts, tasks, strict=True):
        if task.known:
            rows = rows.index_copy(0, _known(task, part), part[: len(task.known)])
    return rows


def summed_rows(parts: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """One row for every class so far, in class order: the sum over all tasks that have it."""
    rows = _first_rows(parts, tasks)
    for part, task in zip(parts, tasks, strict=True):
        if task.known:
            rows = rows.index_add(0, _known(task, part), part[: len(task.known)])
    return rows


def initial_rows(parts: Sequence[Tensor], tasks: Sequence[Task], *shape: int) -> Tensor:
    """The rows with which the last of ``tasks`` starts, each of ``shape``, without gradient.

    Known classes start from their newest rows in ``parts``, those of the earlier tasks; new classes
    start at zero.
    """
    *earlier, task = tasks
    rows = torch.zeros(len(task.classes), *shape)
    if task.known:
        newest = newest_rows(parts, earlier).detach()
        rows[: len(task.known)] = newest[list(task.known)]
    return rows


def positions(classes: Sequence[int], label_N: Tensor) -> Tensor:
    """The position of each label in ``classes``, which ascend; -1 for a label between them."""
    position_of = torch.full((classes[-1] + 1,), -1, device=label_N.device)
    position_of[list(classes)] = torch.arange(len(classes), device=label_N.device)
    return position_of[label_N]


def _first_rows(parts: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """The row of each class from the task in which it was new."""
    return torch.cat([part[len(task.known) :] for part, task in zip(parts, tasks, strict=True)])


def _known(task: Task, part: Tensor) -> Tensor:
    return torch.tensor(task.known, device=part.device)
