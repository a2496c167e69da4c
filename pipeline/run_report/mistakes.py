"""Which classes a run confuses, where it is most certain and wrong, and how certain it may be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.output.predictions import Prediction

N_BINS = 10  # of probability, of equal width


@dataclass(frozen=True)
class Confusion:
    """Images of class ``true`` that are classified as ``predicted``, both class numbers."""

    true: int
    predicted: int
    count: int
    images: int  # of class ``true``
    reverse: int  # images of class ``predicted`` that are classified as ``true``
    examples: list[Prediction]  # the most confident first


@dataclass(frozen=True)
class CertaintyBin:
    """The predictions whose first probability lies between two numbers."""

    low: float
    high: float
    images: int
    accuracy: float | None  # None without images
    probability: float | None  # mean


def confusions(predictions: Sequence[Prediction], *, most: int, examples: int) -> list[Confusion]:
    """The ``most`` frequent pairs of a class and a wrong prediction, with ``examples`` of each."""
    pairs: dict[tuple[int, int], list[Prediction]] = defaultdict(list)
    images: dict[int, int] = defaultdict(int)
    for each in predictions:
        images[each.label] += 1
        if each.top[0][0] != each.label:
            pairs[each.label, each.top[0][0]].append(each)
    ranked = sorted(pairs, key=lambda p: (-len(pairs[p]), -len(pairs[p]) / images[p[0]], p))
    return [
        Confusion(
            true,
            predicted,
            len(pairs[true, predicted]),
            images[true],
            len(pairs.get((predicted, true), ())),
            sorted(pairs[true, predicted], key=_by_confidence)[:examples],
        )
        for true, predicted in ranked[:most]
    ]


def confident_mistakes(predictions: Sequence[Prediction], *, most: int) -> list[Prediction]:
    """The wrong predictions with the highest probability."""
    wrong = (each for each in predictions if each.top[0][0] != each.label)
    return sorted(wrong, key=_by_confidence)[:most]


def task_confusion(
    predictions: Sequence[Prediction], task_of_class: Sequence[int], n_tasks: int
) -> list[list[float | None]]:
    """``[k][j]``: the fraction of images of task k's classes that is classified as one of task j.

    None where a task has no image. Its diagonal is the accuracy of recognising the task alone. With
    ``label_space=all`` the class may be of a task after the first ``n_tasks``, which is then added.
    """
    predicted = (task_of_class[each.top[0][0]] for each in predictions)
    n_tasks = max(n_tasks, 1 + max(predicted, default=0))
    counts = [[0] * n_tasks for _ in range(n_tasks)]
    for each in predictions:
        counts[task_of_class[each.label]][task_of_class[each.top[0][0]]] += 1
    return [[each / sum(row) if sum(row) else None for each in row] for row in counts]


def top_accuracy(predictions: Sequence[Prediction]) -> tuple[int, float]:
    """How many classes the predictions list at most, and how often the right one is among them."""
    n_listed = max(len(each.top) for each in predictions)
    right = sum(each.label in {number for number, _ in each.top} for each in predictions)
    return n_listed, right / len(predictions)


def certainty(predictions: Sequence[Prediction]) -> list[CertaintyBin]:
    """The accuracy of the predictions by their probability, in ``N_BINS`` bins."""
    bins: list[list[Prediction]] = [[] for _ in range(N_BINS)]
    for each in predictions:
        bins[min(N_BINS - 1, int(each.top[0][1] * N_BINS))].append(each)
    return [
        CertaintyBin(
            number / N_BINS,
            (number + 1) / N_BINS,
            len(members),
            sum(m.top[0][0] == m.label for m in members) / len(members) if members else None,
            sum(m.top[0][1] for m in members) / len(members) if members else None,
        )
        for number, members in enumerate(bins)
    ]


def calibration_error(bins: Sequence[CertaintyBin]) -> float:
    """The expected calibration error in [0, 1]: mean distance of accuracy and probability.

    Source: arXiv 1706.04599, equation 3.
    """
    total = sum(each.images for each in bins)
    return sum(
        each.images / total * abs(each.accuracy - each.probability)
        for each in bins
        if each.accuracy is not None and each.probability is not None
    )


def _by_confidence(prediction: Prediction) -> tuple[float, int, str]:
    """Sorts the most confident prediction first; equal ones by class and key."""
    return -prediction.top[0][1], prediction.label, prediction.key
