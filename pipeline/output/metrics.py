"""Continual-learning figures from an accuracy matrix, or from its counts.

``accuracy[t][k]`` is the accuracy on task ``k`` after learning task ``t``, a fraction; entries with
``k > t`` are None and never read. Its counts are ``correct[t][k]`` of ``images[t][k]``, ``k ≤ t``.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pipeline.output.metric_variants import VARIANTS

Matrix = Sequence[Sequence[float | None]]
Counts = Sequence[Sequence[int]]


def micro_accuracy(correct: Sequence[int], images: Sequence[int]) -> float:
    """Correct predictions over all images of all tasks, in [0, 1]."""
    return sum(correct) / sum(images)


def macro_accuracy(correct: Sequence[int], images: Sequence[int]) -> float:
    """Mean over tasks of each task's accuracy, in [0, 1]."""
    return fmean(right / total for right, total in zip(correct, images, strict=True))


def forgetting(accuracy: Matrix) -> float | None:
    """Mean drop of each old task from its best earlier accuracy to its last, in [-1, 1].

    Negative if old tasks gained. None for fewer than two tasks.

    Source: the forgetting measure of arXiv 1801.10112.
    """
    if len(accuracy) < 2:
        return None
    last = len(accuracy) - 1
    return fmean(
        max(_entry(accuracy, t, k) for t in range(k, last)) - _entry(accuracy, last, k)
        for k in range(last)
    )


def backward_transfer(accuracy: Matrix) -> float | None:
    """Mean change of each old task since it was learned, in [-1, 1]; None for fewer than two.

    Source: GEM, arXiv 1706.08840.
    """
    if len(accuracy) < 2:
        return None
    last = len(accuracy) - 1
    return fmean(_entry(accuracy, last, k) - _entry(accuracy, k, k) for k in range(last))


def _entry(accuracy: Matrix, t: int, k: int) -> float:
    """``accuracy[t][k]`` of a task that was learned by then."""
    value = accuracy[t][k]
    assert value is not None, f"task {k} was not learned at stage {t}"
    return value


def summarise(correct: Counts, images: Counts, *, exclude_tasks: int = 0) -> dict[str, Any]:
    """The summary figures of a run, without the images of its first ``exclude_tasks`` tasks.

    A stage that has learned only excluded tasks has no accuracy (None) and is in no average. The
    classes of excluded tasks remain possible predictions for every image.
    """
    stages = [
        (right[exclude_tasks:], total[exclude_tasks:])
        for right, total in zip(correct, images, strict=True)
    ]
    micro = [micro_accuracy(*stage) if stage[0] else None for stage in stages]
    macro = [macro_accuracy(*stage) if stage[0] else None for stage in stages]
    matrix = [
        [right / total for right, total in zip(*stage, strict=True)] for stage in stages if stage[0]
    ]
    counted = [value for value in micro[exclude_tasks:] if value is not None]
    return {
        "stage_accuracy": {"micro": micro, "macro": macro},
        "average_incremental_accuracy": fmean(counted) if counted else None,
        "last_accuracy": counted[-1] if counted else None,
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "variants": {name: variant(matrix) for name, variant in VARIANTS.items()},
    }
