"""A heat map has the figures of its matrix, and a shade for each that grows with it."""

from __future__ import annotations

import math

from pipeline.run_report.heat_map import MOST_CELLS, N_SHADES, build_heat_map
from tests.pages.test_svg import parse


def test_shades_grow_with_the_values_from_the_first_to_the_last():
    values = [number / 40 for number in range(41)]
    [(_, cells)] = build_heat_map([values], caption="c").rows
    shades = [int(cell.kind.removeprefix("shade")) for cell in cells]
    assert shades == sorted(shades) and {*shades} == {*range(N_SHADES)}


def test_missing_values_are_empty_and_equal_values_have_a_shade():
    shown = build_heat_map([[0.5, None], [0.5, 0.5]], caption="c")
    assert [[cell.text for cell in cells] for _, cells in shown.rows] == [
        ["50.0", ""],
        ["50.0"] * 2,
    ]
    assert shown.rows[0][1][1].kind == "none"
    assert (shown.low, shown.high, shown.columns) == ("50.0", "50.0", ["1", "2"])
    assert build_heat_map([], caption="c").rows == []


def test_large_matrix_has_an_overview_with_a_square_for_each_value():
    n_tasks = MOST_CELLS + 6
    matrix = [[k / n_tasks if k <= t else None for k in range(n_tasks)] for t in range(n_tasks)]
    shown = build_heat_map(matrix, caption="c")
    root = parse(shown.overview)
    squares = sum(each.get("d").count("M") for each in root.iter("path"))
    assert squares == n_tasks * (n_tasks + 1) // 2
    assert math.isclose(sum(bool(cell.text) for _, row in shown.rows for cell in row), squares)
    assert build_heat_map(matrix[:2], caption="c").overview is not None
    assert build_heat_map([row[:MOST_CELLS] for row in matrix], caption="c").overview is None
