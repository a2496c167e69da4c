"""Features of the frozen image tower, computed once per image.

Axes: S samples of a task · B images · V vision width · E joint width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pipeline.comm import sum_over_ranks
from pipeline.data.index import Selection
from pipeline.data.stream import Batch
from pipeline.model.backbone import FrozenClip, ImageFeatures


class FrozenFeatures:
    """Frozen features of one task's training images, the same on every rank.

    Valid where the pixels of an image are the same in every epoch. Held in memory:
    ``S × (V + E) × 4`` bytes.
    """

    def __init__(self, clip: FrozenClip, selection: Selection, share: Iterable[Batch]) -> None:
        """``share`` are this rank's batches; over all ranks each sample comes once."""
        widths = (clip.vision_width, clip.joint_width)
        self._sample_S = selection.sample_S
        self._columns = [torch.zeros(len(selection), width, device=clip.device) for width in widths]
        for batch in share:
            position_B = self._positions(batch)
            for column, feature in zip(self._columns, frozen_features(clip, batch), strict=True):
                column[position_B] = feature
        self._columns = [sum_over_ranks(column) for column in self._columns]

    def of(self, batch: Batch) -> ImageFeatures:
        """The features of the images of ``batch``."""
        position_B = self._positions(batch)
        return ImageFeatures(*(column[position_B] for column in self._columns))

    def _positions(self, batch: Batch) -> Tensor:
        """Where the batch's samples stand in the selection, which is in ascending order."""
        position_B = np.searchsorted(self._sample_S, batch.sample_B.numpy())
        return torch.from_numpy(position_B).to(self._columns[0].device)


@torch.no_grad()
def frozen_features(clip: FrozenClip, batch: Batch) -> ImageFeatures:
    """Features of the un-prompted image tower, without a graph."""
    return clip.encode_image(batch.image_BCHW)
