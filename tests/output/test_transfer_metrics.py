"""Each figure against a value computed by hand, on one worked example."""

from __future__ import annotations

import pytest

from pipeline.output.transfer_metrics import (
    average_over_matrix,
    forward_transfer,
    last_over_tasks,
    transfer,
    transfer_figures,
)

# Three tasks: before the first one, then after each.
ACCURACY = [
    [0.30, 0.50, 0.40],
    [0.90, 0.60, 0.20],
    [0.80, 0.95, 0.30],
    [0.70, 0.85, 1.00],
]


def test_transfer_is_the_mean_above_the_diagonal_by_task():
    """must average the two stages before task 3 first, so that tasks count equally"""
    assert transfer(ACCURACY) == pytest.approx((0.60 + (0.20 + 0.30) / 2) / 2)


def test_average_has_every_stage_but_not_the_frozen_clip():
    rows = (0.90 + 0.60 + 0.20) + (0.80 + 0.95 + 0.30) + (0.70 + 0.85 + 1.00)
    assert average_over_matrix(ACCURACY) == pytest.approx(rows / 9)


def test_last_is_the_mean_of_the_last_row():
    assert last_over_tasks(ACCURACY) == pytest.approx((0.70 + 0.85 + 1.00) / 3)


def test_forward_transfer_is_the_change_just_before_a_task():
    assert forward_transfer(ACCURACY) == pytest.approx(((0.60 - 0.50) + (0.30 - 0.40)) / 2)


def test_one_task_has_no_transfer():
    assert transfer([[0.5], [0.9]]) is None is forward_transfer([[0.5], [0.9]])


@pytest.mark.parametrize("rows", [[], ACCURACY[:3], [*ACCURACY[:3], [0.7, None, 1.0]]])
def test_figures_need_every_accuracy(rows):
    assert transfer_figures(rows) is None
    assert transfer_figures(ACCURACY) is not None
