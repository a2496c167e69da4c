"""Charts of plain values: lines, points, parallel coordinates. They know no sweep and no run.

What belongs to one trial, run or class is an :class:`Item`; its key joins it with the table rows
and the other charts of a page. Items are drawn in the order given, the last above the others. Their
CSS classes give colour, and with it a second sign: a line's width or dashes, a symbol at its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.pages import svg
from pipeline.pages.scale import CategoricalScale, Scale, Tick
from pipeline.pages.svg import TEXT_GAP, Drawing, Element, Frame, Pixels

_LINE_HEIGHT = 14.0  # of a 12 px font: names beside lines are so far apart at least
_TITLE_DROP = 22.0  # from the title of an axis to the upper end of the axis
_CROWD = 60  # items; from here on lines are translucent, and those below shine through
_END_RADIUS, _DOT_RADIUS = 4.5, 2.5  # of the disc at the end of a line, of those on its points
_DOT_ROOM = 7.0  # along a line for each of its points; with less it has no dots
_MARGIN = 14.0  # at the right of a chart without names
_NAME_WIDTH = 84.0  # of the column of names at the right of a chart, such as "trial 123"
_SPREAD = 0.6  # part of a category's band over which its items are spread

# Line chart.
_TICK_WIDTH = 64.0  # per tick of the horizontal axis, within these limits:
_LEAST_WIDTH, _LARGEST_WIDTH = 640.0, 1100.0  # the largest fits a page 76 rem wide
_LINES_HEIGHT = 270.0
_LABEL_WIDTH = 56.0  # at the left, for tick labels such as "47.5" and "1.5e-4"
_LABEL_DEPTH = 14.0  # from a horizontal axis to the middle of its labels
_TITLE_DEPTH = 34.0  # from there to the middle of its title

# Scatter plot: small, so that several stand side by side.
_POINTS_SIZE = (284.0, 240.0)
_POINTS_FRAME = Frame(44, 264, 30, 170)
_MISSING_DEPTH = 20.0  # from the lowest value to the points without one
_AXIS_DEPTH = 30.0  # from the lowest value to the axis, which lies below those

# Parallel coordinates.
_AXES_WIDTH = 890.0  # for all of them together, if each then has a gap within these limits:
_LEAST_GAP, _LARGEST_GAP = 140.0, 220.0
_AXES_HEIGHT = 260.0
_AXES_LEFT = 110.0  # for the tick labels of the first axis
_AXES_RIGHT = 170.0  # for the tick labels and the title of the last axis, and for names
_SLOT_HEIGHT = 26.0  # of a row below an axis for lines that have no value there
_NAME_GAP = 48.0  # from the last axis to the names: room for its tick labels


@dataclass(frozen=True)
class Item:
    """One thing that a page shows in several places, for example a trial."""

    key: str  # the same in every chart and table row; page.js highlights them together
    label: str  # one line of text: its tooltip, and its name for a screen reader
    kind: str = ""  # CSS classes
    symbol: str = ""  # at the end of its line, in place of a disc
    name: str = ""  # short text beside the end of its line


@dataclass(frozen=True)
class Axis:
    """A scale and its title; ``full_title`` is the tooltip of a shortened one."""

    title: str
    scale: Scale
    full_title: str = ""


@dataclass(frozen=True)
class Missing:
    """In the place of a value: the item has none, and this says why."""

    reason: str
    kind: str = ""  # CSS classes of the reason


@dataclass(frozen=True)
class Series:
    """An item's values: for each panel of the chart the points (x, y) of one line, or none."""

    item: Item
    lines: Sequence[Sequence[tuple[Any, Any]]]


@dataclass(frozen=True)
class Point:
    """An item's value on two axes; without a ``y`` it lies below the chart's lowest value."""

    item: Item
    x: Any
    y: Any | Missing


@dataclass(frozen=True)
class Row:
    """An item's value on each axis, in their order."""

    item: Item
    values: Sequence[Any | Missing]


def line_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str,
    panels: Sequence[str] = ("",),
    size: Pixels | None = None,
) -> Drawing:
    """Lines over a common axis; panels, for example repetitions, stand side by side.

    ``size`` is the area inside the axes, by default one that suits the number of ticks.
    """
    ticks, n_panels = x.scale.ticks(), len(panels)
    wanted = min(max(_TICK_WIDTH * len(ticks) * n_panels, _LEAST_WIDTH), _LARGEST_WIDTH)
    width, height = size or (wanted, _LINES_HEIGHT)
    top = 2 * _TITLE_DROP
    frame = Frame(_LABEL_WIDTH, _LABEL_WIDTH + width, top, top + height)
    marks = [
        svg.text((TEXT_GAP, TEXT_GAP), y.title, "name", y.full_title),
        *svg.grid(frame, y.scale.ticks()),
    ]
    parts = _side_by_side(frame, n_panels)
    for part, name in zip(parts, panels, strict=True):
        if part is not parts[0]:
            marks.append(svg.rule((part.left, top - _TITLE_DROP), (part.left, part.bottom), "edge"))
        if name:
            marks.append(svg.text((part.left + TEXT_GAP, top - _LINE_HEIGHT), name, "tick"))
        marks += labels_below(part, ticks)
    below = ((frame.left + frame.right) / 2, frame.bottom + _TITLE_DEPTH)
    marks.append(svg.text(below, x.title, "tick middle", x.full_title))
    longest = max((len(line) for each in series for line in each.lines), default=0)
    has_dots = len(series) <= _CROWD and _DOT_ROOM * longest <= width / n_panels
    ends = {}
    for each in series:
        lines = [
            [(part.x(x.scale.position(a)), part.y(y.scale.position(b))) for a, b in line]
            for part, line in zip(parts, each.lines, strict=True)
            if line
        ]
        if lines:
            marks.append(item_line(each.item, lines, has_dots=has_dots))
            ends[each.item] = lines[-1][-1][1]
    whole = (frame.right + name_width(ends), below[1] + _LINE_HEIGHT)
    marks += names_beside(ends, (frame.right + TEXT_GAP, whole[1]))
    return Drawing(whole, title, description, *marks, kind=_kind(series))


def scatter_plot(
    points: Sequence[Point], x: Axis, y: Axis, *, title: str, description: str
) -> Drawing:
    """A point for each item. On an axis of categories those of one category lie side by side."""
    frame = _POINTS_FRAME
    axis = frame.bottom + _AXIS_DEPTH
    ticks = x.scale.ticks()
    room = (frame.right - frame.left) / max(1, len(ticks))
    marks = [
        svg.text((frame.left, frame.top - _LINE_HEIGHT), x.title, "name", x.full_title),
        *svg.grid(frame, y.scale.ticks()),
        svg.rule((frame.left, axis), (frame.right, axis), "axis"),
    ]
    for position, label in ticks:
        place = (frame.x(position), axis + _LABEL_DEPTH)
        marks.append(svg.text(place, svg.shorten(label, room), "tick middle", label))
    for point, aside in zip(points, _asides(len(points)), strict=True):
        is_missing = isinstance(point.y, Missing)
        place = (
            frame.x(_position(x.scale, point.x, aside)),
            frame.bottom + _MISSING_DEPTH if is_missing else frame.y(y.scale.position(point.y)),
        )
        marks.append(_group(point.item, _end(point.item, place)))
    return Drawing(_POINTS_SIZE, title, description, *marks, kind=_kind(points))


def parallel_coordinates(
    rows: Sequence[Row], axes: Sequence[Axis], *, title: str, description: str
) -> Drawing:
    """An upright axis for each variable, a line for each item.

    Where an item has no value its line goes below the axis, to a place for each reason.
    """
    gap = min(max(_AXES_WIDTH / max(1, len(axes) - 1), _LEAST_GAP), _LARGEST_GAP)
    top = 2 * _TITLE_DROP + TEXT_GAP
    frame = Frame(_AXES_LEFT, _AXES_LEFT + gap * (len(axes) - 1), top, top + _AXES_HEIGHT)
    slots = [_slots(rows, number) for number in range(len(axes))]
    lefts = [frame.left + gap * number for number in range(len(axes) - 1)] + [frame.right]

    def place(row: Row, number: int, aside: float) -> Pixels:
        value, scale = row.values[number], axes[number].scale
        if isinstance(value, Missing):
            return lefts[number], _slot_y(frame, slots[number].index(value))
        return lefts[number], frame.y(_position(scale, value, aside))

    rules = [svg.rule((left, frame.top), (left, frame.bottom), "axis") for left in lefts]
    lines, ends = [], {}
    for row, aside in zip(rows, _asides(len(rows)), strict=True):
        corners = [place(row, number, aside) for number in range(len(axes))]
        lines.append(item_line(row.item, [corners]))
        ends[row.item] = corners[-1][1]
    labels = []
    for left, axis, missing in zip(lefts, axes, slots, strict=True):
        labels += _axis_labels(frame, left, axis, gap)
        side, kind = _side(frame, left)
        for number, slot in enumerate(missing):
            at = (left + side, _slot_y(frame, number))
            labels.append(svg.text(at, slot.reason, f"{kind} {slot.kind}"))
    n_slots = max(map(len, slots), default=0)
    size = (frame.right + _AXES_RIGHT, _slot_y(frame, n_slots - 1) + _LINE_HEIGHT)
    labels += names_beside(ends, (frame.right + _NAME_GAP, size[1]))
    # Labels come last: with a margin in the colour of the page they stay readable over lines.
    return Drawing(size, title, description, *rules, *lines, *labels, kind=_kind(rows))


def _axis_labels(frame: Frame, left: float, axis: Axis, gap: float) -> list[Element]:
    """The title above an upright axis and the labels of its ticks beside it."""
    above, full = frame.top - _TITLE_DROP, axis.full_title or axis.title
    if left == frame.right:
        title = svg.text((left + _AXES_RIGHT - TEXT_GAP, above), axis.title, "name right", full)
    else:
        shown = svg.shorten(axis.title, gap - TEXT_GAP, svg.TITLE_CHARACTER)
        title = svg.text((left, above), shown, "name middle", full)
    side, kind = _side(frame, left)
    room = _AXES_LEFT - TEXT_GAP if left == frame.left else gap - 2 * TEXT_GAP
    return [title] + [
        svg.text((left + side, frame.y(position)), svg.shorten(label, room), kind, label)
        for position, label in axis.scale.ticks()
    ]


def _side(frame: Frame, left: float) -> tuple[float, str]:
    """Offset and classes of the labels of an upright axis.

    Those of the last axis are at its right, so that no line runs through them.
    """
    return (TEXT_GAP, "tick") if left == frame.right else (-TEXT_GAP, "tick right")


def _slot_y(frame: Frame, number: int) -> float:
    """The height of a place for missing values below the axes."""
    return frame.bottom + _SLOT_HEIGHT * (number + 1) + TEXT_GAP


def _side_by_side(frame: Frame, count: int) -> list[Frame]:
    """Parts of ``frame`` of equal width."""
    edges = [frame.x(number / count) for number in range(count + 1)]
    return [
        Frame(left, right, frame.top, frame.bottom)
        for left, right in zip(edges, edges[1:], strict=False)
    ]


def labels_below(frame: Frame, ticks: Sequence[Tick]) -> list[Element]:
    """The labels of a horizontal axis; only every second, third … if they would touch."""
    widest = max((len(label) for _, label in ticks), default=0) * svg.TICK_CHARACTER + TEXT_GAP
    every = math.ceil(widest * len(ticks) / (frame.right - frame.left)) or 1
    return [
        svg.text((frame.x(position), frame.bottom + _LABEL_DEPTH), label, "tick middle")
        for position, label in ticks[::every]
    ]


def _slots(rows: Sequence[Row], number: int) -> list[Missing]:
    """The different reasons of missing values on an axis; that of the last row comes first."""
    values = (row.values[number] for row in reversed(rows))
    return list(dict.fromkeys(value for value in values if isinstance(value, Missing)))


def _asides(count: int) -> list[float]:
    """An offset between -0.5 and 0.5 for each item, in their order."""
    return [(number + 0.5) / count - 0.5 for number in range(count)]


def _position(scale: Scale, value: Any, aside: float) -> float:
    """Position of a value; within a category moved aside, so that items do not cover each other."""
    position = scale.position(value)
    if isinstance(scale, CategoricalScale):
        position += _SPREAD * scale.band * aside
    return position


def _kind(items: Sequence[Any]) -> str:
    return "chart crowded" if len(items) > _CROWD else "chart"


def _group(item: Item, *marks: Element) -> Element:
    """The marks of one item."""
    attributes = {"class": f"item {item.kind}", "data-item": item.key}
    return svg.element("g", attributes, svg.element("title", {}, item.label), *marks)


def item_line(item: Item, lines: Sequence[Sequence[Pixels]], *, has_dots: bool = False) -> Element:
    """An item's lines in pixels, over broad invisible ones that are easy to point at."""
    dots = [point for line in lines for point in line] if has_dots else []
    return _group(
        item,
        svg.path(lines, "reach"),
        svg.path(lines, "line"),
        *(svg.disc(point, _DOT_RADIUS, "dot") for point in dots),
        _end(item, lines[-1][-1]),
    )


def _end(item: Item, place: Pixels) -> Element:
    if item.symbol:
        return svg.text(place, item.symbol, "end middle")
    return svg.disc(place, _END_RADIUS, "end")


def name_width(items: Iterable[Item]) -> float:
    """Pixels at the right of a chart for the names of its items."""
    longest = max((len(item.name) for item in items), default=0)
    return max(_NAME_WIDTH, 2 * TEXT_GAP + svg.TITLE_CHARACTER * longest) if longest else _MARGIN


def names_beside(ends: dict[Item, float], corner: Pixels) -> list[Element]:
    """The names of items beside the ends of their lines, moved where they would overlap.

    ``corner`` is their left edge, and the lower edge of the drawing, above which they stay.
    """
    left, bottom = corner
    named = [(y, item) for item, y in ends.items() if item.name]
    named.sort(key=lambda pair: (pair[0], pair[1].key))
    heights, lowest = [], -math.inf
    for y, _ in named:
        lowest = max(y, lowest + _LINE_HEIGHT)
        heights.append(lowest)
    limit = bottom - _LINE_HEIGHT / 2
    for number in reversed(range(len(heights))):
        heights[number] = min(heights[number], limit)
        limit = heights[number] - _LINE_HEIGHT
    return [
        svg.text((left, height), item.name, f"named {item.kind}")
        for (_, item), height in zip(named, heights, strict=True)
    ]


def height_for_names(count: int) -> float:
    """The least height of a chart in which so many names have room."""
    return count * _LINE_HEIGHT
