"""Numbers, sizes and lists for people, in the same form in every table, log line and error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from rich.console import Console, RenderableType

NOT_KNOWN = "–"


def format_percent(fractions: Sequence[float | None], *, digits: int = 1) -> str:
    """Fractions in per cent: one as ``31.3``, several as mean ± standard deviation, ``31.3 ± 0.2``.

    A dash if there is no fraction, or if one of them is None.
    """
    known = [100 * fraction for fraction in fractions if fraction is not None]
    if not known or len(known) < len(fractions):
        return NOT_KNOWN
    if len(known) == 1:
        return _format_fixed(known[0], digits)
    return f"{_format_fixed(fmean(known), digits)} ± {stdev(known):.{digits}f}"


def format_spread(mean: float | None, deviation: float | None, *, digits: int = 1) -> str:
    """A mean fraction in per cent, with its standard deviation unless that is None."""
    if mean is None:
        return NOT_KNOWN
    text = _format_fixed(100 * mean, digits)
    return text if deviation is None else f"{text} ± {100 * deviation:.{digits}f}"


def _format_fixed(value: float, digits: int) -> str:
    """``value`` with so many digits; zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def format_bytes(size: float) -> str:
    """``size`` bytes as kB, MB or GB (powers of 1000) with one digit: ``122.9 MB``."""
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
    """The first ``most`` items with commas; ``, … (n in all)`` follows if there are more."""
    shown = ", ".join(map(str, items[:most]))
    return f"{shown}, … ({len(items)} in all)" if len(items) > most else shown


def shorten(text: str, most: int = 300) -> str:
    """``text`` on one line, cut between two words with an ellipsis if it is longer than ``most``.

    A word that is longer than ``most`` is cut itself.
    """
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0] or text[:most]} …"


def first_problem(error: ValidationError) -> str:
    """The place and the message of the first error: ``manifest.seed: Field required``."""
    first = error.errors()[0]
    return shorten(": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"]))), 200)


def printable(name: str) -> str:
    """``name`` on one line of valid text: other bytes and control characters are escaped."""
    if name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shows_live_display(console: Console) -> bool:
    """Whether ``console`` is a terminal that can redraw lines, not a file or a dumb terminal."""
    return console.is_terminal and not console.is_dumb_terminal


def print_wide(shown: RenderableType) -> None:
    """Print without cutting a figure, however narrow the terminal is; to a file in full width."""
    from rich.console import Console  # not above: every module that formats a number would load it
    from rich.measure import Measurement

    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=10_000), shown)
    narrow = max(console.width, needed.minimum)
    console.width = narrow if console.is_terminal else max(1, needed.maximum)
    console.print(shown)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown ``name``: the most similar known name, or else all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
