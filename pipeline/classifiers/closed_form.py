"""The common part of closed-form classifiers: sums over the vectors of each class.

Axes: B images · C classes of a task, or seen so far · F width of the vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.classifiers.base import Classifier, ClassifierContext, Moment
from pipeline.classifiers.vectors import reads_features
from pipeline.model.class_rows import positions, summed_rows
from pipeline.tasks import Task


class ClosedForm(Classifier):
    """A classifier that is fitted at the end of a task and never trained.

    ``sums`` has one parameter per task, C×F in float64, that no gradient changes.
    """

    takes_known_classes = True

    def __init__(self, context: ClassifierContext, options: Any, *, width: int) -> None:
        super().__init__(context, options)
        self.sums = nn.ParameterList()
        self._width = width
        self._tasks: list[Task] = []

    @property
    def reads_features(self) -> bool:
        """Whether a vector comes from the frozen tower."""
        return reads_features(self.options.vectors)

    @property
    def fits(self) -> frozenset[Moment]:
        """The end of a task."""
        return frozenset({"end"})

    def begin_task(self, task: Task) -> None:
        """Make room for the sums of the classes of ``task``."""
        self._tasks.append(task)
        zero_CF = torch.zeros(len(task.classes), self._width, dtype=torch.float64)
        self.sums.append(nn.Parameter(zero_CF, requires_grad=False))

    def one_hot(self, label_B: Tensor) -> Tensor:
        """The classes of some images of the current task as ``one_hot_BC``, float64."""
        classes = self._tasks[-1].classes
        return F.one_hot(positions(classes, label_B), len(classes)).double()

    def class_sums(self, vector_BF: Tensor, label_B: Tensor) -> Tensor:
        """The sum of the vectors of each class of the current task, ``sum_CF``."""
        return self.one_hot(label_B).T @ vector_BF

    def total_sums(self) -> Tensor:
        """The sum of the vectors of every class over all of its tasks, ``sum_CF``."""
        return summed_rows([*self.sums], self._tasks)
