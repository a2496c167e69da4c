"""Charts of plain values: each item is drawn once, in its place, inside the drawing."""

from __future__ import annotations

import math
import re
from xml.etree.ElementTree import Element

import pytest

from pipeline.pages.charts import (
    Axis,
    Item,
    Missing,
    Point,
    Row,
    Series,
    height_for_names,
    line_chart,
    parallel_coordinates,
    scatter_plot,
)
from pipeline.pages.scale import categorical_scale, linear_scale, log_scale
from pipeline.pages.svg import Drawing
from tests.pages.test_svg import ODD, parse

CAPTION = {"title": "a chart", "description": "of plain values"}


def build_items(count: int = 3) -> list[Item]:
    """Items with a name each; the second has a symbol."""
    return [
        Item(f"k{n}", f"run {n}", f"kind{n}", "✗" if n == 1 else "", f"n{n}") for n in range(count)
    ]


def draw_lines(items: list[Item], **changes) -> Drawing:
    """Each item's loss over 4 epochs; that of item n lies n higher."""
    lines = [[[(epoch, number + epoch / 10) for epoch in range(1, 5)]] for number in range(61)]
    settings = {
        "series": [Series(item, line) for item, line in zip(items, lines, strict=False)],
        "x": Axis("epoch", linear_scale([1, 4])),
        "y": Axis("loss", linear_scale([0, len(items) + 1], is_rounded=True)),
        **CAPTION,
        **changes,
    }
    return line_chart(**settings)


def draw_points(items: list[Item]) -> Drawing:
    """Item n over one of two categories; the last has no value."""
    values = [*range(len(items) - 1), Missing("failed")]
    points = [
        Point(item, "ab"[n % 2], value)
        for n, (item, value) in enumerate(zip(items, values, strict=True))
    ]
    return scatter_plot(
        points,
        Axis("letter", categorical_scale("ab")),
        Axis("value", linear_scale([0, 5])),
        **CAPTION,
    )


def draw_axes(items: list[Item]) -> Drawing:
    """Three variables; the last item has no value on two axes."""
    missing = [Missing("not drawn"), Missing("stopped", "idle")]
    rows = [Row(item, ["a", 10.0**n, n]) for n, item in enumerate(items[:-1])]
    rows.append(Row(items[-1], ["b", *missing]))
    axes = [
        Axis("letter", categorical_scale("ab")),
        Axis("rate", log_scale([1, 1000]), "optim.rate"),
        Axis("accuracy (%)", linear_scale([0, 9])),
    ]
    return parallel_coordinates(rows, axes, **CAPTION)


def groups(drawing: Drawing) -> dict[str, Element]:
    """The group of marks of each item, in the order of drawing."""
    found = [each for each in parse(drawing).iter("g") if each.get("data-item")]
    assert len({each.get("data-item") for each in found}) == len(found), "each is drawn once"
    return {each.get("data-item"): each for each in found}


def corners(group: Element) -> list[tuple[float, float]]:
    """The points of an item's line, in pixels."""
    [line] = [each for each in group.iter("path") if each.get("class") == "line"]
    steps = re.findall(r"[ML](\S+) (\S+)", line.get("d"))
    return [(float(x), float(y)) for x, y in steps]


def texts(drawing: Drawing) -> dict[str, tuple[float, float]]:
    """The place of each text."""
    return {
        each.text: (float(each.get("x")), float(each.get("y")))
        for each in parse(drawing).iter("text")
    }


@pytest.mark.parametrize("draw", [draw_lines, draw_points, draw_axes])
def test_items_are_drawn_in_their_order_inside_the_drawing(draw):
    items = build_items()
    drawing = draw(items)
    assert [*groups(drawing)] == ["k0", "k1", "k2"]
    for item, group in zip(items, groups(drawing).values(), strict=True):
        assert group.get("class") == f"item {item.kind}" and group[0].text == item.label
    root = parse(drawing)
    _, _, width, height = map(float, root.get("viewBox").split())
    assert (root.get("aria-label"), root[0].text) == ("a chart", "of plain values")
    for each in root.iter():
        for name, limit in (("x", width), ("x1", width), ("x2", width), ("cx", width)):
            assert 0 <= float(each.get(name, 0)) <= limit, each.attrib
        for name, limit in (("y", height), ("y1", height), ("y2", height), ("cy", height)):
            assert 0 <= float(each.get(name, 0)) <= limit, each.attrib


@pytest.mark.parametrize("draw", [draw_lines, draw_points, draw_axes])
def test_item_ends_in_a_disc_or_its_symbol(draw):
    ends = [
        [(each.tag, each.text) for each in group if "end" in each.get("class", "").split()]
        for group in groups(draw(build_items())).values()
    ]
    assert ends == [[("circle", None)], [("text", "✗")], [("circle", None)]]


@pytest.mark.parametrize("draw", [draw_lines, draw_points, draw_axes])
def test_equal_values_give_equal_bytes_and_odd_text_no_elements(draw):
    items = build_items()
    plain = draw(items).__html__()
    assert plain == draw(build_items()).__html__()
    odd = [Item(ODD + item.key, ODD, ODD, item.symbol and ODD, ODD) for item in items]
    tags = [each.tag for each in parse(draw(odd)).iter()]
    assert tags == [each.tag for each in parse(draw(items)).iter()]


@pytest.mark.parametrize("draw", [draw_lines, draw_points, draw_axes])
def test_many_items_are_translucent(draw):
    assert parse(draw(build_items(60))).get("class") == "chart"
    assert parse(draw(build_items(61))).get("class") == "chart crowded"


# Lines.


def test_line_runs_through_its_values():
    found = groups(draw_lines(build_items()))
    xs, ys = zip(*corners(found["k0"]), strict=True)
    steps = [b - a for a, b in zip(xs, xs[1:], strict=False)]
    assert all(math.isclose(step, steps[0], abs_tol=0.11) for step in steps) and steps[0] > 0
    assert [*ys] == sorted(ys, reverse=True), "larger values lie higher"
    assert corners(found["k1"])[0][1] < ys[0]
    assert len([*found["k0"].iter("circle")]) == 5, "a dot for each point and a disc at the end"


def test_panels_stand_side_by_side_and_a_panel_may_be_empty():
    items = build_items(2)
    line = [(1, 0.5), (4, 1.5)]
    series = [Series(items[0], [line, line]), Series(items[1], [[], line])]
    drawing = draw_lines(items, series=series, panels=["seed 1", "seed 2"])
    both, second = (corners(group) for group in groups(drawing).values())
    assert both[2:] == second and both[1][0] <= both[2][0]
    assert [y for _, y in both[:2]] == [y for _, y in both[2:]]
    assert texts(drawing)["seed 1"][0] < texts(drawing)["seed 2"][0]
    [edge] = [each for each in parse(drawing).iter("line") if each.get("class") == "edge"]
    assert both[1][0] <= float(edge.get("x1")) <= both[2][0]


def test_item_without_values_is_left_out():
    items = build_items(2)
    series = [Series(items[0], [[]]), Series(items[1], [[(1, 1)]])]
    assert [*groups(draw_lines(items, series=series))] == ["k1"]


def test_labels_of_a_long_axis_do_not_touch():
    axis = Axis("tasks learned", categorical_scale(range(1, 201)))
    drawing = draw_lines(build_items(1), x=axis)
    shown = sorted(x for text, (x, _) in texts(drawing).items() if text.isdigit() and x > 56)
    assert 10 < len(shown) < 60
    assert all(b - a >= 3 * 6 for a, b in zip(shown, shown[1:], strict=False))


@pytest.mark.parametrize("height", [1, 20])
def test_names_do_not_cover_each_other_and_stay_inside_the_drawing(height):
    """must hold for lines that end at the lower edge, too"""
    items = build_items(20)
    series = [Series(item, [[(1, 1), (4, height)]]) for item in items]
    drawing = draw_lines(items, series=series, size=(640, height_for_names(20)))
    found = texts(drawing)
    heights = sorted(found[item.name][1] for item in items)
    assert all(b - a >= 14 for a, b in zip(heights, heights[1:], strict=False))
    assert 0 < heights[0] and heights[-1] + 3 <= float(parse(drawing).get("viewBox").split()[-1])


# Points.


def test_points_of_a_category_lie_side_by_side_and_those_without_a_value_below():
    found = groups(draw_points(build_items(5)))
    discs = [[*group.iter()][-1] for group in found.values()]
    places = [(float(d.get("cx", d.get("x"))), float(d.get("cy", d.get("y")))) for d in discs]
    of_a, of_b = [x for x, _ in places[::2]], [x for x, _ in places[1::2]]
    assert len({*of_a}) == 3 and max(of_a) < min(of_b)
    assert places[-1][1] == max(y for _, y in places) and places[-1][1] > places[0][1]


# Parallel coordinates.


def test_missing_values_lie_below_the_axis_beside_their_reason():
    drawing = draw_axes(build_items())
    found, words = groups(drawing), texts(drawing)
    low = [float(each.get("y2")) for each in parse(drawing).iter("line")]
    with_values, without = corners(found["k0"]), corners(found["k2"])
    assert all(y <= min(low) for _, y in with_values)
    assert without[0][1] <= min(low) < min(without[1][1], without[2][1])
    for (x, y), reason, side in ((without[1], "not drawn", -8), (without[2], "stopped", 8)):
        assert words[reason] == (x + side, y + 4)
    kinds = [each.get("class") for each in parse(drawing).iter("text") if each.text == "stopped"]
    assert kinds == ["tick idle"]


def test_axes_have_their_titles_and_ticks():
    drawing = draw_axes(build_items())
    words = texts(drawing)
    for shown in ("letter", "rate", "accuracy (%)", "a", "b", "1", "100", "1000", "0", "8"):
        assert shown in words, shown
    assert words["letter"][0] < words["rate"][0] < words["accuracy (%)"][0]
    titles = [each[0].text for each in parse(drawing).iter("text") if each.text == "rate"]
    assert titles == ["optim.rate"], "the full name is a tooltip"
