"""A trial: one configuration, learned once for each seed and order of classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Protocol

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import PipelineError, Preempted
from pipeline.launching.run_process import Ended
from pipeline.output.results import read_results
from pipeline.sweep.trial_table import TaskReport, task_reports

_POLL_S = 0.5
_LOOK_S = {True: 0.5, False: 3.0}  # between two looks at results.json: on disk, elsewhere


class TrialFailed(PipelineError):
    """A run of the trial cannot be finished; the message is its reason."""


class Launched(Protocol):
    """A run that was launched, on one node or several."""

    def is_running(self) -> bool:
        """Whether it goes on."""

    def end(self) -> Ended:
        """How it ended; nothing of it is left."""

    def stop(self) -> None:
        """End it with a snapshot; nothing of it is left."""

    def keep_log(self, url: str) -> None:
        """Move what it said to ``url``; the last thing that is asked of it."""


Launch = Callable[[Config], AbstractContextManager[Launched]]


class Trial:
    """The runs of a trial in order; each goes on from its snapshots if it was begun before.

    ``losses`` is how often a run may lose a process through no fault of its settings.
    """

    def __init__(
        self,
        runs: Sequence[Config],
        *,
        n_tasks: int,
        launch: Launch,
        must_stop: Callable[[], bool],
        losses: int,
    ) -> None:
        self._runs = runs
        self._n_tasks = n_tasks
        self._launch = launch
        self._must_stop = must_stop
        self._losses_left = losses

    def reports(self) -> Iterator[TaskReport]:
        """One report per learned task, as soon as it is there; closing it ends the present run.

        Raises:
            TrialFailed: a run cannot be finished.
            Preempted: ``must_stop`` asked for it, and the run has left a snapshot.
        """
        for repetition in range(len(self._runs)):
            n_reported = 0
            while n_reported < self._n_tasks:
                with closing(self._attempt(repetition)) as reports:
                    for report in reports:
                        if report.task >= n_reported:
                            n_reported += 1
                            yield report

    def _attempt(self, repetition: int) -> Iterator[TaskReport]:
        """Every report of one launch, those of earlier launches first."""
        config = self._runs[repetition]
        done = self._read(repetition)
        if len(done) == self._n_tasks:
            yield from done
            return
        if self._must_stop():
            raise Preempted("asked to stop before its start")
        with self._launch(config) as run:
            try:
                yield from self._watch(repetition, run)
                ended = run.end()
            finally:
                run.stop()
                run.keep_log(f"{config.output}.log")
        done = self._read(repetition)
        yield from done
        if ended.reason is None:
            if len(done) != self._n_tasks:
                raise TrialFailed(f"it has {len(done)} tasks, and {self._n_tasks} were expected")
            return
        if not ended.lost:
            raise TrialFailed(ended.reason)
        if self._must_stop():
            raise Preempted(ended.reason)
        self._losses_left -= 1
        if self._losses_left < 0:
            raise TrialFailed(f"{ended.reason}; that was once too often, see node_losses")

    def _watch(self, repetition: int, run: Launched) -> Iterator[TaskReport]:
        """Reports until the run is no longer there; that of its last task waits for its end."""
        look_s = _LOOK_S[storage.is_local(self._runs[repetition].output)]
        looked = time.monotonic()
        while run.is_running():
            if self._must_stop():
                run.stop()
                raise Preempted("asked to stop")
            if time.monotonic() - looked >= look_s:
                yield from self._read(repetition)[: self._n_tasks - 1]
                looked = time.monotonic()
            time.sleep(_POLL_S)

    def _read(self, repetition: int) -> list[TaskReport]:
        """Reports of all tasks that the run has finished."""
        results = read_results(self._runs[repetition].output)
        return task_reports(results, repetition, self._n_tasks) if results else []
