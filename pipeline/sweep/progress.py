"""The progress of a running sweep: a live table on a terminal, plain lines in a file.

It reads nothing but the records of trials, each whenever it has changed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.sweep.config import Metric
from pipeline.sweep.trial_table import Status, TrialRecord, rank
from pipeline.text import format_clock, format_spread, shows_live_display

log = logging.getLogger(__name__)

MAX_RUNNING = 16  # rows of running trials, the first ones
N_BEST = 5  # rows of trials that have finished
SYMBOLS: Mapping[Status, str] = {"running": "▶", "finished": "✓", "stopped": "■", "failed": "✗"}
_STYLES: Mapping[Status, str] = {"running": "bold", "stopped": "dim", "failed": "red"}


class SweepDisplay:
    """Shows ``n_trials`` trials of ``n_tasks`` tasks each, repetitions included.

    ``split`` are the tested images, ``note`` is a warning beside every figure. ``clock`` gives
    seconds and never goes back. Records that come before the display is entered are of an earlier
    start of the sweep; they give no lines.
    """

    def __init__(
        self,
        *,
        n_trials: int,
        n_tasks: int,
        metric: Metric,
        split: Literal["validation", "test"] = "validation",
        note: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._n_trials, self._n_tasks = n_trials, n_tasks
        self._metric: Metric = metric
        self._title = f"{metric.replace('_', ' ')} of {split} images (%)"
        self._note = note
        self._clock = clock
        self._started = clock()
        self._records: dict[int, TrialRecord] = {}
        self._changed: dict[int, float] = {}  # time of the last task of each trial
        self._start_ups: list[float] = []  # seconds before the first task of each observed trial
        self._side_by_side = 1  # the most trials that ran at the same time
        self._live: Live | None = None
        self._is_shown = False

    def __enter__(self) -> SweepDisplay:
        self._is_shown = True
        console = Console(stderr=True)
        if shows_live_display(console):
            # A renderable that is asked again, so that times change while no trial reports.
            self._live = Live(
                get_renderable=self.table, console=console, refresh_per_second=2, transient=False
            )
            self._live.start()
        elif self._records:
            log.info("earlier starts: %s", self._summary())
        return self

    def __exit__(self, *_: object) -> None:
        self._is_shown = False
        if self._live:
            self._live.stop()
            sys.stderr.flush()

    def update(self, record: TrialRecord) -> None:
        """Show the changes in the record of a trial."""
        before = self._records.get(record.number)
        if before == record:
            return
        self._records[record.number] = record
        running = sum(not each.has_ended for each in self._records.values())
        self._side_by_side = max(self._side_by_side, running)
        if before is not None and not before.reports and len(record.reports) == 1:
            waited = self._clock() - self._changed[record.number]
            self._start_ups.append(max(0.0, waited - record.reports[0].seconds))
        if before is None or before.tasks_done != record.tasks_done:
            self._changed[record.number] = self._clock()
        if self._is_shown and not self._live:
            for line in self._news(before, record):
                log.info("%s", line)

    def table(self) -> Group:
        """Running trials, the best finished ones, and the number of the others."""
        records = list(self._records.values())
        running = [record for record in records if not record.has_ended]
        ranked = rank([record for record in records if record.status == "finished"], self._metric)
        shown = [*running[:MAX_RUNNING], *ranked[:N_BEST]]
        title = ", ".join(filter(None, [self._title, self._note]))
        table = Table()
        for name in ("trial", "parameters", "task", "metric", "status", "eta"):
            right = name in ("trial", "task", "metric", "eta")
            table.add_column(name, justify="right" if right else "left")
        labels = parameter_labels(records)
        for record in shown:
            table.add_row(
                str(record.number),
                Text(_format_parameters(record, labels)),
                f"{record.tasks_done}/{self._n_tasks}",
                self._figure(record),
                f"{SYMBOLS[record.status]} {record.status}",
                "" if record.has_ended else format_clock(self._eta(record)),
                style=_STYLES.get(record.status),
            )
        left_out = [record for record in records if record not in shown]
        more = f"not shown: {_counts(left_out)}" if left_out else ""
        reasons = [
            f"{SYMBOLS['failed']} trial {record.number}: {record.reason}"
            for record in records
            if record.status == "failed"
        ]
        below = filter(None, [more, *reasons[-3:], self._summary()])
        # Not as the title of the table, which would be as narrow as the table.
        return Group(Text(title), table, *map(Text, below))

    def _news(self, before: TrialRecord | None, now: TrialRecord) -> Iterable[str]:
        """Lines about the changes of a record."""
        place = f"trial {now.number}"
        if before is None:
            yield f"{place} {_format_parameters(now, {})}"
        known = before.tasks_done if before else 0
        if now.tasks_done != known:
            eta = format_clock(self._eta(now))
            note = f" ({self._note})" if self._note else ""
            yield f"{place} task {now.tasks_done}/{self._n_tasks}: {self._figure(now)} %{note}" + (
                "" if now.has_ended else f"  eta {eta}"
            )
        if now.has_ended and (before is None or before.status != now.status):
            yield f"{place} {now.status}" + (f": {now.reason}" if now.reason else "")
            yield self._summary()

    def _figure(self, record: TrialRecord) -> str:
        return format_spread(record.value(self._metric), record.spread(self._metric))

    def _eta(self, record: TrialRecord) -> float | None:
        """Seconds until a running trial has learned all its tasks; None if unknown."""
        per_task = _seconds_per_task([record]) or _seconds_per_task(list(self._records.values()))
        if per_task is None:
            return None
        since = self._clock() - self._changed[record.number]
        start_up = 0.0 if record.tasks_done else self._start_up()
        return max(0.0, start_up + per_task * (self._n_tasks - record.tasks_done) - since)

    def _start_up(self) -> float:
        """Mean seconds before the first task of a trial."""
        return fmean(self._start_ups) if self._start_ups else 0.0

    def _summary(self) -> str:
        """The complete sweep in one line."""
        records = list(self._records.values())
        waiting = self._n_trials - len(records)
        counts = [_counts(records)] if records else []
        parts = [
            ", ".join([*counts, f"{waiting} waiting"] if waiting > 0 else counts),
            f"{sum(record.device_hours for record in records):.2f} device-hours",
            f"elapsed {format_clock(self._clock() - self._started)}",
        ]
        best = rank([r for r in records if r.status == "finished"], self._metric)
        if best:
            parts.insert(1, f"best {self._figure(best[0])} % (trial {best[0].number})")
        left = self._seconds_left(records)
        if left is not None:
            parts.append(f"about {format_clock(left)} left")
        return " · ".join(parts)

    def _seconds_left(self, records: Sequence[TrialRecord]) -> float | None:
        """Seconds until the last trial ends if none is stopped early; None if unknown."""
        running = [record for record in records if not record.has_ended]
        per_task = _seconds_per_task(records)
        if per_task is None or not running:
            return None
        trial = self._start_up() + self._n_tasks * per_task
        waiting = max(0, self._n_trials - len(records)) * trial
        etas = [self._eta(record) or 0.0 for record in running]
        return max(*etas, (sum(etas) + waiting) / self._side_by_side)


def parameter_labels(records: Iterable[TrialRecord]) -> dict[str, str]:
    """For each dotted key its shortest ending that no other key has.

    Keys are in the order in which the trials have them. ``name`` alone would say too little.
    """
    keys = list(dict.fromkeys(key for record in records for key in record.parameters))
    labels = {}
    for key in keys:
        parts = key.split(".")
        fewest = 2 if parts[-1] == "name" else 1
        endings = (".".join(parts[-n:]) for n in range(fewest, len(parts) + 1))
        labels[key] = next(
            ending
            for ending in endings
            if sum(f".{other}".endswith(f".{ending}") for other in keys) == 1 or ending == key
        )
    return labels


def format_value(value: Any) -> str:
    """The value of a parameter, with three digits if it is a float."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _format_parameters(record: TrialRecord, labels: Mapping[str, str]) -> str:
    return " ".join(f"{labels.get(k, k)}={format_value(v)}" for k, v in record.parameters.items())


def _seconds_per_task(records: Iterable[TrialRecord]) -> float | None:
    seconds = [report.seconds for record in records for report in record.reports]
    return fmean(seconds) if seconds else None


def _counts(records: Sequence[TrialRecord]) -> str:
    """The number of trials of each status that occurs."""
    found = [record.status for record in records]
    return ", ".join(f"{found.count(status)} {status}" for status in SYMBOLS if status in found)
