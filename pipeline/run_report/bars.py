"""A chart of upright bars, each a stack of parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.pages import svg
from pipeline.pages.charts import Axis
from pipeline.pages.svg import TEXT_GAP, Drawing, Frame, Pixels

_LEFT, _TOP = 56.0, 44.0  # for the labels of the upright axis, and for its title
_BELOW, _TITLE_BELOW = 14.0, 34.0  # from the axis to its labels and to its title
_MARGIN = 14.0
_FILLED = 0.8  # part of its room that a bar fills


@dataclass(frozen=True)
class Bar:
    """One bar: its label below the axis, the heights of its parts from below, its tooltip."""

    label: str
    parts: Sequence[float]
    tooltip: str


def bar_chart(
    bars: Sequence[Bar], kinds: Sequence[str], x_title: str, y: Axis, *, size: Pixels, title: str
) -> Drawing:
    """The bars beside each other; ``kinds`` are the CSS classes of their parts.

    ``size`` is the area inside the axes.
    """
    frame = Frame(_LEFT, _LEFT + size[0], _TOP, _TOP + size[1])
    room = size[0] / max(1, len(bars))
    marks = [svg.text((TEXT_GAP, TEXT_GAP), y.title, "name"), *svg.grid(frame, y.scale.ticks())]
    widest = max((len(bar.label) for bar in bars), default=0) * svg.TICK_CHARACTER + TEXT_GAP
    every = max(1, -int(-widest // room))
    for number, bar in enumerate(bars):
        left, height = frame.left + room * number, 0.0
        boxes = []
        for part, kind in zip(bar.parts, kinds, strict=True):
            low, high = (frame.y(y.scale.position(each)) for each in (height, height + part))
            corner = (left + room * (1 - _FILLED) / 2, high)
            if low > high:
                boxes.append(svg.box(corner, (room * _FILLED, low - high), f"bar {kind}"))
            height += part
        marks.append(svg.element("g", {}, svg.element("title", {}, bar.tooltip), *boxes))
        if number % every == 0:
            place = (left + room / 2, frame.bottom + _BELOW)
            marks.append(svg.text(place, bar.label, "tick middle"))
    below = (frame.left + size[0] / 2, frame.bottom + _TITLE_BELOW)
    marks.append(svg.text(below, x_title, "tick middle"))
    description = f"{len(bars)} bars. " + " ".join(bar.tooltip for bar in bars[:20])
    whole = (frame.right + _MARGIN, below[1] + _MARGIN)
    return Drawing(whole, title, description, *marks)
