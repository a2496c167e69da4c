"""The common part of closed-form classifiers: sums over the vectors of each class.

Axes: B images · C classes of a task, or seen so far · F width of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.classifiers.base import (
    Classifier,
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
)
from pipeline.classifiers.drift import fit_drift
from pipeline.classifiers.vectors import Vector, reads_features
from pipeline.model.class_rows import positions, summed_rows
from pipeline.settings_file import Section
from pipeline.tasks import Task


class ClosedFormOptions(Section):
    """The vectors, and whether statistics follow their drift."""

    vectors: list[Vector] = ["embedding"]  # side by side
    drift_map: bool = False  # move old statistics by a linear map fitted on each task's images


class ClosedForm(Classifier):
    """A classifier that is fitted at the end of a task and never trained.

    ``sums`` has one parameter per task, C×F in float64, that no gradient changes. With
    ``drift_map`` each task but the first adds a map F×F, which all earlier sums pass through.
    """

    takes_known_classes = True

    def __init__(self, context: ClassifierContext, options: Any, *, width: int) -> None:
        super().__init__(context, options)
        self.sums = nn.ParameterList()
        self.maps = nn.ParameterList()  # per task from the second on, F×F; with drift_map only
        self._before_SF: Tensor | None = None  # the vectors of the task before its training
        self._width = width
        self._tasks: list[Task] = []

    @property
    def reads_features(self) -> bool:
        """Whether a vector comes from the frozen tower."""
        return reads_features(self.options.vectors)

    @property
    def fits(self) -> frozenset[Moment]:
        """The end of a task, and with ``drift_map`` the start."""
        return frozenset({"start", "end"} if self.options.drift_map else {"end"})

    def read(self, embedded: Embedded) -> Tensor:
        """The vectors ``vector_BF`` of which statistics are taken, float64."""
        raise NotImplementedError

    def begin_task(self, task: Task) -> None:
        """Make room for the sums of the classes of ``task``."""
        if self._tasks and self.options.drift_map:
            self.maps.append(self._constant(torch.eye(self._width, dtype=torch.float64)))
        self._tasks.append(task)
        zero_CF = torch.zeros(len(task.classes), self._width, dtype=torch.float64)
        self.sums.append(self._constant(zero_CF))

    def follow_drift(self, moment: Moment, images: EmbeddedImages) -> Tensor | None:
        """The map of this task, once its images were read at both moments; else None."""
        if not self.maps:
            return None
        vector_SF = torch.cat([self.read(embedded) for embedded, _ in images])
        if moment == "start":
            self._before_SF = vector_SF
            return None
        assert self._before_SF is not None, "drift_map reads the images at the start of a task"
        self.maps[-1].copy_(fit_drift(self._before_SF, vector_SF))
        self._before_SF = None
        return self.maps[-1]

    def one_hot(self, label_B: Tensor) -> Tensor:
        """The classes of some images of the current task as ``one_hot_BC``, float64."""
        classes = self._tasks[-1].classes
        return F.one_hot(positions(classes, label_B), len(classes)).double()

    def class_sums(self, vector_BF: Tensor, label_B: Tensor) -> Tensor:
        """The sum of the vectors of each class of the current task, ``sum_CF``."""
        return self.one_hot(label_B).T @ vector_BF

    def total_sums(self) -> Tensor:
        """The sum of the vectors of every class over all of its tasks, ``sum_CF``."""
        moved = [self._moved(sum_CF, self.maps[index:]) for index, sum_CF in enumerate(self.sums)]
        return summed_rows(moved, self._tasks)

    @staticmethod
    def _moved(sum_CF: Tensor, maps: Iterable[Tensor]) -> Tensor:
        """Sums of one task after the maps of all later tasks."""
        for map_FF in maps:
            sum_CF = sum_CF @ map_FF
        return sum_CF

    def _constant(self, value: Tensor) -> nn.Parameter:
        """A tensor of this task that no gradient changes."""
        return nn.Parameter(value.to(self.context.clip.device), requires_grad=False)
