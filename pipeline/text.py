"""Numbers, sizes and lists as people read them; the same form in every table, log and error."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from rich.console import Console

NOT_KNOWN = "–"


def format_percent(fractions: Sequence[float | None], *, digits: int = 1) -> str:
    """Fractions in per cent: one as ``31.3``, several as mean ± standard deviation ``31.3 ± 0.2``.

    A dash if there is none, or if one of them is None.
    """
    known = [100 * fraction for fraction in fractions if fraction is not None]
    if not known or len(known) < len(fractions):
        return NOT_KNOWN
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    return f"{fmean(known):.{digits}f} ± {stdev(known):.{digits}f}"


def format_spread(mean: float | None, deviation: float | None, *, digits: int = 1) -> str:
    """A mean fraction in per cent, with its standard deviation where that is known."""
    if mean is None:
        return NOT_KNOWN
    text = f"{100 * mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {100 * deviation:.{digits}f}"


def format_bytes(size: float) -> str:
    """``size`` bytes in kB, MB or GB of 1000, with one digit: ``122.9 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1000:,.1f} kB"


def format_clock(seconds: float | None) -> str:
    """Hours, minutes and seconds as ``1:02:03``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def first_few(items: Sequence[object], most: int = 8) -> str:
    """The first items, separated by commas; ``, … (n in all)`` if there are more than ``most``."""
    shown = ", ".join(map(str, items[:most]))
    return f"{shown}, … ({len(items)} in all)" if len(items) > most else shown


def shows_live_display(console: Console) -> bool:
    """Whether ``console`` is a terminal that can redraw lines; a file or a dumb one cannot."""
    return console.is_terminal and not console.is_dumb_terminal
