"""A round: start the run, inject faults, restart it until it has finished, compare the result."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.errors import DataError, PipelineError
from pipeline.output.results import read_results
from tests.chaos.comparison import RunContent, find_differences, read_run
from tests.chaos.faults import Fault
from tests.chaos.injector import Injector
from tests.chaos.outcome import Injection, Outcome
from tests.chaos.processes import Start, format_process
from tests.chaos.setup import Setup
from tests.chaos.timeline import EventFollower, Timeline, read_timeline

_UNDISTURBED = "undisturbed"
_ATTEMPTS = 3  # hangs, and failures without a fault, before a round is given up
_GRACE_S = 15.0  # for the processes of a start to end after their launcher
# Without a launcher a rank ends by itself, after the present step and a snapshot, or in a minute
# (distributed.preemption). It looks every half second, which may be many steps of a small model.
_GRACE_WITHOUT_LAUNCHER_S = 80.0
_STEPS_WITHOUT_LAUNCHER = 40


@dataclass(frozen=True)
class Reference:
    """The undisturbed run."""

    timeline: Timeline
    content: RunContent
    limit_s: float  # a start that runs longer, or longer after a fault, hangs


def run_undisturbed(setup: Setup) -> Reference:
    """Run the command once without a fault.

    Raises:
        DataError: the command fails.
    """
    with setup.start(_UNDISTURBED, 1) as start:
        while start.wait(60) is None:
            pass
    if start.status:
        raise DataError(
            f"the undisturbed run ended with status {start.status}: {_last_error(start)}; "
            f"correct the error, whose log is {start.log}"
        )
    setup.remove_cache(_UNDISTURBED)
    output, seconds = setup.run_output(_UNDISTURBED), start.seconds
    limit_s = 10 * seconds + 2 * setup.config.engine.timeout_s + 120  # for a busy machine
    return Reference(read_timeline(output, seconds), read_run(output), limit_s)


class Round:
    """One round; call ``run`` once."""

    def __init__(
        self, setup: Setup, reference: Reference, number: int, faults: tuple[Fault, ...]
    ) -> None:
        self._setup = setup
        self._reference = reference
        self._faults = list(faults)
        self._name = f"round-{number:03d}"
        self._outcome = Outcome(number)
        self._injector = Injector(setup, self._name, reference.timeline, reference.limit_s)

    def run(self) -> Outcome:
        """Start, inject and restart until the run has finished; no process remains."""
        started, outcome = time.monotonic(), self._outcome
        while not self._is_over() and len(outcome.failures) + outcome.hangs < _ATTEMPTS:
            with self._setup.start(self._name, len(outcome.statuses) + 1) as start:
                self._follow(start)
        outcome.injections += [Injection(fault, len(outcome.statuses)) for fault in self._faults]
        outcome.differences = self._compare()
        outcome.seconds = time.monotonic() - started
        self._setup.remove_cache(self._name)
        return outcome

    def _is_over(self) -> bool:
        """Whether the last start returned status 0 and the run has finished.

        ``deepspeed`` returns status 0 also if a signal has killed its inner launcher.
        """
        return self._outcome.statuses[-1:] == [0] and self._is_finished()

    def _is_finished(self) -> bool:
        try:
            results = read_results(self._setup.run_output(self._name))
        except PipelineError:
            return False
        return results is not None and results.is_finished

    def _follow(self, start: Start) -> None:
        """Inject faults into one start and record its end."""
        outcome, number = self._outcome, len(self._outcome.statuses) + 1
        injection = self._inject(start, number)
        injected = time.monotonic()
        status = start.wait(self._reference.limit_s)
        if status is None:
            outcome.hangs += 1
            start.kill()
        outcome.statuses.append(status)
        orphans = self._orphans(start, injection)
        outcome.orphans += len(orphans)
        must_finish = injection is None or injection.fault.victim == "storage"
        if must_finish and status is not None and not self._is_over():
            outcome.failures.append(f"start {number}: status {status}: {_last_error(start)}")
        if injection:
            injection.status, injection.hung, injection.orphans = status, status is None, orphans
            injection.seconds = time.monotonic() - injected
            injection.broke = not self._is_over()

    def _inject(self, start: Start, number: int) -> Injection | None:
        """Inject faults up to the first that ends the start; returns the last one injected."""
        last = None
        while self._faults and (last is None or last.fault.victim == "storage"):
            injection = Injection(self._faults[0], number)
            if not self._injector.inject(start, injection):
                break
            last = injection
            self._outcome.injections.append(injection)
            self._faults.pop(0)
        return last

    def _orphans(self, start: Start, injection: Injection | None) -> list[str]:
        """The processes that ran too long after the end of the start."""
        victim = injection.fault.victim if injection else None
        if injection is None or victim not in ("launcher", "inner launcher"):
            return [format_process(process) for process in start.wait_for_all(_GRACE_S)]
        remaining = start.wait_for_all(_GRACE_WITHOUT_LAUNCHER_S)
        orphans = [format_process(process) for process in remaining]
        follower = EventFollower(start.events)
        end = follower.position
        n_more = follower.n_steps - injection.n_steps
        if n_more > _STEPS_WITHOUT_LAUNCHER:
            orphans.append(f"ranks that did {n_more} more steps, to {end}, without their {victim}")
        return orphans

    def _compare(self) -> list[str]:
        try:
            content = read_run(self._setup.run_output(self._name))
        except PipelineError as error:
            return [str(error)]
        return find_differences(content, self._reference.content)


def _last_error(start: Start) -> str:
    """The last error line of the log, or its last line."""
    lines = [line for line in start.log_text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["the log is empty"])[-1]
