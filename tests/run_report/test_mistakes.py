"""Confusions, confident mistakes and calibration, on predictions that are counted by hand."""

from __future__ import annotations

import pytest

from pipeline.output.predictions import Prediction
from pipeline.run_report.mistakes import (
    calibration_error,
    certainty,
    confident_mistakes,
    confusions,
    task_confusion,
    top_accuracy,
)


def predicted(label: int, *top: tuple[int, float], key: str = "k") -> Prediction:
    """A prediction of class ``label``, which belongs to the task of its parity."""
    return Prediction(key, "s.tar", label % 2, label, top)


PREDICTIONS = [
    predicted(0, (0, 0.9), (1, 0.1)),
    predicted(0, (1, 0.8), (0, 0.2), key="a"),
    predicted(0, (1, 0.95), (2, 0.05), key="b"),
    predicted(1, (0, 0.6), (1, 0.4)),
    predicted(2, (1, 0.95), (3, 0.05)),
    predicted(3, (3, 1.0)),
]


def test_pairs_come_by_their_number_with_the_most_confident_examples_first():
    first, second, *_ = confusions(PREDICTIONS, most=3, examples=1)
    assert (first.true, first.predicted, first.count, first.images, first.reverse) == (
        0,
        1,
        2,
        3,
        1,
    )
    assert [each.key for each in first.examples] == ["b"]
    assert (second.true, second.predicted, second.count, second.images) == (1, 0, 1, 1)
    assert len(confusions(PREDICTIONS, most=1, examples=1)) == 1
    assert confusions(PREDICTIONS[:1], most=3, examples=3) == []


def test_most_confident_mistakes_come_first_and_right_predictions_never():
    found = [(each.label, each.key) for each in confident_mistakes(PREDICTIONS, most=3)]
    assert found == [(0, "b"), (2, "k"), (0, "a")]
    assert confident_mistakes(PREDICTIONS[-1:], most=3) == []


def test_task_confusion_counts_the_tasks_of_the_predicted_classes():
    rows = task_confusion(PREDICTIONS, [0, 1, 0, 1, 2], 3)
    assert rows == [[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [None, None, None]]


def test_top_accuracy_counts_every_listed_class():
    assert top_accuracy(PREDICTIONS) == (2, 4 / 6)


def test_calibration_error_is_the_mean_distance_of_accuracy_and_probability():
    bins = certainty(PREDICTIONS)
    assert sum(each.images for each in bins) == len(PREDICTIONS)
    assert [each.images for each in bins] == [0, 0, 0, 0, 0, 0, 1, 0, 1, 4]
    assert (bins[-1].accuracy, bins[-1].probability) == (0.5, pytest.approx(0.95))
    expected = (1 * 0.6 + 1 * 0.8 + 4 * 0.45) / 6
    assert calibration_error(bins) == pytest.approx(expected)
