"""The images of a selection, encoded by the method as it is now.

Axes: B images of this rank · S images of a selection · E embedding width · V vision width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.data.batch import Batch
from pipeline.data.index import Selection
from pipeline.data.transforms import Transform
from pipeline.distributed.world import World
from pipeline.methods.base import Method
from pipeline.training.activations import FILE_IMAGES
from pipeline.training.batches import TaskBatches
from pipeline.training.features import FrozenFeatures, FrozenStore, gather_columns


class EncodedBatch(NamedTuple):
    """Some images of a selection, encoded."""

    embedded: Embedded
    label_B: Tensor  # class numbers
    sample_B: Tensor  # numbers in the data set


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
        self._adaptation = b""  # fingerprint of the method in the last test
        self._is_unchanged = False  # whether it was the same in the test before
        self._shares: dict[bytes, list[EncodedBatch]] = {}  # by sample numbers

    def begin_test(self) -> None:
        """Keep the shares of earlier tests if the method embeds as it did in the last one.

        If only the first task trains prompts, a test image is then encoded once or twice in a run,
        not after every later task. Over all ranks, S kept images take ``S × (E + V) × 4`` bytes,
        and ``S × (E + 2 V) × 4`` more where frozen features are read.
        """
        adaptation = self._method.adaptation_sha256()
        self._is_unchanged = adaptation == self._adaptation
        self._adaptation = adaptation
        if not self._is_unchanged:
            self._shares.clear()

    @torch.no_grad()
    def share(self, selection: Selection) -> Iterator[EncodedBatch]:
        """This rank's share of a selection, each image once over all ranks.

        The batches of all ranks together are the same on any number of ranks.
        """
        if not self._method.inputs.images:
            frozen = self._features(selection)
            chunks, world = self._chunks(frozen.sample_S), self._world
            for number in np.array_split(range(len(chunks)), world.world_size)[world.rank]:
                rows = chunks[number]
                yield EncodedBatch(*self._encode_rows(frozen, rows), frozen.sample_S[rows])
            return
        key = selection.sample_S.tobytes()
        if key not in self._shares:
            share = self._encoded(selection)
            if not self._is_unchanged:
                yield from share
                return
            self._shares[key] = list(share)
        yield from self._shares[key]

    def _encoded(self, selection: Selection) -> Iterator[EncodedBatch]:
        encode = self._image_encoder(selection)
        for batch in self._batches.all_of(selection, self._batches.eval_transform):
            label_B = self._batches.classes(batch.label_B)
            yield EncodedBatch(encode(batch), label_B, batch.sample_B)

    @torch.no_grad()
    def everything(self, selection: Selection) -> list[tuple[Embedded, Tensor]]:
        """All images in canonical order, the same chunks with the same bits on every rank.

        Takes ``S × (E + V) × 4`` bytes for S images on every rank.
        """
        if not self._method.inputs.images:
            frozen = self._features(selection)
            return [self._encode_rows(frozen, rows) for rows in self._chunks(frozen.sample_S)]
        encode = self._image_encoder(selection)
        clip = self._method.clip
        usable_S, (embedding_SE, pooled_SV) = gather_columns(
            selection,
            self._batches.all_of(selection, self._batches.eval_transform),
            lambda batch: _columns(encode(batch), clip.vision_width),
            [self._method.embedding_width, clip.vision_width],
            self._world.device,
        )
        label_S = self._batches.classes(torch.from_numpy(selection.label_S)[usable_S])
        embedded = Embedded(embedding_SE, pooled_BV=pooled_SV)
        if self._method.needs_features:
            embedded = embedded._replace(features=self._features(selection).features)
        return [(embedded.rows(rows), label_S[rows]) for rows in self._chunks(label_S)]

    def n_unusable(self, selection: Selection) -> int:
        """How many samples of a selection were skipped, over all ranks; a collective call."""
        if not self._method.inputs.images:
            return len(selection) - len(self._features(selection).sample_S)
        return len({*selection.sample_S.tolist()} & self._batches.skipped_samples().keys())

    def features(self, selection: Selection, transform: Transform) -> FrozenFeatures:
        """Frozen features of a selection under ``transform``."""

        def share() -> Iterator[Batch]:
            return self._batches.all_of(selection, transform, batch_size=FILE_IMAGES)

        return self._store.get(selection, transform, share)

    def _features(self, selection: Selection) -> FrozenFeatures:
        return self.features(selection, self._batches.eval_transform)

    def _image_encoder(self, selection: Selection) -> Callable[[Batch], Embedded]:
        """Encodes a batch of images of ``selection``, with features if they are read."""
        frozen = self._features(selection) if self._method.needs_features else None

        def encode(batch: Batch) -> Embedded:
            features = frozen.of(batch.sample_B) if frozen else None
            return self._method.encode(batch.image_BCHW, features)

        return encode

    def _encode_rows(self, frozen: FrozenFeatures, rows: slice) -> tuple[Embedded, Tensor]:
        """Some images by their features alone."""
        features, label_B = frozen.rows(rows)
        return self._method.encode(None, features), self._batches.classes(label_B)

    def _chunks(self, column_S: Tensor) -> list[slice]:
        """Rows of at most ``batch`` images, in canonical order."""
        starts = range(0, len(column_S), self._batch)
        return [slice(start, start + self._batch) for start in starts]


def _columns(embedded: Embedded, vision_width: int) -> list[Tensor]:
    """Embedding and pooled token of a batch; zeros for a method that returns no such token."""
    pooled_BV = embedded.pooled_BV
    if pooled_BV is None:
        pooled_BV = embedded.embedding_BE.new_zeros(len(embedded.embedding_BE), vision_width)
    return [embedded.embedding_BE, pooled_BV]
