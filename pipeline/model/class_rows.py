"""Tensors with a row per class, kept by task: a later task can have further images of a class.

Each task keeps a tensor with one row for each of its classes, known ones first, as
:attr:`pipeline.tasks.Task.classes` lists them. The tensors of earlier tasks never change.

Axes: N images · C classes of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
    device, size = label_N.device, len(classes)
    position_of = torch.full((classes[-1] + 1,), -1, device=device)
    gaps = [place for place in range(1, size) if classes[place] != classes[place - 1] + 1]
    # Slices, not a list as the index: the host would wait for the GPU to copy it there.
    for first, last in pairwise([0, *gaps, size]):
        start = classes[first]
        position_of[start : start + last - first] = torch.arange(first, last, device=device)
    return position_of[label_N]


def _first_rows(parts: Sequence[Tensor], tasks: Sequence[Task]) -> Tensor:
    """The row of each class from the task in which it was new."""
    return torch.cat([part[len(task.known) :] for part, task in zip(parts, tasks, strict=True)])


def _known(task: Task, part: Tensor) -> Tensor:
    return torch.tensor(task.known, device=part.device)
