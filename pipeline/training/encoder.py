"""The images of a selection, encoded by the method as it is now.

Axes: B images of this rank · E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.data.index import Selection
from pipeline.data.transforms import Transform
from pipeline.distributed.world import World
from pipeline.methods.base import Method
from pipeline.model.backbone import ImageFeatures
from pipeline.training.batches import TaskBatches
from pipeline.training.features import FrozenFeatures, FrozenStore, gather_columns


class Encoder:
    """Encodes selections under the evaluation transform; reads images only if the method must."""

    def __init__(
        self, method: Method, world: World, batches: TaskBatches, store: FrozenStore, *, batch: int
    ) -> None:
        self._method = method
        self._world = world
        self._batches = batches
        self._store = store
        self._batch = batch

    @torch.no_grad()
    def share(self, selection: Selection) -> Iterator[tuple[Embedded, Tensor]]:
        """This rank's share as encoded images and class numbers, each image once over all ranks."""
        method, frozen = self._method, self._features(selection)
        if not method.inputs.images:
            rows = slice(self._world.rank, None, self._world.world_size)
            features, label_B = frozen.rows(rows)
            yield method.encode(None, features), self._batches.classes(label_B)
            return
        for batch in self._batches.all_of(selection, self._batches.eval_transform):
            features = frozen.of(batch.sample_B) if frozen else None
            yield (
                method.encode(batch.image_BCHW, features),
                self._batches.classes(batch.label_B),
            )

    @torch.no_grad()
    def everything(self, selection: Selection) -> list[tuple[Embedded, Tensor]]:
        """All images in canonical order, the same chunks with the same bits on every rank.

        Takes ``S × E × 4`` bytes for S images on every rank.
        """
        method, frozen = self._method, self._features(selection)
        if not method.inputs.images:
            return [
                (method.encode(None, features), self._batches.classes(label_B))
                for features, label_B in self._chunks(frozen)
            ]
        usable_S, (embedding_SE,) = gather_columns(
            selection,
            self._batches.all_of(selection, self._batches.eval_transform),
            lambda batch: [
                method.encode(
                    batch.image_BCHW, frozen.of(batch.sample_B) if frozen else None
                ).embedding_BE
            ],
            [method.embedding_width],
            self._world.device,
        )
        label_S = self._batches.classes(torch.from_numpy(selection.label_S)[usable_S])
        chunks = zip(embedding_SE.split(self._batch), label_S.split(self._batch), strict=True)
        features = [each for each, _ in self._chunks(frozen)] if frozen else None
        return [
            (Embedded(embedding_BE, features=features[number] if features else None), label_B)
            for number, (embedding_BE, label_B) in enumerate(chunks)
        ]

    def n_unusable(self, selection: Selection) -> int:
        """How many samples of a selection were skipped, over all ranks; every rank asks."""
        if not self._method.inputs.images:
            return len(selection) - len(self._features(selection).sample_S)
        return len({*selection.sample_S.tolist()} & self._batches.skipped_samples().keys())

    def features(self, selection: Selection, transform: Transform) -> FrozenFeatures:
        """Frozen features of a selection under ``transform``."""
        return self._store.get(
            selection, transform, lambda: self._batches.all_of(selection, transform)
        )

    def _features(self, selection: Selection) -> FrozenFeatures | None:
        if not self._method.needs_features:
            return None
        return self.features(selection, self._batches.eval_transform)

    def _chunks(self, frozen: FrozenFeatures) -> Iterator[tuple[ImageFeatures, Tensor]]:
        """Rows of at most ``batch`` images, in canonical order."""
        for start in range(0, len(frozen.sample_S), self._batch):
            yield frozen.rows(slice(start, start + self._batch))
