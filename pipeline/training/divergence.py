"""Steps whose loss is not finite: an error that names the samples, or a skipped step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pipeline.config import OptimConfig
from pipeline.data.batch import Batch
from pipeline.data.index import Selection
from pipeline.distributed.collectives import gather
from pipeline.errors import DivergenceError
from pipeline.output.results_builder import ResultsBuilder
from pipeline.text import first_few

log = logging.getLogger(__name__)


class LossGuard:
    """Counts such steps in the ``skipped_steps`` of ``results``."""

    def __init__(self, optim: OptimConfig, results: ResultsBuilder) -> None:
        self._optim = optim
        self._results = results

    def check(self, loss: Tensor, *, task: int, step: int, batch: Batch, of: Selection) -> None:
        """Accept a finite loss; every rank has the same loss. ``of`` holds the batch's samples.

        Raises:
            DivergenceError: the loss is not finite, and no such step may be skipped any more.
        """
        value = float(loss)
        if math.isfinite(value):
            return
        keys, skipped = _keys(batch, of), self._results.skipped_steps
        problem = (
            f"task {task + 1}, step {step + 1}: the loss is {value} on samples {first_few(keys)}"
        )
        skipped.append({"task": task, "step": step, "loss": str(value), "samples": keys})
        if self._optim.on_nonfinite_loss == "fail":
            raise DivergenceError(
                f"{problem}; lower optim.learning_rate, set optim.gradient_clipping, or set "
                "optim.on_nonfinite_loss to skip"
            )
        if len(skipped) > self._optim.nonfinite_loss_budget:
            raise DivergenceError(
                f"{problem}; {len(skipped)} such steps exceed optim.nonfinite_loss_budget"
            )
        log.warning("%s: step skipped", problem)


def _keys(batch: Batch, selection: Selection) -> Sequence[str]:
    """The keys of the global batch."""
    positions = np.searchsorted(selection.sample_S, gather(batch.sample_B).cpu().numpy())
    return selection.take(positions).keys
