"""A trial: one configuration, learned once for each seed and order of classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Protocol

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import PipelineError, Preempted
from pipeline.launching.run_process import Ended
from pipeline.output.results import read_results
from pipeline.sweep.trial_table import TaskReport, task_reports

_POLL_S = 0.5
_RESULTS_POLL_S = {True: 0.5, False: 3.0}  # of results.json: on the local disk, elsewhere


class TrialFailed(PipelineError):
    """A run of the trial cannot be finished; the message is the reason."""


class LaunchedRun(Protocol):
    """A launched run on one node or several."""

    def is_running(self) -> bool:
        """Whether the run has not ended."""

    def end(self) -> Ended:
        """How the run ended; no process of it is left."""

    def stop(self) -> None:
        """End the run with a snapshot; no process of it is left."""

    def keep_log(self, url: str) -> None:
        """Append its log to the file ``url``; the last call."""


Launch = Callable[[Config], AbstractContextManager[LaunchedRun]]


class Trial:
    """The runs of a trial in order; a run that was started before resumes from its snapshots.

    ``node_losses`` is how often the trial may lose a process although its settings are not at
    fault. ``check_owner`` raises if a later start of the sweep has taken over: a launch then would
    end the run of that start.
    """

    def __init__(
        self,
        runs: Sequence[Config],
        *,
        n_tasks: int,
        launch: Launch,
        must_stop: Callable[[], bool],
        check_owner: Callable[[], None],
        node_losses: int,
    ) -> None:
        self._runs = runs
        self._n_tasks = n_tasks
        self._launch = launch
        self._must_stop = must_stop
        self._check_owner = check_owner
        self._losses_left = node_losses

    def reports(self) -> Generator[TaskReport, None, None]:
        """One report per learned task, as soon as it is known; closing it ends the current run.

        Raises:
            TrialFailed: a run cannot be finished.
            Preempted: ``must_stop`` asked for it, and the run has left a snapshot.
            TakenOverError: a later start of the sweep has taken over.
        """
        for repetition in range(len(self._runs)):
            reported: set[int] = set()
            while len(reported) < self._n_tasks:
                yield from _new(self._attempt(repetition), reported)

    def _attempt(self, repetition: int) -> Generator[TaskReport, None, None]:
        """Every report of one launch, those of earlier launches first; some come repeatedly."""
        config = self._runs[repetition]
        done = self._read(repetition)
        if len(done) == self._n_tasks:
            yield from done
            return
        if self._must_stop():
            raise Preempted("asked to stop before its start")
        self._check_owner()
        with self._launch(config) as run:
            try:
                yield from self._watch(repetition, run)
                ended = run.end()
            finally:
                run.stop()
                run.keep_log(f"{config.output}.log")
        done = self._read(repetition)
        yield from done
        self._check_end(ended, n_done=len(done))

    def _watch(self, repetition: int, run: LaunchedRun) -> Iterator[TaskReport]:
        """Reports while the run lasts; that of its last task waits for its end."""
        poll_s = _RESULTS_POLL_S[storage.is_local(self._runs[repetition].output)]
        read = time.monotonic()
        while run.is_running():
            if self._must_stop():
                run.stop()
                raise Preempted("asked to stop")
            if time.monotonic() - read >= poll_s:
                yield from self._read(repetition)[: self._n_tasks - 1]
                read = time.monotonic()
            time.sleep(_POLL_S)

    def _check_end(self, ended: Ended, *, n_done: int) -> None:
        """Raise unless the run has finished, or may be launched once more."""
        if ended.reason is None:
            if n_done != self._n_tasks:
                raise TrialFailed(
                    f"the finished run has {n_done} tasks, and {self._n_tasks} were expected"
                )
            return
        if not ended.lost:
            raise TrialFailed(ended.reason)
        if self._must_stop():
            raise Preempted(ended.reason)
        self._losses_left -= 1
        if self._losses_left < 0:
            raise TrialFailed(f"{ended.reason}; this was one loss too many, see node_losses")

    def _read(self, repetition: int) -> list[TaskReport]:
        """Reports of all tasks that the run has finished."""
        results = read_results(self._runs[repetition].output)
        return task_reports(results, repetition, self._n_tasks) if results else []


def _new(reports: Generator[TaskReport, None, None], reported: set[int]) -> Iterator[TaskReport]:
    """The reports of tasks that are not in ``reported``, which they are added to."""
    with closing(reports):
        for report in reports:
            if report.task not in reported:
                reported.add(report.task)
                yield report
