"""The weighted sum of two classifiers, each divided by the spread of its scores.

Axes: B images · C classes seen so far.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from pipeline.classifiers.base import (
    Classifier,
    ClassifierConfig,
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
    split_off,
)
from pipeline.classifiers.heads import LinearHead
from pipeline.settings_file import Section
from pipeline.tasks import Task

_WEIGHTS = tuple(number / 10 for number in range(11))


class WeightedSumOptions(Section):
    """Two classifiers and the weight of the second."""

    first: ClassifierConfig = ClassifierConfig(name="text_anchors")
    second: ClassifierConfig = ClassifierConfig(name="ridge")
    weight: float | None = Field(None, ge=0, le=1)  # of the second; None = chosen in the first task


class WeightedSum(Classifier):
    """``logits = (1 - w) a / σ_a + w b / σ_b``.

    The spreads σ are the standard deviations of the scores of the newest task's training images
    over all classes seen, so a prediction does not depend on its neighbours. Without a given
    weight, w is chosen on every fifth training image of the first task, which the others then
    classify: the candidate with the most correct predictions, of equals the one nearest to 0.5.
    """

    Options = WeightedSumOptions
    probability_scale = 1.25  # see docs/PREDICT.md
    takes_known_classes = True  # if both of its parts do

    def __init__(self, context: ClassifierContext, options: WeightedSumOptions) -> None:
        super().__init__(context, options)
        self.first, self.second = self._build()
        self.weight: Tensor
        self.spread_2: Tensor
        self.register_buffer("weight", torch.full((), -1.0, dtype=torch.float64))
        self.register_buffer("spread_2", torch.ones(2, dtype=torch.float64))
        self._task: Task | None = None

    @property
    def parts(self) -> tuple[Classifier, Classifier]:
        """The two classifiers."""
        return self.first, self.second

    @property
    def reads_features(self) -> bool:
        """Whether one of the two reads features of the frozen tower."""
        return any(part.reads_features for part in self.parts)

    @property
    def fits(self) -> frozenset[Moment]:
        """The moments of the two, and the end of a task, at which the spreads are measured."""
        return self.first.fits | self.second.fits | {"end"}

    @property
    def anchor_CE(self) -> Tensor | None:
        """The anchors of the first of the two that has any."""
        anchors = (part.anchor_CE for part in self.parts)
        return next((anchor_CE for anchor_CE in anchors if anchor_CE is not None), None)

    def begin_task(self, task: Task) -> None:
        """Begin it in both."""
        self._task = task
        for part in self.parts:
            part.begin_task(task)

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        """Fit both, then measure their spreads; in the first task choose the weight before."""
        if moment == "end" and float(self.weight) < 0:
            weight = self.options.weight
            self.weight.fill_(self._choose_weight(images) if weight is None else weight)
        for part in self.parts:
            if moment in part.fits:
                part.fit(moment, images)
        if moment == "end":
            self.spread_2.copy_(_spreads(self._end(self.parts), images))

    def loss(self, embedded: Embedded, label_N: Tensor) -> Tensor | None:
        """The losses of the two, if a gradient trains them."""
        losses = [part.loss(embedded, label_N) for part in self.parts]
        terms = [loss for loss in losses if loss is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    def end_task(self, task: Task) -> None:
        """End it in both."""
        for part in self.parts:
            part.end_task(task)

    def logits(self, embedded: Embedded) -> Tensor:
        """The weighted sum ``logits_BC``."""
        first_BC, second_BC = _scaled(self.parts, embedded, self.spread_2)
        return (1 - self.weight) * first_BC + self.weight * second_BC

    def heads(self) -> list[LinearHead]:
        """The heads of both, with their weights divided by their spreads."""
        weight, (first, second) = float(self.weight), self.spread_2.tolist()
        heads_of_first = [head.weighted((1 - weight) / first) for head in self.first.heads()]
        return heads_of_first + [head.weighted(weight / second) for head in self.second.heads()]

    def _build(self) -> tuple[Classifier, Classifier]:
        build = self.context.build
        assert build is not None, "made by build_classifier"
        return build(self.options.first, self.context), build(self.options.second, self.context)

    def _end(self, parts: tuple[Classifier, Classifier]) -> tuple[Classifier, Classifier]:
        assert self._task is not None, "no task was started"
        for part in parts:
            part.end_task(self._task)
        return parts

    def _choose_weight(self, images: EmbeddedImages) -> float:
        assert self._task is not None, "no task was started"
        kept, held = split_off(images)
        parts = self._build()
        for part in parts:
            part.begin_task(self._task)
            part.to(self.context.clip.device)
            if "end" in part.fits:
                part.fit("end", kept)
        spread_2 = _spreads(self._end(parts), kept)
        correct = dict.fromkeys(_WEIGHTS, 0)
        for embedded, label_B in held:
            first_BC, second_BC = _scaled(parts, embedded, spread_2)
            for weight in _WEIGHTS:
                predicted_B = ((1 - weight) * first_BC + weight * second_BC).argmax(dim=1)
                correct[weight] += int((predicted_B == label_B).sum())
        return max(_WEIGHTS, key=lambda weight: (correct[weight], -abs(weight - 0.5)))


def _scaled(
    parts: tuple[Classifier, Classifier], embedded: Embedded, spread_2: Tensor
) -> tuple[Tensor, Tensor]:
    """The scores ``logits_BC`` of each, divided by its spread."""
    first, second = parts
    return (
        first.logits(embedded).double() / spread_2[0],
        second.logits(embedded).double() / spread_2[1],
    )


def _spreads(parts: tuple[Classifier, Classifier], images: EmbeddedImages) -> Tensor:
    """The standard deviations ``spread_2`` of the scores of some images."""
    scores = [[part.logits(embedded).double() for embedded, _ in images] for part in parts]
    return torch.stack([torch.cat(each).std().clamp_min(1e-12) for each in scores])
