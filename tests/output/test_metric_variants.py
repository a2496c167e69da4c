"""Each variant against a value computed by hand, on one worked example."""

from __future__ import annotations

import pytest

from pipeline.output.metric_variants import (
    VARIANTS,
    average_macro_accuracy,
    backward_transfer_over_stages,
    forgetting_of_continuum_1_2_7,
    forgetting_over_all_stages,
)
from pipeline.output.metrics import forgetting, summarise

# Four tasks. Task 0 peaks before the last stage, task 1 at its own, task 2 gains at the end.
TRIANGLE = [
    [0.5],
    [0.9, 0.8],
    [0.6, 0.7, 0.4],
    [0.3, 0.6, 0.5, 1.0],
]


def test_best_stage_may_be_the_last_one():
    expected = ((0.9 - 0.3) + (0.8 - 0.6) + 0.0) / 3
    assert forgetting_over_all_stages(TRIANGLE) == pytest.approx(expected)
    assert forgetting_over_all_stages(TRIANGLE) != pytest.approx(forgetting(TRIANGLE))


def test_continuum_leaves_out_a_task_and_a_stage():
    """must be the sum over tasks 0 and 1, from stages 0 and 1, over three"""
    expected = ((0.9 - 0.3) + (0.8 - 0.6)) / 3
    assert forgetting_of_continuum_1_2_7(TRIANGLE) == pytest.approx(expected)
    assert forgetting_of_continuum_1_2_7(TRIANGLE[:2]) == 0.0


def test_backward_transfer_over_all_pairs():
    expected = (0.4 + 0.1 - 0.1 - 0.2 - 0.2 + 0.1) / 6
    assert backward_transfer_over_stages(TRIANGLE) == pytest.approx(expected)


def test_macro_average_is_the_mean_of_means():
    expected = (0.5 + 0.85 + (0.6 + 0.7 + 0.4) / 3 + 0.6) / 4
    assert average_macro_accuracy(TRIANGLE) == pytest.approx(expected)


def test_every_variant_is_none_without_a_stage():
    assert {variant([]) for variant in VARIANTS.values()} == {None}


def test_summary_has_all_variants_without_excluded_tasks():
    correct = [[5], [9, 8], [6, 7, 4], [3, 6, 5, 10]]
    images = [[10] * len(row) for row in correct]
    found = summarise(correct, images)["variants"]
    assert found == pytest.approx({name: f(TRIANGLE) for name, f in VARIANTS.items()})
    rest = [row[1:] for row in TRIANGLE[1:]]
    excluding = summarise(correct, images, exclude_tasks=1)["variants"]
    assert excluding == pytest.approx({name: f(rest) for name, f in VARIANTS.items()})
