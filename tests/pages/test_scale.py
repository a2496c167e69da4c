"""The axes of charts: every value lies on its axis, ticks rise and differ."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from pipeline.pages.scale import categorical_scale, linear_scale, log_scale

AXES = [
    *((linear_scale(values), values) for values in ([0.2, 0.3], [3, 4], [5.0], [0], [1e-7, 3e8])),
    *(
        (linear_scale(values), values)
        for values in ([2.301, 2.3023], [1e9, 1e9 + 1], [-3e-9, 8e-9])
    ),
    *((log_scale(values), values) for values in ([1e-4, 5e-3, 1e-2], [3.1e-4, 3.9e-4], [1e-30, 1])),
    *((log_scale(values), values) for values in ([0.25], [7, 80_000])),
]


@pytest.mark.parametrize(("scale", "values"), AXES, ids=str)
def test_values_lie_on_their_axis_and_its_ticks_rise_and_differ(scale, values):
    assert all(0 <= scale.position(value) <= 1 for value in values)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(one < two for (one, _), (two, _) in pairwise(ticks))
    assert len({label for _, label in ticks}) == len(ticks)
    assert -0.01 <= ticks[0][0] and ticks[-1][0] <= 1.01


def test_axis_of_whole_numbers_has_no_others_beside_its_ticks():
    for high in (2, 3, 24, 1000):
        values = [float(label) for _, label in linear_scale([1, high], is_whole=True).ticks()]
        assert len(values) > 1 and all(each.is_integer() for each in values)


def test_logarithmic_axis_gives_equal_lengths_to_equal_factors():
    scale = log_scale([1e-4, 1e-2])
    assert math.isclose(scale.position(1e-3), 0.5)
    assert [label for _, label in scale.ticks()] == ["1e-4", "0.001", "0.01"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([41, 52.3], ["42.5", "45", "47.5", "50"]),
        ([1000, 1001], ["1000", "1000.2", "1000.4", "1000.6", "1000.8", "1001"]),
        ([0, 400_000], ["0", "1e5", "2e5", "3e5", "4e5"]),
    ],
)
def test_labels_are_short_and_exact(values, labels):
    assert [label for _, label in linear_scale(values).ticks()] == labels


def test_rounded_axis_begins_and_ends_with_a_tick():
    scale = linear_scale([41, 52.3], is_rounded=True)
    assert (scale.low, scale.high) == (40, 52.5)
    assert [scale.ticks()[n][0] for n in (0, -1)] == [0, 1]


def test_categories_have_a_place_each_and_keep_their_order():
    values = ["b", "a", None, True, 1, "1", [1, 2]]
    scale = categorical_scale([*values, "b", None])
    assert [label for _, label in scale.ticks()] == ["b", "a", "None", "True", "1", "1", "[1, 2]"]
    positions = [scale.position(value) for value in values]
    assert positions == sorted(positions) and len({*positions}) == 7


def test_equal_values_lie_in_the_middle():
    assert linear_scale([0.25, 0.25]).position(0.25) == 0.5
    assert math.isclose(log_scale([0.25]).position(0.25), 0.5)


@pytest.mark.parametrize("build", [linear_scale, log_scale, categorical_scale])
def test_axis_without_values_is_refused(build):
    with pytest.raises(ValueError, match="an axis needs|axis needs values above 0"):
        build([])
    with pytest.raises(ValueError, match=r"needs values above 0, found \[-1"):
        log_scale([1, -1])
