"""The output of a sweep: its trials, and the runs of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast, get_args

from pipeline import storage
from pipeline.errors import DataError, PipelineError
from pipeline.inspection.findings import Findings, Part, Progress, check_file
from pipeline.inspection.run import inspect_run
from pipeline.sweep.config import Metric
from pipeline.sweep.trial_table import TABLE, TrialRecord, best, read_records, trial_folder

_SETTINGS, _BEST = "sweep.json", "best.yaml"


def inspect_sweep(output: str, *, full: bool, progress: Progress) -> Findings:
    """The sweep in ``output``; ``full`` also inspects the runs of each trial.

    Raises:
        DataError: ``sweep.json`` or the record of a trial is damaged.
        StorageError: a file cannot be read.
    """
    settings = _read_settings(output)
    records = read_records(output)
    metric = cast(Metric, settings["metric"])
    states = Counter(record.status for record in records)
    has_ended = bool(records) and all(record.has_ended for record in records)
    parts = [check_file(output, _SETTINGS)]
    if records:
        parts.append(check_file(output, TABLE))
    is_concluded = storage.exists(storage.join(output, _BEST))
    if is_concluded:
        parts.append(check_file(output, _BEST))
    if full:
        parts += _runs(output, records, progress)
    stage = ", ".join(f"{count} {state}" for state, count in states.items()) or "no trial yet"
    winner = best(records, metric)
    facts = {
        "protocol": settings.get("protocol"),
        "metric": metric,
        "trials": dict(states),
        "best_trial": winner.number if winner else None,
        "best_parameters": winner.parameters if winner else None,
        "best_value": winner.value(metric) if winner else None,
        "device_hours": round(sum(record.device_hours for record in records), 4),
    }
    place = storage.redact(output)
    return Findings("sweep", place, stage, has_ended and is_concluded, facts, parts)


def _read_settings(output: str) -> dict[str, Any]:
    url = storage.join(output, _SETTINGS)
    try:
        settings = json.loads(storage.read_text(url))
        if settings["metric"] in get_args(Metric):
            return settings
        problem = f"metric {str(settings['metric'])[:40]!r}"
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise DataError(
        f"{storage.redact(url)}: is not that of a sweep ({problem}); restore it from a copy"
    )


def _runs(output: str, records: Sequence[TrialRecord], progress: Progress) -> list[Part]:
    """Each run that has reported a task."""
    runs = [
        (record, repetition)
        for record in records
        for repetition in sorted({report.repetition for report in record.reports})
    ]
    parts = []
    for done, (record, repetition) in enumerate(runs, start=1):
        folder = storage.join(trial_folder(output, record.number), f"run-{repetition}")
        name = f"trials/{record.number:03d}/run-{repetition}"
        try:
            found = inspect_run(folder)
            parts.append(Part(name, fault="; ".join(found.faults) or None, note=found.stage))
        except PipelineError as error:
            parts.append(Part(name, fault=f"cannot be used: {error}"))
        progress(done, len(runs))
    return parts
