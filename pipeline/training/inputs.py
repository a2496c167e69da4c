"""The inputs of a task's optimizer steps: images, features, or both, as the method reads them.

Axes: B images of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.index import Selection
from pipeline.methods.base import Method
from pipeline.model.backbone import ImageFeatures
from pipeline.tasks import Task
from pipeline.training.batches import TaskBatches
from pipeline.training.encoder import Encoder
from pipeline.training.features import FrozenFeatures, pixels_of
from pipeline.training.micro_batch import CPU_MICRO_BATCH


class StepInputs:
    """The batches of one task on this rank, and the arguments of :meth:`Engine.step` for each."""

    def __init__(
        self,
        method: Method,
        task: Task,
        selection: Selection,
        batches: TaskBatches,
        encoder: Encoder,
        *,
        micro_batch: int = CPU_MICRO_BATCH,
    ) -> None:
        self._method = method
        self._task = task
        self._selection = selection
        self._batches = batches
        self._micro_batch = micro_batch
        self._frozen: FrozenFeatures | None = None
        transform = batches.train_transform
        if method.inputs.features and not transform.is_random:
            self._frozen = encoder.features(selection, transform)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch; without images if the method reads none."""
        images, frozen = self._method.inputs.images, self._frozen
        batches = self._batches.train(self._task, epoch, start_step=start_step, images=images)
        if images or frozen is None:
            return batches
        return (
            replace(batch, sample_B=frozen.usable(batch.sample_B, self._selection))
            for batch in batches
        )

    def of(self, batch: Batch) -> tuple[Tensor | None, Tensor, ImageFeatures | None]:
        """Images, class numbers and frozen features of a batch."""
        label_B = self._batches.classes(batch.label_B)
        if self._frozen:
            return batch.image_BCHW, label_B, self._frozen.of(batch.sample_B)
        if not self._method.inputs.features:
            return batch.image_BCHW, label_B, None
        image_BCHW, features = self._encode(pixels_of(batch))
        return image_BCHW, label_B, features

    @torch.no_grad()
    def _encode(self, image_BCHW: Tensor) -> tuple[Tensor, ImageFeatures]:
        """Images that augmentation makes new each time, with their features.

        The blocks below the first prompted one run once for both.
        """
        clip, first_layer = self._method.clip, self._method.inputs.first_layer
        parts = list(image_BCHW.split(self._micro_batch))
        if first_layer:
            parts = [clip.lower_blocks(part, first_layer) for part in parts]
            image_BCHW = torch.cat(parts)
        features = [clip.encode_image(part, first_layer=first_layer) for part in parts]
        return image_BCHW, ImageFeatures(*map(torch.cat, zip(*features, strict=True)))
