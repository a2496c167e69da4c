"""Continual-learning figures from an accuracy matrix.

``accuracy[t][k]`` is the accuracy on task ``k`` after learning task ``t``, a fraction; entries with
``k > t`` are None and never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float | None]]


def micro_accuracy(correct: Sequence[int], images: Sequence[int]) -> float:
    """Correct predictions over all images of all tasks, in [0, 1]."""
    return sum(correct) / sum(images)


def macro_accuracy(correct: Sequence[int], images: Sequence[int]) -> float:
    """Mean over tasks of each task's accuracy, in [0, 1]."""
    return fmean(right / total for right, total in zip(correct, images, strict=True))


def forgetting(accuracy: Matrix) -> float | None:
    """Mean drop of each old task from its best earlier accuracy to its last, in [-1, 1].

    Negative where old tasks gained. None before there are two tasks.

    Source: the forgetting measure of arXiv 1801.10112.
    """
    if len(accuracy) < 2:
        return None
    last = len(accuracy) - 1
    return fmean(
        max(accuracy[t][k] for t in range(k, last)) - accuracy[last][k] for k in range(last)
    )


def backward_transfer(accuracy: Matrix) -> float | None:
    """Mean change of each old task since it was learned, in [-1, 1]; None before two tasks.

    Source: GEM, arXiv 1706.08840.
    """
    if len(accuracy) < 2:
        return None
    last = len(accuracy) - 1
    return fmean(accuracy[last][k] - accuracy[k][k] for k in range(last))
