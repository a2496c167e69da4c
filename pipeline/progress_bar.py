"""A line of progress that fits its terminal: its bar and the time left vanish last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from pipeline.text import shows_live_display

_N_KEPT = 3  # first columns, which never vanish: description, bar, time left
_BAR_WIDTHS = (6, 40)  # smallest and largest
_YIELDED = 20  # of its largest width, what the bar gives up before a column vanishes


@contextmanager
def progress_of(
    things: str, *figures: ProgressColumn, transient: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A line on stderr about ``things``; gives a function of their number so far and in all."""
    with ProgressLine(*figures, console=Console(stderr=True), transient=transient) as line:
        task = line.add_task(things, total=None)
        yield lambda done, total: line.update(task, completed=done, total=total)


class ProgressLine(Progress):
    """Description, bar, time left, count, then ``figures``: what stands further right goes first.

    Nothing is shown where ``console`` is no terminal. The time left follows from the speed of the
    last ``window_s`` seconds; the time between two updates must be shorter than that.
    """

    def __init__(
        self,
        *figures: ProgressColumn,
        console: Console,
        transient: bool = False,
        window_s: float = 30.0,
    ) -> None:
        smallest, largest = _BAR_WIDTHS
        self._console = console
        self._all = (
            TextColumn("{task.description}", markup=False),
            BarColumn(None, table_column=Column(min_width=smallest, max_width=largest)),
            TimeRemainingColumn(),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            *figures,
        )
        super().__init__(
            *self._all,
            console=console,
            transient=transient,
            speed_estimate_period=window_s,
            disable=not shows_live_display(console),
        )

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """The line with as many columns as the present width allows."""
        tasks, unlimited = list(tasks), self._console.options.update(max_width=10_000)
        for n_columns in range(len(self._all), _N_KEPT - 1, -1):
            self.columns = self._all[:n_columns]
            table = super().make_tasks_table(tasks)
            wanted = Measurement.get(self._console, unlimited, table).maximum
            if wanted - _YIELDED <= self._console.width:
                break
        return table
