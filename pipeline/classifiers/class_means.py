"""Nearest class mean: cosine with the mean vector of each class.

Axes: B images · C classes · F width of the vectors.

Source: SimpleCIL, arXiv 2303.07338, whose reference averages features that are not normalised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.classifiers.base import (
    Classifier,
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
)
from pipeline.classifiers.vectors import Vector, class_sums, reads_features, vectors_of, width_of
from pipeline.model.prompts import unit
from pipeline.settings_file import Section
from pipeline.tasks import Task


class ClassMeansOptions(Section):
    """Which vectors are averaged, side by side."""

    vectors: list[Vector] = ["embedding"]


class ClassMeans(Classifier):
    """``logits = cos(x, mean of class c)``; one mean per class, made in the task of the class."""

    Options = ClassMeansOptions

    def __init__(self, context: ClassifierContext, options: ClassMeansOptions) -> None:
        super().__init__(context, options)
        self.sums = nn.ParameterList()  # per task, C×F in float64
        self._task: Task | None = None
        self._mean_CF: Tensor | None = None

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
        self._task = task
        shape = len(task.labels), width_of(self.options.vectors, self.context)
        zero_CF = torch.zeros(shape, dtype=torch.float64)
        self.sums.append(nn.Parameter(zero_CF, requires_grad=False))

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        """Add up the vectors of each class of the task."""
        assert self._task is not None, "no task has begun"
        for embedded, label_B in images:
            vector_BF = vectors_of(embedded, self.options.vectors)
            position_B = label_B - self._task.first
            self.sums[-1].add_(class_sums(vector_BF, position_B, len(self._task.labels)))

    def end_task(self, task: Task) -> None:
        """Scale the sums of all classes to length 1; their number of images plays no part."""
        self._mean_CF = unit(torch.cat([*self.sums]))

    def logits(self, embedded: Embedded) -> Tensor:
        """Cosines ``logits_BC``, in [-1, 1]."""
        assert self._mean_CF is not None, "no task has ended"
        return unit(vectors_of(embedded, self.options.vectors)) @ self._mean_CF.T
