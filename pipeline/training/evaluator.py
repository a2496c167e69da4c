"""The test of a task with what has been learned so far.

Axes: B images of this rank · E joint width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.data.index import Selection
from pipeline.distributed.world import World
from pipeline.methods.base import Method
from pipeline.tasks import Task
from pipeline.training.features import FrozenFeatures, FrozenStore
from pipeline.training.scoring import TaskScore, score_task
from pipeline.training.task_data import TaskData


class Evaluator:
    """Tests tasks, each image once over all ranks; images are read only if the method must."""

    def __init__(
        self, method: Method, world: World, pictures: TaskData, frozen: FrozenStore
    ) -> None:
        self._method = method
        self._world = world
        self._pictures = pictures
        self._frozen = frozen

    def score(self, task: Task) -> TaskScore:
        """How ``task`` is classified among all classes seen so far; every rank asks."""
        selection = self._pictures.test(task)
        classes = range(task.first, task.last)
        score = score_task(self._method, self._embedded(selection), classes=classes)
        wanted = len(selection) - self._n_unusable(selection)
        assert score.images == wanted, (
            f"task {task.index + 1}: {score.images} images were tested instead of {wanted}"
        )
        return score

    @torch.no_grad()
    def _embedded(self, selection: Selection) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of a test as ``(embedding_BE, label_B)``."""
        method, frozen = self._method, None
        if method.reads_frozen:
            frozen = self._frozen_features(selection)
        if not method.reads_images:
            features, label_B = frozen.share(self._world.rank, self._world.world_size)
            yield method.embed(None, features), self._pictures.classes(label_B)
            return
        for batch in self._pictures.whole(selection, self._pictures.eval_transform):
            features = frozen.of(batch.sample_B) if frozen else None
            yield method.embed(batch.image_BCHW, features), self._pictures.classes(batch.label_B)

    def _n_unusable(self, selection: Selection) -> int:
        """How many samples of a test were skipped, over all ranks."""
        if not self._method.reads_images:
            frozen = self._frozen_features(selection)
            return len(selection) - len(frozen.sample_S)
        return len({*selection.sample_S.tolist()} & self._pictures.skipped_samples().keys())

    def _frozen_features(self, selection: Selection) -> FrozenFeatures:
        transform = self._pictures.eval_transform
        return self._frozen.get(
            selection, transform, lambda: self._pictures.whole(selection, transform)
        )
