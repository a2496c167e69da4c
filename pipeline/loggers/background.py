"""The loggers of a run, each in its own thread.

``loggers.json`` in the output has the id of the run in each service, by which a later start
continues. It holds nothing else.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.config import Config, LoggerConfig
from pipeline.loggers.base import End, LoggedRun, Logger
from pipeline.loggers.points import Point, point_of

log = logging.getLogger(__name__)

NAME = "loggers.json"
_MAX_WAITING = 10_000  # points that a slow logger has not taken
_END_S = {"finished": 30.0, "stopped": 10.0, "failed": 10.0}  # limit for all loggers to end


class RunLoggers:
    """The loggers of one start of a run; an empty list of loggers costs nothing."""

    def __init__(self, config: Config) -> None:
        run = LoggedRun(config.name, config.output, config.model_dump(mode="json"))
        ids = _RunIds(config.output)
        self._threads = [LoggerThread(settings, run, ids) for settings in config.loggers]
        self._task_steps: Callable[[int], int]  # from the start on

    def start(self, lines: Sequence[str], task_steps: Callable[[int], int]) -> None:
        """Start the loggers; ``lines`` of ``metrics.jsonl`` are there from an earlier start.

        ``task_steps`` gives the optimizer steps of a task, counted from 0.
        """
        self._task_steps = task_steps
        if self._threads:
            contents = enumerate(map(json.loads, lines), start=1)
            points = [point_of(number, content, task_steps) for number, content in contents]
            for thread in self._threads:
                thread.start(points)

    def add(self, line: int, content: Mapping[str, Any]) -> None:
        """Log a line of ``metrics.jsonl``, counted from 1; returns at once."""
        if self._threads:
            point = point_of(line, content, self._task_steps)
            for thread in self._threads:
                thread.add(point)

    def end(self, end: End) -> None:
        """End all loggers, within 30 s, or 10 s if the run is not finished."""
        give_up = time.monotonic() + _END_S[end]
        for thread in self._threads:
            thread.ask_to_end(end)
        for thread in self._threads:
            thread.join(give_up - time.monotonic())


class LoggerThread:
    """One logger in a thread that takes its points from a bounded queue."""

    def __init__(self, settings: LoggerConfig, run: LoggedRun, ids: _RunIds) -> None:
        self._settings, self._run, self._ids = settings, run, ids
        self._queue: queue.Queue[Point | End] = queue.Queue(_MAX_WAITING)
        self._is_off = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, points: Sequence[Point]) -> None:
        """Start the logger with the points of earlier starts, of which it logs those it lacks."""
        name = f"logger {self._settings.name}"
        self._thread = threading.Thread(target=self._live, args=(points,), name=name, daemon=True)
        self._thread.start()

    def add(self, item: Point | End) -> None:
        """Hand over a point, or the end of the run; never waits."""
        if self._is_off.is_set():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._turn_off(f"it has not taken {_MAX_WAITING:,} points")

    ask_to_end = add

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, at most ``seconds``."""
        if self._thread and not self._is_off.is_set():
            self._thread.join(max(seconds, 0.0))
            if self._thread.is_alive():
                self._turn_off("it did not end in time")

    def _live(self, points: Sequence[Point]) -> None:
        try:
            logger = _build(self._settings, self._run)
            name = self._settings.name
            run_id = logger.start(self._ids.get(name))
            self._ids.keep(name, run_id)
            log.info("logging to %s, run %s", name, run_id)
            for point in points:
                if point.line > logger.last_line:
                    logger.log(point)
            self._follow(logger)
        except (Exception, SystemExit) as error:  # each library has its own errors
            self._turn_off(f"{type(error).__name__}: {error}")

    def _follow(self, logger: Logger) -> None:
        """Log points until the run ends."""
        while not self._is_off.is_set():
            item = self._queue.get()
            if isinstance(item, str):
                logger.end(item)
                return
            if item.line > logger.last_line:
                logger.log(item)

    def _turn_off(self, reason: str) -> None:
        """Warn once; from then on nothing is logged."""
        if not self._is_off.is_set():
            self._is_off.set()
            text = " ".join(storage.scrub(reason).split())
            log.warning("logger %s is off, the run continues: %s", self._settings.name, text[:300])


class _RunIds:
    """``loggers.json``: the id of the run in each service."""

    def __init__(self, output: str) -> None:
        self._url = storage.join(output, NAME)
        self._lock = threading.Lock()

    def get(self, name: str) -> str | None:
        """The id that an earlier start was given."""
        with self._lock:
            return self._read().get(name)

    def keep(self, name: str, run_id: str) -> None:
        """Add an id, before anything is logged under it."""
        with self._lock:
            ids = self._read()
            if ids.get(name) != run_id:
                text = json.dumps({**ids, name: run_id}, indent=2)
                storage.write_atomically(self._url, f"{text}\n".encode())

    def _read(self) -> dict[str, str]:
        if not storage.exists(self._url):
            return {}
        ids = json.loads(storage.read_text(self._url))
        if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
            raise ValueError(f"{storage.redact(self._url)} does not hold ids; remove it")
        return ids


def _build(settings: LoggerConfig, run: LoggedRun) -> Logger:
    """The logger; its library, which takes seconds to import, is imported here."""
    if settings.name == "tensorboard":
        from pipeline.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(settings, run)
    if settings.name == "wandb":
        from pipeline.loggers.weights_and_biases import WandbLogger

        return WandbLogger(settings, run)
    from pipeline.loggers.mlflow import MlflowLogger

    return MlflowLogger(settings, run)
