"""The test of all tasks seen so far, with diagnostics of the embeddings.

Axes: C classes · E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.base import Method
from pipeline.output.predictions import Prediction
from pipeline.output.results_builder import Stage
from pipeline.tasks import Task
from pipeline.training.anchor_change import AnchorChange, compare_anchors, frozen_anchors
from pipeline.training.encoder import Encoder
from pipeline.training.label_space import SeenClasses
from pipeline.training.predictions import TopClasses
from pipeline.training.scoring import (
    TaskScore,
    anchor_cosine,
    feature_drift,
    modality_gap,
    score_task,
)
from pipeline.training.task_data import TaskData


@dataclass(frozen=True)
class StageScores:
    """The test after one task: a score per seen task, and the diagnostics of the stage."""

    seen: Sequence[Task]
    scores: list[TaskScore]
    top: list[TopClasses]  # of each seen task; empty if no predictions are kept
    anchor_cosine: float | None  # None where the classifier has no anchors
    modality_gap: float | None
    feature_drift: float | None  # None after the first task
    anchor_change: AnchorChange | None  # None where the classifier has no anchors

    def predictions(self, class_of_label: Tensor) -> Iterator[Prediction]:
        """The prediction of each tested image, in canonical order."""
        for task, top in zip(self.seen, self.top, strict=False):
            yield from top.predictions(task, class_of_label)

    def class_counts(self) -> tuple[list[int], list[int]]:
        """Correct and tested images of each class seen so far, over all tasks that test it."""
        correct, images = [0] * self.seen[-1].last, [0] * self.seen[-1].last
        for task, score in zip(self.seen, self.scores, strict=True):
            counts = zip(task.classes, score.class_correct, score.class_images, strict=True)
            for number, right, total in counts:
                correct[number] += right
                images[number] += total
        return correct, images

    def stage(
        self, *, n_trainable: int, n_trained: int, train_seconds: float, test_seconds: float
    ) -> Stage:
        """The measurements of the stage; ``n_trained`` images, with repeats, were trained on."""
        class_correct, class_images = self.class_counts()
        change = self.anchor_change
        return Stage(
            correct=tuple(score.correct for score in self.scores),
            images=tuple(score.images for score in self.scores),
            anchor_cosine=self.anchor_cosine,
            modality_gap=self.modality_gap,
            feature_drift=self.feature_drift,
            trainable_parameters=n_trainable,
            images_per_second=n_trained / train_seconds if n_trained else None,
            train_seconds=train_seconds,
            test_seconds=test_seconds,
            class_correct=tuple(class_correct),
            class_images=tuple(class_images),
            frozen_anchor_cosine=change and change.frozen_cosine,
            cosine_to_frozen=change and change.cosine_to_frozen,
        )


class Evaluator:
    """Tests tasks, each image once over all ranks, and remembers where class means were.

    With ``keeps_predictions`` a test also gives the prediction of each image. ``label_space`` are
    the possible answers, by default all classes seen so far.
    """

    def __init__(
        self,
        method: Method,
        data: TaskData,
        encoder: Encoder,
        *,
        keeps_predictions: bool = False,
        label_space: SeenClasses | None = None,
    ) -> None:
        self._method = method
        self._keeps_predictions = keeps_predictions
        self._label_space = label_space or SeenClasses(method)
        self._data = data
        self._encoder = encoder
        # Mean embedding of each class when its task was learned: per task, C×E.
        self.class_means: list[Tensor] = []

    def test(self, seen: Sequence[Task]) -> StageScores:
        """Test the tasks ``seen``, the last of which was just learned; a collective call."""
        self._encoder.begin_test()
        top = [self._top_classes(task, seen[-1].last) for task in seen]
        scores = [self.score(*each) for each in zip(seen, top, strict=True)]
        self.class_means.append(scores[-1].class_mean_CE)
        anchor_CE = self._method.classifier.anchor_CE
        return StageScores(
            seen=seen,
            scores=scores,
            top=[each for each in top if each is not None],
            anchor_cosine=None if anchor_CE is None else anchor_cosine(anchor_CE),
            modality_gap=None if anchor_CE is None else modality_gap(scores, anchor_CE),
            feature_drift=self._drift(scores[:-1]),
            anchor_change=self._anchor_change(anchor_CE),
        )

    def _top_classes(self, task: Task, n_classes: int) -> TopClasses | None:
        if not self._keeps_predictions:
            return None
        n_possible = self._label_space.size(task, n_classes)
        return TopClasses(self._data.test(task), n_possible, self._method.clip.device)

    def score(self, task: Task, top: TopClasses | None = None) -> TaskScore:
        """How the images of ``task`` are classified; a collective call."""
        selection = self._data.test(task)
        images, space = self._encoder.share(selection), self._label_space
        score = score_task(self._method, images, task=task, label_space=space, top=top)
        expected = len(selection) - self._encoder.n_unusable(selection)
        assert score.images == expected, (
            f"task {task.index + 1}: {score.images} images were tested instead of {expected}"
        )
        return score

    def _anchor_change(self, anchor_CE: Tensor | None) -> AnchorChange | None:
        if anchor_CE is None or self._method.anchors is None:
            return None
        return compare_anchors(frozen_anchors(self._method.anchors), anchor_CE)

    def _drift(self, old_scores: list[TaskScore]) -> float | None:
        if not old_scores:
            return None
        now_CE = torch.cat([score.class_mean_CE for score in old_scores])
        return feature_drift(now_CE, torch.cat(self.class_means[: len(old_scores)]))
