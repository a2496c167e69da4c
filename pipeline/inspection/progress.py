"""Where a running run stands, read from its output on any storage.

A run writes ``progress.json`` while it trains, ``metrics.jsonl`` with each snapshot and after each
test, ``results.json`` after each test. A file is read again only when its size or time has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.output.live_progress import NAME as LIVE
from pipeline.output.live_progress import LastStep, LiveProgress, read_progress
from pipeline.output.metrics_log import NAME as METRICS
from pipeline.output.ownership import NAME as OWNER
from pipeline.output.ownership import Start, read_start
from pipeline.output.results import NAME as RESULTS
from pipeline.output.results import RunResults, read_results

_TAIL = 64 << 10  # bytes at the end of metrics.jsonl that hold its last lines
_Stamp = tuple[datetime | None, int]


@dataclass(frozen=True)
class RunProgress:
    """Where a run stands; None: not known yet."""

    results: RunResults | None
    last_step: LastStep | None  # in metrics.jsonl
    live: LiveProgress | None  # of the present start of the run
    start: Start | None
    updated: datetime | None  # when the newest of its files was written
    tested: datetime | None  # when the results were written

    @property
    def n_learned(self) -> int:
        """Tasks that are learned and tested."""
        return self.results.n_learned if self.results else 0

    @property
    def is_finished(self) -> bool:
        """Whether every task is learned."""
        return self.results is not None and self.results.is_finished

    def seconds_left(self, now: datetime) -> float | None:
        """An estimate: as if each task took the mean time of those learned; None before one is."""
        results = self.results
        if results is None or not results.diagnostics:
            return None
        n_left = len(results.tasks) - results.n_learned
        left = n_left * results.seconds / len(results.diagnostics)
        since = now - self.tested if self.tested and not self.is_finished else timedelta()
        return max(0.0, left - since.total_seconds())


class ProgressReader:
    """Reads the progress of the run in ``output`` again and again."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._stamps: dict[str, _Stamp | None] = {}
        self._results: RunResults | None = None
        self._last_step: LastStep | None = None
        self._live: LiveProgress | None = None
        self._start: Start | None = None

    def read(self) -> RunProgress:
        """The progress now.

        Raises:
            DataError: a file is damaged.
            StorageError: a file cannot be read.
        """
        if self._has_changed(RESULTS):
            self._results = read_results(self._output)
        if self._has_changed(METRICS):
            self._last_step = self._read_last_step()
        if self._has_changed(OWNER):
            self._start = read_start(self._output)
        if self._has_changed(LIVE):
            self._live = self._read_live()
        times = [stamp[0] for stamp in self._stamps.values() if stamp and stamp[0]]
        tested = self._stamps[RESULTS]
        return RunProgress(
            self._results,
            self._last_step,
            self._live if self._is_newest(LIVE) else None,
            self._start,
            max(times, default=None),
            tested and tested[0],
        )

    def _has_changed(self, name: str) -> bool:
        """Whether a file is another one than at the last look."""
        before = self._stamps.get(name)
        self._stamps[name] = self._stamp(name)
        return self._stamps[name] != before

    def _is_newest(self, name: str) -> bool:
        """Whether no other file is newer: a start that was killed leaves its progress behind."""
        stamps = {each: stamp[0] for each, stamp in self._stamps.items() if stamp and stamp[0]}
        return name not in stamps or stamps[name] >= max(stamps.values())

    def _read_live(self) -> LiveProgress | None:
        try:
            return read_progress(self._output)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _stamp(self, name: str) -> _Stamp | None:
        """The time and size of a file; None if it does not exist."""
        url = storage.join(self._output, name)
        try:
            time, size = storage.modified(url), storage.size(url)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return time.astimezone(timezone.utc) if time else None, size

    def _read_last_step(self) -> LastStep | None:
        stamp = self._stamps[METRICS]
        size = stamp[1] if stamp else 0
        url = storage.join(self._output, METRICS)
        data = storage.read_range(url, max(0, size - _TAIL), size) if size else b""
        for line in reversed(data.decode(errors="replace").splitlines()):
            found = _parse(line)
            if found:
                return found
        return None


def _parse(line: str) -> LastStep | None:
    """The step in a line; None for a line of a test, or a part of a line."""
    try:
        values: Mapping[str, Any] = json.loads(line)
        if values["kind"] != "step":
            return None
        return LastStep.model_validate(values)
    except (ValueError, KeyError, TypeError):  # ValidationError is a ValueError
        return None
