"""The common part of closed-form classifiers: sums over the vectors of each class.

Axes: B images · C classes of a task · F width of the vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.classifiers.base import Classifier, ClassifierContext, Moment
from pipeline.classifiers.vectors import reads_features
from pipeline.tasks import Task


class ClosedForm(Classifier):
    """A classifier that is fitted at the end of a task and never trained.

    ``sums`` has one parameter per task, C×F in float64, that no gradient changes.
    """

    def __init__(self, context: ClassifierContext, options: Any, *, width: int) -> None:
        super().__init__(context, options)
        self.sums = nn.ParameterList()
        self._width = width
        self._first = 0  # class of the current task

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
        self._first = task.first
        zero_CF = torch.zeros(len(task.labels), self._width, dtype=torch.float64)
        self.sums.append(nn.Parameter(zero_CF, requires_grad=False))

    def class_sums(self, vector_BF: Tensor, label_B: Tensor) -> Tensor:
        """The sum of the vectors of each class of the current task, ``sum_CF``."""
        one_hot_BC = F.one_hot(label_B - self._first, len(self.sums[-1])).to(vector_BF.dtype)
        return one_hot_BC.T @ vector_BF
