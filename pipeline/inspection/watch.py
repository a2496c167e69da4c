"""Follow a run in a terminal until it has finished: a live display, or a line per change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline import storage
from pipeline.errors import DataError
from pipeline.inspection.kinds import recognise
from pipeline.inspection.progress import ProgressReader, RunProgress
from pipeline.output.live_progress import LastStep
from pipeline.output.protocol import setting_of
from pipeline.output.results import RunResults
from pipeline.text import format_clock, format_percent, printable, shows_live_display

_FIRST_POLL_S = {True: 1.0, False: 5.0}  # of a local output, of another
_LONGEST_POLL_S = 30.0
_BACKOFF = 1.5
_STATE_S = 10.0  # between two lines about optimizer steps
_GRACE_S = 60.0  # without an update, before an ended process is believed to be that of the run


def watch_run(
    url: str, *, stalled_s: float, sleep: Callable[[float], None] = time.sleep
) -> RunResults:
    """Show the run at ``url`` until it has finished; returns its results.

    The time between two looks grows while nothing changes.

    Raises:
        DataError: it is no run, or its process has ended on this host before the last task.
        StorageError: a file cannot be read.
    """
    kind, output = recognise(url)
    if kind != "run":
        raise DataError(f"{storage.redact(url)}: is a {kind}, and --watch follows a run; give one")
    first_poll = _FIRST_POLL_S[storage.is_local(output)]
    reader, poll_s = ProgressReader(output), first_poll
    before: RunProgress | None = None
    with WatchDisplay(storage.redact(output), stalled_s) as display:
        while True:
            progress = reader.read()
            poll_s = first_poll if progress != before else min(_BACKOFF * poll_s, _LONGEST_POLL_S)
            before = progress
            display.show(progress)
            if progress.is_finished and progress.results:
                return progress.results
            _raise_if_ended(progress, storage.redact(output))
            sleep(poll_s)


class WatchDisplay:
    """The progress of one run, redrawn on a terminal; elsewhere a line per change on stdout."""

    def __init__(self, place: str, stalled_s: float) -> None:
        self._place = place
        self._stalled_s = stalled_s
        self._shown: RunProgress | None = None
        self._is_stalled = False
        self._stated = time.monotonic()  # when the last line said where the run stands
        console = Console()
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=1)
            if shows_live_display(console)
            else None
        )

    def __enter__(self) -> WatchDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: RunProgress) -> None:
        """Show the progress as it is now."""
        before, self._shown = self._shown, progress
        was_stalled = self._is_stalled
        self._is_stalled = not progress.is_finished and _age_s(progress) > self._stalled_s
        if self._live:
            self._live.refresh()
            return
        lines = _new_stages(before, progress)
        if self._is_due(before, progress):
            lines.append(_status(progress))
            self._stated = time.monotonic()
        if self._is_stalled and not was_stalled:
            lines.append(_stall(progress))
        for line in lines:
            sys.stdout.write(f"{_now():%Y-%m-%d %H:%M:%S} {line}\n")
        sys.stdout.flush()

    def _is_due(self, before: RunProgress | None, progress: RunProgress) -> bool:
        """Whether a line says where the run stands: while it only proceeds, every 10 s."""
        if before is None or progress.is_finished or before.last_step != progress.last_step:
            return True
        one, other = (each.live.doing if each.live else None for each in (before, progress))
        is_old = time.monotonic() - self._stated > _STATE_S
        return one != other or (is_old and before.live != progress.live)

    def _render(self) -> Group:
        progress = self._shown
        if progress is None:
            return Group(Text(f"{self._place}: reading"))
        lines = [_status(progress), f"last update {format_clock(_age_s(progress))} ago"]
        lines += [_stall(progress)] if self._is_stalled else []
        return Group(Text(self._place), *_table(progress.results), *map(Text, lines))


def _table(results: RunResults | None) -> list[Table]:
    if results is None:
        return []
    table = Table(title=Text("accuracy after each task (%)"), title_justify="left")
    for title in ("task", "all seen", *(str(n + 1) for n in range(len(results.tasks)))):
        table.add_column(title, justify="right")
    for task, row in enumerate(results.accuracy_matrix):
        cells = ["" if value is None else format_percent([value]) for value in row]
        table.add_row(str(task + 1), format_percent([results.stage_accuracy.micro[task]]), *cells)
    return [table]


def _new_stages(before: RunProgress | None, progress: RunProgress) -> list[str]:
    """A line per task that was learned since ``before``."""
    results = progress.results
    if results is None:
        return []
    first = before.n_learned if before else 0
    return [
        f"task {task + 1} learned: {format_percent([results.stage_accuracy.micro[task]])} % of all "
        f"seen; by task: "
        + " ".join(format_percent([value]) for value in results.accuracy_matrix[task][: task + 1])
        for task in range(first, results.n_learned)
    ]


def _status(progress: RunProgress) -> str:
    """Where the run stands, in one line."""
    results, step = progress.results, progress.last_step
    if progress.is_finished and results:
        average = format_percent([results.average_incremental_accuracy])
        return f"finished: {results.n_learned} tasks learned, average accuracy {average} %"
    live = progress.live if progress.live and progress.live.task >= progress.n_learned else None
    of = f"/{len(results.tasks)}" if results else f"/{live.n_tasks}" if live else ""
    n_epochs: int | None
    if live:
        step, n_epochs = live.last_step, live.n_epochs
    else:
        n_epochs = setting_of(results.manifest.config, "optim.epochs") if results else None
    if live and step is None:
        counts = f" {live.images:,}/{live.n_images:,} images" if live.n_images else ""
        where = f"task {live.task + 1}{of}: {live.doing}{counts}"
    elif step is None or step.task < progress.n_learned:
        where = f"task {progress.n_learned + 1}{of}: no step logged yet"
    else:
        where = f"task {step.task + 1}{of} {_describe_step(step, n_epochs)}"
    left = progress.seconds_left(_now())
    if left is None and step is not None:
        left = step.seconds_left
    return f"{where}  about {format_clock(left)} left" if left else where


def _describe_step(step: LastStep, n_epochs: int | None) -> str:
    epochs = f"/{n_epochs}" if n_epochs else ""
    steps = f"/{step.task_steps}" if step.task_steps else ""
    return (
        f"epoch {step.epoch + 1}{epochs} step {step.step + 1}{steps} loss {step.loss:.3f}  "
        f"{step.images_per_second:,.0f} images/s"
    )


def _stall(progress: RunProgress) -> str:
    start = progress.start
    by = ""
    if start:
        by = printable(f"; process {start.process} on {start.host}, since {start.since}")
    return f"stalled: no update for {_age_s(progress) / 60:.0f} minutes{by}"


def _raise_if_ended(progress: RunProgress, place: str) -> None:
    """Raise if the process of an unfinished run has ended on this host, and no other writes."""
    start = progress.start
    if start and start.has_ended and _age_s(progress) > _GRACE_S:
        raise DataError(
            f"{place}: process {start.process} of the run has ended with {progress.n_learned} "
            "tasks learned; start the same command again to continue"
        )


def _age_s(progress: RunProgress) -> float:
    """Seconds since the last update; 0 if the storage does not record times."""
    return max(0.0, (_now() - progress.updated).total_seconds()) if progress.updated else 0.0


def _now() -> datetime:
    return datetime.now(timezone.utc)
