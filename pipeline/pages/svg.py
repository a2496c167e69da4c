"""The marks of a chart as SVG: text, rules, discs, paths. Their colours and widths are in CSS.

Positions are pixels from the upper left corner. Elements are built as a tree, so that none can be
left open, and text is escaped whatever it contains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from pipeline.pages.scale import Tick

Element = ElementTree.Element
Pixels = tuple[float, float]  # from the left, from the top

TICK_CHARACTER = 6.0  # width of a character of tick labels (11 px), on average
TITLE_CHARACTER = 7.6  # of titles (12 px, bold)
TEXT_GAP = 8.0  # between an axis and the text beside it
_TEXT_DROP = 4.0  # from the middle of a line of text to its baseline
_LEAST_CHARACTERS = 4  # a shorter text says nothing


@dataclass(frozen=True)
class Frame:
    """The area inside the axes of a chart, in pixels; ``bottom`` is larger than ``top``."""

    left: float
    right: float
    top: float
    bottom: float

    def x(self, position: float) -> float:
        """Pixels of a position between 0, the left edge, and 1, the right edge."""
        return round(self.left + position * (self.right - self.left), 1)

    def y(self, position: float) -> float:
        """Pixels of a position between 0, the bottom, and 1, the top."""
        return round(self.bottom - position * (self.bottom - self.top), 1)


class Drawing:
    """A complete SVG chart; templates insert it as it is.

    ``title`` is its name for a screen reader and ``description`` a sentence about its content. The
    name is an attribute because browsers show a title element as a tooltip over the entire chart.
    """

    def __init__(
        self, size: Pixels, title: str, description: str, *content: Element, kind: str = "chart"
    ) -> None:
        width, height = size
        self.root = element(
            "svg",
            {
                "class": kind,
                "viewBox": f"0 0 {width:g} {height:g}",
                "width": f"{width:g}",
                "height": f"{height:g}",
                "role": "group",
                "aria-label": title,
            },
            element("desc", {}, description),
            *content,
        )

    def __html__(self) -> str:
        """Markup for templates, which escape every other value."""
        return ElementTree.tostring(self.root, encoding="unicode")


def element(
    name: str, attributes: Mapping[str, object] | None = None, *content: Element | str
) -> Element:
    """The element ``name`` with elements as its content, or one text."""
    made = Element(name, {key: str(value).strip() for key, value in (attributes or {}).items()})
    for each in content:
        if isinstance(each, str):
            made.text = each
        else:
            made.append(each)
    return made


def text(place: Pixels, shown: str, kind: str, full: str = "") -> Element:
    """Text at ``place``, vertically centred; ``full`` is the tooltip of a shortened text."""
    attributes = {"x": f"{place[0]:g}", "y": f"{place[1] + _TEXT_DROP:g}", "class": kind}
    made = element("text", attributes, shown)
    if full not in ("", shown):
        made.append(element("title", {}, full))
    return made


def rule(start: Pixels, end: Pixels, kind: str) -> Element:
    """A straight line."""
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    return element("line", {**{key: f"{value:g}" for key, value in ends.items()}, "class": kind})


def disc(centre: Pixels, radius: float, kind: str) -> Element:
    """A filled circle."""
    x, y = centre
    return element("circle", {"cx": f"{x:g}", "cy": f"{y:g}", "r": radius, "class": kind})


def box(corner: Pixels, size: Pixels, kind: str) -> Element:
    """A filled rectangle; ``corner`` is the upper left one."""
    place = {"x": corner[0], "y": corner[1], "width": size[0], "height": size[1]}
    return element("rect", {**{key: f"{value:g}" for key, value in place.items()}, "class": kind})


def squares(corners: Sequence[Pixels], side: float, kind: str) -> Element:
    """Filled squares as one element; ``corners`` are the upper left ones."""
    steps = "".join(f"M{x:.5g} {y:.5g}h{side:.5g}v{side:.5g}h-{side:.5g}z" for x, y in corners)
    return element("path", {"class": kind, "d": steps})


def path(lines: Sequence[Sequence[Pixels]], kind: str) -> Element:
    """One or more lines, each through its points."""
    steps = " ".join(
        f"{'L' if number else 'M'}{x:g} {y:g}"
        for line in lines
        for number, (x, y) in enumerate(line)
    )
    return element("path", {"class": kind, "d": steps})


def grid(frame: Frame, ticks: Sequence[Tick]) -> list[Element]:
    """Horizontal rules across ``frame`` with their labels at the left."""
    return [
        mark
        for position, label in ticks
        for mark in (
            rule((frame.left, frame.y(position)), (frame.right, frame.y(position)), "grid"),
            text((frame.left - TEXT_GAP, frame.y(position)), label, "tick right"),
        )
    ]


def shorten(label: str, room: float, character: float = TICK_CHARACTER) -> str:
    """``label``, or as much of its end as fits into ``room`` pixels.

    ``character`` is the width of one character.
    The ends of long keys and values differ more than their beginnings.
    """
    length = max(_LEAST_CHARACTERS, int(room / character))
    return label if len(label) <= length else f"…{label[1 - length :]}"
