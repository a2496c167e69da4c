"""The test of all tasks seen so far, with diagnostics of the embeddings.

Axes: C classes · E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.methods.base import Method
from pipeline.tasks import Task
from pipeline.training.encoder import Encoder
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

    scores: list[TaskScore]
    anchor_cosine: float | None  # None where the classifier has no anchors
    modality_gap: float | None
    feature_drift: float | None  # None after the first task


class Evaluator:
    """Tests tasks, each image once over all ranks, and remembers where class means were."""

    def __init__(self, method: Method, data: TaskData, encoder: Encoder) -> None:
        self._method = method
        self._data = data
        self._encoder = encoder
        # Mean embedding of each class when its task was learned: per task, C×E.
        self.class_means: list[Tensor] = []

    def test(self, seen: Sequence[Task]) -> StageScores:
        """Test every task of ``seen``, the last of which has just been learned; every rank asks."""
        self._encoder.begin_test()
        scores = [self._score(task) for task in seen]
        self.class_means.append(scores[-1].class_mean_CE)
        anchor_CE = self._method.classifier.anchor_CE
        return StageScores(
            scores=scores,
            anchor_cosine=None if anchor_CE is None else anchor_cosine(anchor_CE),
            modality_gap=None if anchor_CE is None else modality_gap(scores, anchor_CE),
            feature_drift=self._drift(scores[:-1]),
        )

    def _score(self, task: Task) -> TaskScore:
        """How ``task`` is classified among all classes seen so far."""
        selection = self._data.test(task)
        images = self._encoder.share(selection)
        score = score_task(self._method, images, classes=task.classes)
        expected = len(selection) - self._encoder.n_unusable(selection)
        assert score.images == expected, (
            f"task {task.index + 1}: {score.images} images were tested instead of {expected}"
        )
        return score

    def _drift(self, old_scores: list[TaskScore]) -> float | None:
        if not old_scores:
            return None
        now_CE = torch.cat([score.class_mean_CE for score in old_scores])
        return feature_drift(now_CE, torch.cat(self.class_means[: len(old_scores)]))
