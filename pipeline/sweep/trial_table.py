"""The trial table: the parameters and results of every trial.

The sweep's command alone writes ``<output>/trials/<NNN>/trial.json``, one file per trial, each
replaced in one step; it derives ``<output>/trials.csv`` from them. Nothing here depends on Ray, so
that no finished trial is lost with Ray's state.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import Field

from pipeline import storage
from pipeline.errors import ConfigError, DataError
from pipeline.output.metrics import forgetting
from pipeline.output.results import RunResults
from pipeline.settings_file import Section, parse_section
from pipeline.sweep.config import Metric

TABLE = "trials.csv"
_RECORD = "trial.json"

Status = Literal["running", "finished", "stopped", "failed"]


class TaskReport(Section):
    """The results of a trial after one more task; accuracies are fractions of the tested images."""

    tasks_done: int = Field(gt=0)  # over all repetitions so far
    repetition: int = Field(ge=0)
    task: int = Field(ge=0)  # of the repetition, counted from 0
    average_incremental_accuracy: float  # of this repetition up to this task
    last_accuracy: float
    forgetting: float | None  # None after a first task
    seconds: float  # of learning and testing this task


class TrialRecord(Section):
    """One trial: its parameters, status and results."""

    number: int = Field(ge=0)
    parameters: dict[str, Any]  # by dotted key of a run's settings
    status: Status = "running"  # 'running' includes: interrupted, to be resumed
    reason: str | None = None  # why it failed or was stopped
    reports: list[TaskReport] = []  # in the order of tasks_done
    device_hours: float = 0.0  # of GPUs, or of cores if there are none
    started: str | None = None  # ISO 8601, UTC
    ended: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the trial is finished, stopped or failed."""
        return self.status != "running"

    @property
    def tasks_done(self) -> int:
        """Tasks learned so far, over all repetitions."""
        return self.reports[-1].tasks_done if self.reports else 0

    def by_repetition(self, metric: Metric) -> list[float]:
        """The metric at the last task of each repetition with a report."""
        last = {report.repetition: getattr(report, metric) for report in self.reports}
        return list(last.values())

    def value(self, metric: Metric) -> float | None:
        """Mean of the metric over the repetitions with a report; None before the first task."""
        values = self.by_repetition(metric)
        return fmean(values) if values else None

    def values_by_task(self, metric: Metric) -> dict[int, float]:
        """The value after each report, by its ``tasks_done``."""
        counts = range(1, len(self.reports) + 1)
        parts = [self.model_copy(update={"reports": self.reports[:n]}) for n in counts]
        return {part.tasks_done: fmean(part.by_repetition(metric)) for part in parts}

    def spread(self, metric: Metric) -> float | None:
        """Standard deviation over repetitions; None with fewer than two."""
        values = self.by_repetition(metric)
        return stdev(values) if len(values) > 1 else None


def task_reports(results: RunResults, repetition: int, n_tasks: int) -> list[TaskReport]:
    """One report per finished task of a run's results, in order.

    ``n_tasks`` is the number of tasks of each repetition.
    """
    accuracies = [value for value in results.stage_accuracy.micro if value is not None]
    matrix = results.accuracy_matrix
    return [
        TaskReport(
            tasks_done=repetition * n_tasks + task + 1,
            repetition=repetition,
            task=task,
            average_incremental_accuracy=fmean(accuracies[: task + 1]),
            last_accuracy=accuracies[task],
            forgetting=forgetting(matrix[: task + 1]),
            seconds=stage.seconds,
        )
        for task, stage in enumerate(results.diagnostics)
    ]


def rank(records: Iterable[TrialRecord], metric: Metric) -> list[TrialRecord]:
    """Best first: finished trials, then the others by their number of tasks, failed ones last."""
    order = ("finished", "running", "stopped", "failed")

    def place(record: TrialRecord) -> tuple[int, int, float, int]:
        value = record.value(metric)
        reached = 0 if record.status == "finished" else -record.tasks_done
        value = float("-inf") if value is None else value
        return order.index(record.status), reached, -value, record.number

    return sorted(records, key=place)


def best(records: Iterable[TrialRecord], metric: Metric) -> TrialRecord | None:
    """The finished trial with the highest metric, the first of equals; None if none finished."""
    finished = [record for record in records if record.status == "finished"]
    return rank(finished, metric)[0] if finished else None


def trial_folder(output: str, number: int) -> str:
    """The folder with all files of a trial."""
    return storage.join(output, "trials", f"{number:03d}")


def read_records(output: str) -> list[TrialRecord]:
    """Every trial in a sweep's output, by number.

    Raises:
        DataError: a record is damaged, or has another number than its folder.
        StorageError: the folder cannot be read.
    """
    folder = storage.join(output, "trials")
    urls = [url for url in storage.list_files(folder) if _is_record(url)]
    return sorted(map(_read, urls), key=lambda record: record.number)


def write_record(output: str, record: TrialRecord) -> None:
    """Replace the record of one trial in one step.

    Raises:
        StorageError: it cannot be written.
    """
    url = storage.join(trial_folder(output, record.number), _RECORD)
    storage.write_atomically(url, f"{record.model_dump_json(indent=2)}\n".encode())


def write_table(output: str, records: Sequence[TrialRecord], metric: Metric, mark: str) -> None:
    """Replace ``trials.csv``: one row per trial, best first, below ``mark`` unless that is empty.

    Raises:
        StorageError: it cannot be written.
    """
    keys = sorted({key for record in records for key in record.parameters})
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    if mark:
        table.writerow([f"# {mark}"])
    figures = ["average_incremental_accuracy", "last_accuracy", "forgetting"]
    table.writerow(
        ["rank", "trial", *keys, "status", "tasks_done", *figures]
        + [f"{metric}_sd", "repetitions", "device_hours", "reason"]
    )
    for place, record in enumerate(rank(records, metric), start=1):
        parameters = [
            _cell(record.parameters[key]) if key in record.parameters else "" for key in keys
        ]
        table.writerow(
            [place, record.number, *parameters, record.status, record.tasks_done]
            + [_figure(_mean(record, name)) for name in figures]
            + [_figure(record.spread(metric)), len(record.by_repetition(metric))]
            + [f"{record.device_hours:.4f}", record.reason or ""]
        )
    storage.write_atomically(storage.join(output, TABLE), lines.getvalue().encode())


class TrialTable:
    """The records of a sweep; every change is written at once, and passed to ``watch``.

    Before each write :meth:`raise_if_taken_over` raises if another start owns the output.
    """

    def __init__(
        self,
        output: str,
        metric: Metric,
        *,
        mark: str = "",
        watch: Callable[[TrialRecord], None] = lambda record: None,
        raise_if_taken_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._output = output
        self._metric = metric
        self._mark = mark
        self._watch = watch
        self.raise_if_taken_over = raise_if_taken_over
        self._records = {record.number: record for record in read_records(output)}
        for record in self.records:
            watch(record)

    @property
    def records(self) -> list[TrialRecord]:
        """All records, by number."""
        return [self._records[number] for number in sorted(self._records)]

    def __getitem__(self, number: int) -> TrialRecord:
        return self._records[number]

    def begin(self, number: int, parameters: Mapping[str, Any]) -> None:
        """Add a trial, unless the table has it already."""
        if number not in self._records:
            self._put(TrialRecord(number=number, parameters=dict(parameters), started=_now()))

    def report(self, number: int, report: TaskReport, device_hours: float) -> None:
        """Record a task that a trial has learned; a report of the same task is replaced."""
        record = self._records[number]
        others = [old for old in record.reports if old.tasks_done != report.tasks_done]
        reports = sorted([*others, report], key=lambda each: each.tasks_done)
        self._put(record.model_copy(update={"reports": reports, "device_hours": device_hours}))

    def end(
        self,
        number: int,
        status: Status,
        *,
        reason: str | None = None,
        device_hours: float | None = None,
    ) -> None:
        """Record that a trial has ended; its device-hours are kept if None is given."""
        record = self._records[number]
        hours = record.device_hours if device_hours is None else device_hours
        changes = {"status": status, "reason": reason, "device_hours": hours, "ended": _now()}
        self._put(record.model_copy(update=changes))

    def set_device_hours(self, number: int, device_hours: float) -> None:
        """Record the device-hours of an interrupted trial, all its processes together."""
        self._put(self._records[number].model_copy(update={"device_hours": device_hours}))

    def _put(self, record: TrialRecord) -> None:
        self.raise_if_taken_over()
        self._records[record.number] = record
        write_record(self._output, record)
        write_table(self._output, self.records, self._metric, self._mark)
        self._watch(record)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _is_record(url: str) -> bool:
    *_, folder, name = url.split("/")
    return name == _RECORD and folder.isdigit()


def _read(url: str) -> TrialRecord:
    place = storage.redact(url)
    try:
        record = parse_section(TrialRecord, json.loads(storage.read_text(url)), place=place)
    except (ValueError, ConfigError) as error:
        raise DataError(
            f"{place}: is not the record of a trial ({error}); restore it from a copy, or remove "
            "its folder to run the trial again"
        ) from None
    if f"{record.number:03d}" != url.split("/")[-2]:
        raise DataError(
            f"{place}: is the record of trial {record.number}; move it to the folder of that trial"
        )
    return record


def _mean(record: TrialRecord, name: str) -> float | None:
    """Mean of a figure over the repetitions; None if one of them lacks it."""
    last = {report.repetition: getattr(report, name) for report in record.reports}
    return fmean(last.values()) if last and None not in last.values() else None


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
