"""A line of progress fits its terminal, and shows names as they are."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.progress import TimeElapsedColumn

from pipeline.progress_bar import ProgressLine


def shown(what: str, width: int, *, terminal: bool = True) -> str:
    """The last line that a display of 41,234 of 56,789 items leaves."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system=None, _environ={"TERM": "xt"}
    )
    with ProgressLine(TimeElapsedColumn(), console=console) as line:
        task = line.add_task(what, total=None)
        line.update(task, completed=41_234, total=56_789)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue()).strip().rpartition("\r")[2]


@pytest.mark.parametrize(("width", "n_figures"), [(30, 0), (40, 0), (60, 2), (80, 2), (120, 2)])
def test_bar_and_time_left_are_shown_at_every_width(width, n_figures):
    line = shown("images", width)
    assert re.match(r"images +[━╸╺]+ +-:--:--", line), line
    assert [words in line for words in ("41234/56789", " 0:00:00")] == [
        n < n_figures for n in (0, 1)
    ]
    assert "…" not in line and len(line) <= width


def test_brackets_in_a_name_are_no_markup():
    assert shown("[bold]x[/bold]", 80).startswith("[bold]x[/bold] ")


def test_file_gets_nothing():
    assert shown("images", 80, terminal=False) == ""
