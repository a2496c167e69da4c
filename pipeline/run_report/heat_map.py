"""A matrix of fractions: a table whose cells are shaded, and an overview where it is large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.pages import svg
from pipeline.pages.svg import Drawing, Element, Pixels

N_SHADES = 9  # CSS classes shade0, for low values, to shade8
MOST_CELLS = 24  # per row of a table that is shown at once; a larger one gets an overview
_CELL = 9.0  # pixels of the overview, less for a larger matrix
_OVERVIEW = 900.0  # its largest width
_LEFT, _TOP = 40.0, 26.0  # for its labels
_N_LABELS = 10  # of each side

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Cell:
    """A figure in per cent and its CSS class; empty where there is no value."""

    text: str = ""
    kind: str = "none"


@dataclass(frozen=True)
class HeatMap:
    """A matrix ready to be shown; ``low`` and ``high`` are the ends of its shades in per cent."""

    caption: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    low: str
    high: str
    overview: Drawing | None


def build_heat_map(matrix: Matrix, *, caption: str) -> HeatMap:
    """The heat map of fractions; None is an empty cell. Rows and columns are numbered from 1.

    The shades are even between the lowest value and the highest.
    """
    values = [value for each in matrix for value in each if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    n_columns = max(map(len, matrix), default=0)
    is_large = n_columns > MOST_CELLS
    digits = 0 if is_large else 1
    rows = []
    for number, each in enumerate(matrix, start=1):
        cells = [
            Cell()
            if value is None
            else Cell(f"{100 * value:.{digits}f}", f"shade{_shade(value, low, high)}")
            for value in each
        ]
        rows.append((str(number), cells))
    return HeatMap(
        caption=caption,
        columns=list(map(str, range(1, n_columns + 1))),
        rows=rows,
        low=f"{100 * low:.1f}",
        high=f"{100 * high:.1f}",
        overview=_overview(rows, n_columns, caption) if is_large else None,
    )


def _shade(value: float, low: float, high: float) -> int:
    if high <= low:
        return N_SHADES // 2
    return min(N_SHADES - 1, int((value - low) / (high - low) * N_SHADES))


def _overview(rows: Sequence[tuple[str, Sequence[Cell]]], n_columns: int, caption: str) -> Drawing:
    """The shades of all cells; one path for each shade keeps it small."""
    side = min(_CELL, _OVERVIEW / n_columns)
    corners: dict[str, list[Pixels]] = {}
    for number, (_, cells) in enumerate(rows):
        for place, cell in enumerate(cells):
            if cell.text:
                corners.setdefault(cell.kind, []).append(
                    (_LEFT + place * side, _TOP + number * side)
                )
    marks = [svg.squares(corners[kind], side, f"cell {kind}") for kind in sorted(corners)]
    marks += _labels(len(rows), n_columns, side)
    size = (_LEFT + n_columns * side + _LEFT, _TOP + len(rows) * side + _TOP)
    description = "A square for each figure. The table below has the figures."
    return Drawing(size, caption, description, *marks)


def _labels(n_rows: int, n_columns: int, side: float) -> list[Element]:
    """Every few numbers of rows and columns."""
    every = max(1, -(-n_columns // _N_LABELS))
    marks = []
    for number in range(0, n_columns, every):
        place = (_LEFT + (number + 0.5) * side, _TOP - 10)
        marks.append(svg.text(place, str(number + 1), "tick middle"))
    for number in range(0, n_rows, every):
        place = (_LEFT - 8, _TOP + (number + 0.5) * side)
        marks.append(svg.text(place, str(number + 1), "tick right"))
    return marks
