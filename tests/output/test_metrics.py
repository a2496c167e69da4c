"""Continual-learning figures against values computed by hand."""

from __future__ import annotations

import pytest

from pipeline.output.metrics import (
    backward_transfer,
    forgetting,
    macro_accuracy,
    micro_accuracy,
    summarise,
)

# Four tasks. Task 0 peaks before the last stage, task 1 at its own, task 2 gains at the end.
MATRIX = [
    [0.5, None, None, None],
    [0.9, 0.8, None, None],
    [0.6, 0.7, 0.4, None],
    [0.3, 0.6, 0.5, 1.0],
]


def test_micro_weighs_images_and_macro_weighs_tasks():
    assert micro_accuracy([1, 30], [10, 30]) == 31 / 40
    assert macro_accuracy([1, 30], [10, 30]) == (0.1 + 1.0) / 2


def test_forgetting_is_the_drop_from_the_best_earlier_stage():
    """must count all T-1 old tasks, leave the last row out of the best, and keep its sign"""
    assert forgetting(MATRIX) == pytest.approx(((0.9 - 0.3) + (0.8 - 0.6) + (0.4 - 0.5)) / 3)
    assert forgetting(MATRIX[:3]) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7)) / 2)
    assert forgetting(MATRIX[:2]) == pytest.approx(0.5 - 0.9)


def test_forgetting_is_not_one_of_the_wrong_formulas_in_use():
    """must differ from the two that PyPI's continuum 1.2.7 and the L2P family compute"""
    best_of_all_rows = ((0.9 - 0.3) + (0.8 - 0.6) + 0.0) / 3  # never negative
    two_tasks_too_few = ((0.9 - 0.3) + 0.0) / 3  # sums over T-2 tasks, divides by T-1
    assert forgetting(MATRIX) != pytest.approx(best_of_all_rows)
    assert forgetting(MATRIX) != pytest.approx(two_tasks_too_few)


def test_backward_transfer_compares_with_the_stage_that_learned_the_task():
    expected = ((0.3 - 0.5) + (0.6 - 0.8) + (0.5 - 0.4)) / 3
    assert backward_transfer(MATRIX) == pytest.approx(expected)
    assert backward_transfer(MATRIX[:2]) == pytest.approx(0.9 - 0.5)


@pytest.mark.parametrize("figure", [forgetting, backward_transfer])
def test_figures_over_old_tasks_are_none_before_the_second_task(figure):
    assert figure([]) is None
    assert figure(MATRIX[:1]) is None


@pytest.mark.parametrize("figure", [forgetting, backward_transfer])
def test_entries_above_the_diagonal_are_never_read(figure):
    filled = [[0.123 if value is None else value for value in row] for row in MATRIX]
    ragged = [row[: index + 1] for index, row in enumerate(MATRIX)]
    assert figure(filled) == figure(ragged) == figure(MATRIX)


CORRECT, IMAGES = [[4], [3, 6], [1, 5, 2], [2, 4, 1, 9]], [[5], [5, 10], [5, 10, 4], [5, 10, 4, 9]]


def test_summary_of_all_tasks_consists_of_the_figures_above():
    summary = summarise(CORRECT, IMAGES)
    micro = [4 / 5, 9 / 15, 8 / 19, 16 / 28]
    assert summary["stage_accuracy"]["micro"] == micro
    assert summary["stage_accuracy"]["macro"][1] == pytest.approx((0.6 + 0.6) / 2)
    assert summary["average_incremental_accuracy"] == pytest.approx(sum(micro) / 4)
    assert summary["last_accuracy"] == 16 / 28
    matrix = [[0.8], [0.6, 0.6], [0.2, 0.5, 0.5], [0.4, 0.4, 0.25, 1.0]]
    assert summary["forgetting"] == pytest.approx(forgetting(matrix))
    assert summary["backward_transfer"] == pytest.approx(backward_transfer(matrix))


def test_excluded_tasks_are_in_no_summary_figure():
    """must count the images of tasks 3 and 4 only, and the stages that have learned one of them"""
    rest = summarise(CORRECT, IMAGES, exclude_tasks=2)
    assert rest["stage_accuracy"]["micro"] == [None, None, 2 / 4, 10 / 13]
    assert rest["stage_accuracy"]["macro"] == [None, None, 0.5, (0.25 + 1.0) / 2]
    assert rest["average_incremental_accuracy"] == pytest.approx((2 / 4 + 10 / 13) / 2)
    assert rest["last_accuracy"] == 10 / 13
    assert rest["forgetting"] == 0.5 - 0.25 and rest["backward_transfer"] == 0.25 - 0.5


@pytest.mark.parametrize("exclude_tasks", [1, 2, 3])
def test_counts_of_excluded_tasks_are_never_read(exclude_tasks):
    other = [[99] * min(exclude_tasks, len(row)) + row[exclude_tasks:] for row in CORRECT]
    found = summarise(other, IMAGES, exclude_tasks=exclude_tasks)
    assert found == summarise(CORRECT, IMAGES, exclude_tasks=exclude_tasks)
    assert found != summarise(CORRECT, IMAGES)


def test_summary_is_none_before_a_task_counts():
    for exclude_tasks in (1, 4):
        early = summarise(CORRECT[:1], IMAGES[:1], exclude_tasks=exclude_tasks)
        assert early["stage_accuracy"] == {"micro": [None], "macro": [None]}
        assert set(early.pop("variants").values()) == {None}
        assert [early[key] for key in early if key != "stage_accuracy"] == [None] * 4
    assert summarise([], [])["average_incremental_accuracy"] is None
