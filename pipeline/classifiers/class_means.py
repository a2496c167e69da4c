"""Nearest class mean: cosine with the mean vector of each class.

Axes: B images · C classes · F width of the vectors.

Source: SimpleCIL, arXiv 2303.07338, whose reference averages features that are not normalised.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.classifiers.base import ClassifierContext, Embedded, EmbeddedImages, Moment
from pipeline.classifiers.closed_form import ClosedForm, ClosedFormOptions
from pipeline.classifiers.heads import LinearHead
from pipeline.classifiers.vectors import vectors_of, width_of
from pipeline.model.prompts import unit
from pipeline.tasks import Task


class ClassMeansOptions(ClosedFormOptions):
    """Which vectors are averaged."""


class ClassMeans(ClosedForm):
    """``logits = cos(x, mean of class c)``; one mean per class, over all of its tasks."""

    Options = ClassMeansOptions
    probability_scale = 18.0  # see docs/PREDICT.md

    def __init__(self, context: ClassifierContext, options: ClassMeansOptions) -> None:
        super().__init__(context, options, width=width_of(options.vectors, context))
        self._mean_CF: Tensor | None = None

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        """Add up the vectors of each class of the task."""
        self.follow_drift(moment, images)
        if moment == "end":
            for embedded, label_B in images:
                self.sums[-1].add_(self.class_sums(self.read(embedded), label_B))

    def read(self, embedded: Embedded) -> Tensor:
        """The chosen vectors, raw."""
        return vectors_of(embedded, self.options.vectors)

    def end_task(self, task: Task) -> None:
        """Scale the sums of all classes to length 1; their number of images plays no part."""
        self._mean_CF = unit(self.total_sums())

    def logits(self, embedded: Embedded) -> Tensor:
        """Cosines ``logits_BC``, in [-1, 1]."""
        assert self._mean_CF is not None, "no task has ended"
        return unit(self.read(embedded)) @ self._mean_CF.T

    def heads(self) -> list[LinearHead]:
        """One head: the means."""
        assert self._mean_CF is not None, "no task has ended"
        return [LinearHead((tuple(self.options.vectors),), self._mean_CF)]
