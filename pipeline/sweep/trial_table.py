"""The trial table: what was tried and what came of it.

``<output>/trials/<NNN>/trial.json`` is the truth, one file a trial, replaced as a whole; only the
command writes it. ``<output>/trials.csv`` is derived. Nothing here knows of Ray: whatever happens
to Ray's state, no finished trial is lost.
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
    """What a trial was worth after one more task; accuracies are fractions of validation images."""

    tasks_done: int = Field(gt=0)  # over all repetitions so far
    repetition: int = Field(ge=0)
    task: int = Field(ge=0)  # of the repetition, counted from 0
    average_incremental_accuracy: float  # of this repetition up to this task
    last_accuracy: float
    forgetting: float | None  # None after a first task
    seconds: float  # of learning and testing this task


class TrialRecord(Section):
    """One drawn configuration and all that is known of it."""

    number: int = Field(ge=0)
    parameters: dict[str, Any]  # by dotted key of a run's settings
    status: Status = "running"  # 'running' also means: interrupted, and to go on
    reason: str | None = None  # why it failed or was stopped
    reports: list[TaskReport] = []  # in the order of tasks_done
    device_hours: float = 0.0  # GPUs, or cores where there is none, times hours
    started: str | None = None  # ISO 8601, UTC
    ended: str | None = None

    @property
    def tasks_done(self) -> int:
        """Tasks learned so far, over all repetitions."""
        return self.reports[-1].tasks_done if self.reports else 0

    def by_repetition(self, metric: Metric) -> list[float]:
        """The metric at the last task of each repetition that was begun."""
        last = {report.repetition: getattr(report, metric) for report in self.reports}
        return list(last.values())

    def value(self, metric: Metric) -> float | None:
        """Mean of the metric over the repetitions that were begun; None before the first task."""
        values = self.by_repetition(metric)
        return fmean(values) if values else None

    def spread(self, metric: Metric) -> float | None:
        """Standard deviation over repetitions; None with fewer than two."""
        values = self.by_repetition(metric)
        return stdev(values) if len(values) > 1 else None


def task_reports(results: RunResults, repetition: int, n_tasks: int) -> list[TaskReport]:
    """One report per finished task of a run's results, in order.

    ``n_tasks`` is the number of tasks of each repetition.
    """
    micro, matrix = results.stage_accuracy.micro, results.accuracy_matrix
    return [
        TaskReport(
            tasks_done=repetition * n_tasks + task + 1,
            repetition=repetition,
            task=task,
            average_incremental_accuracy=fmean(micro[: task + 1]),
            last_accuracy=micro[task],
            forgetting=forgetting(matrix[: task + 1]),
            seconds=stage.train_seconds + stage.test_seconds,
        )
        for task, stage in enumerate(results.diagnostics)
    ]


def rank(records: Iterable[TrialRecord], metric: Metric) -> list[TrialRecord]:
    """Best first: finished trials, then the others by how far they came, failed ones last."""
    order = ("finished", "running", "stopped", "failed")

    def place(record: TrialRecord) -> tuple[int, int, float, int]:
        value = record.value(metric)
        reached = 0 if record.status == "finished" else -record.tasks_done
        value = float("-inf") if value is None else value
        return order.index(record.status), reached, -value, record.number

    return sorted(records, key=place)


def best(records: Iterable[TrialRecord], metric: Metric) -> TrialRecord | None:
    """The finished trial with the highest metric, of equals the first; None if none finished."""
    finished = [record for record in records if record.status == "finished"]
    return rank(finished, metric)[0] if finished else None


def trial_folder(output: str, number: int) -> str:
    """Where everything of a trial lies."""
    return storage.join(output, "trials", f"{number:03d}")


def read_records(output: str) -> list[TrialRecord]:
    """Every trial that was ever begun in a sweep's output, by number.

    Raises:
        DataError: a record is not one, or names another number than its folder.
        StorageError: the folder cannot be read.
    """
    folder = storage.join(output, "trials")
    urls = [url for url in storage.list_files(folder) if _is_record(url)]
    return sorted(map(_read, urls), key=lambda record: record.number)


def write_record(output: str, record: TrialRecord) -> None:
    """Replace the record of one trial as a whole.

    Raises:
        StorageError: it cannot be written.
    """
    url = storage.join(trial_folder(output, record.number), _RECORD)
    storage.write_atomically(url, f"{record.model_dump_json(indent=2)}\n".encode())


def write_table(output: str, records: Sequence[TrialRecord], metric: Metric, mark: str) -> None:
    """Replace ``trials.csv``: one row a trial, best first; ``mark`` heads it unless empty.

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
    """The records of a sweep; every change is written at once, and shown to ``watch``.

    Before each of them :meth:`raise_if_taken_over` may raise why it must not be written.
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
        """All of them, by number."""
        return [self._records[number] for number in sorted(self._records)]

    def __getitem__(self, number: int) -> TrialRecord:
        return self._records[number]

    def begin(self, number: int, parameters: Mapping[str, Any]) -> None:
        """Add a trial, unless it is there and goes on."""
        if number not in self._records:
            self._put(TrialRecord(number=number, parameters=dict(parameters), started=_now()))

    def report(self, number: int, report: TaskReport, device_hours: float) -> None:
        """A trial has learned one more task, or tells again what it had told before."""
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
        """A trial will not go on."""
        record = self._records[number]
        hours = record.device_hours if device_hours is None else device_hours
        changes = {"status": status, "reason": reason, "device_hours": hours, "ended": _now()}
        self._put(record.model_copy(update=changes))

    def spend(self, number: int, device_hours: float) -> None:
        """A trial was interrupted and goes on in a later start of the sweep."""
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
            f"{place}: is no record of a trial ({error}); restore it from a copy, or remove its "
            "folder to have the trial run again"
        ) from None
    if f"{record.number:03d}" != url.split("/")[-2]:
        raise DataError(f"{place}: is the record of trial {record.number}; it was moved here")
    return record


def _mean(record: TrialRecord, name: str) -> float | None:
    """Mean of a figure over the repetitions; None where one has none."""
    last = {report.repetition: getattr(report, name) for report in record.reports}
    return fmean(last.values()) if last and None not in last.values() else None


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
