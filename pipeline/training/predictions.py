"""The most probable classes of each tested image, gathered over the ranks in canonical order.

Axes: B images of this rank · S images of a selection · C classes seen so far · K best classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.data.index import Selection
from pipeline.distributed.collectives import sum_over_ranks
from pipeline.output.predictions import DECIMALS, TOP, Prediction
from pipeline.tasks import Task
from pipeline.training.transfer import without_waiting


class TopClasses:
    """The best classes of each image of ``selection``; each rank adds its share.

    Takes at most 88 bytes per image on every rank.
    """

    def __init__(self, selection: Selection, n_classes: int, device: torch.device) -> None:
        self._selection = selection
        self._sample_S = torch.from_numpy(selection.sample_S)
        self._n_best = min(TOP, n_classes)
        # Per image: whether it was tested, its best classes, and their probabilities.
        shape = len(selection), 1 + 2 * self._n_best
        self._table = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, sample_B: Tensor, logits_BC: Tensor, probability_BC: Tensor) -> None:
        """Add the images with these sample numbers.

        The logits decide the order. Of equal ones the first class is first, as in ``argmax``.
        """
        class_BK = logits_BC.topk(self._n_best, dim=1).indices.sort(dim=1).values
        score_BK = logits_BC.gather(1, class_BK)
        class_BK = class_BK.gather(1, score_BK.argsort(dim=1, descending=True, stable=True))
        probability_BK = probability_BC.gather(1, class_BK)
        row_B = torch.searchsorted(self._sample_S, sample_B.cpu())
        row_B = without_waiting(row_B, self._table.device)
        tested_B1 = torch.ones_like(class_BK[:, :1])
        self._table[row_B] = torch.cat([tested_B1, class_BK, probability_BK], dim=1).double()

    def gather(self) -> None:
        """Take over the images of the other ranks; one collective call.

        Only zeros are added to a value on its way, so its bits do not depend on the ranks.
        """
        self._table = sum_over_ranks(self._table).cpu()

    def predictions(self, task: Task, class_of_label: Tensor) -> Iterator[Prediction]:
        """The predictions of the images of ``task``, without those that could not be used."""
        selection, table = self._selection, self._table.numpy()
        tested = np.flatnonzero(table[:, 0])
        samples = selection.take(tested)
        label_S = class_of_label[torch.from_numpy(samples.label_S)].tolist()
        class_SK = table[tested, 1 : 1 + self._n_best].astype(int).tolist()
        probability_SK = table[tested, 1 + self._n_best :].round(DECIMALS).tolist()
        shards = [shard.name for shard in selection.index.shards]
        for row, key in enumerate(samples.keys):
            top = tuple(zip(class_SK[row], probability_SK[row], strict=True))
            yield Prediction(key, shards[samples.shard_S[row]], task.index, label_S[row], top)
