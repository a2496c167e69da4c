"""Callbacks of Ray Tune: they keep the trial table up to date and pass on a request to stop."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial as TuneTrial

from pipeline.distributed.preemption import StopRequest
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.searcher import Proposer
from pipeline.sweep.trial_table import Status, TaskReport, TrialTable

_STOP_S = 150.0  # trials that have not stopped this long after a request are stopped by Tune
_POLL_S = 0.2
_OWNER_POLL_S = 2.0
_NODE_LOSS_NOTICED_S = 25.0  # Ray notices a lost node within five health checks, 3 s apart


class TrialRecorder(tune.Callback):
    """Records the results of trials in the trial table and in the proposer."""

    def __init__(
        self,
        plan: SweepPlan,
        table: TrialTable,
        proposer: Proposer,
        flag: ActorHandle[Any],
        stop: StopRequest,
    ) -> None:
        self._sweep = plan.sweep
        self._table = table
        self._proposer = proposer
        self._flag = flag
        self._stop = stop
        self._is_stop_passed_on = False
        self._owner_checked = time.monotonic()
        self._stopping: set[int] = set()  # trials that were stopped early and may still run
        self._restarted: set[int] = set()  # trials without a result since their restart
        self._hours_before: dict[int, float] = {}  # of each trial, before its current process

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Ask the trials to stop if the sweep was asked to; end if a later start has taken over.

        Otherwise both starts would launch the trials, and end those of the other.
        """
        if time.monotonic() - self._owner_checked > _OWNER_POLL_S:
            self._table.raise_if_taken_over()
            self._owner_checked = time.monotonic()
        if self._stop.is_made and not self._is_stop_passed_on:
            self._flag.request.remote()
            self._is_stop_passed_on = True

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Wait for trials that were stopped early, once no other trial runs.

        At its end Tune kills every trial that does not end within seconds.
        """
        deadline = time.monotonic() + _STOP_S
        while self._stopping and all(trial.is_finished() for trial in trials):
            self._stopping -= ray.get(self._flag.ended_trials.remote())
            if time.monotonic() > deadline:
                return
            time.sleep(_POLL_S if self._stopping else 0)

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Note the device-hours of earlier processes of a trial that gets its devices."""
        number = trial.config["number"]
        self._hours_before[number] = self._table[number].device_hours

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Wait before the second restart of a trial that has lost its process or node.

        Until Ray notices that a node is lost it would restart the trial there, again and again.
        """
        number = trial.config["number"]
        deadline = time.monotonic() + _NODE_LOSS_NOTICED_S
        while number in self._restarted and time.monotonic() < deadline and not self._stop.is_made:
            time.sleep(_POLL_S)
        self._restarted.add(number)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Record a result of a :class:`TrialActor`; the scheduler may have set its ``done``."""
        number = trial.config["number"]
        self._restarted.discard(number)
        hours = self._hours_before[number]
        hours += result["held_s"] / 3600 * self._sweep.resources.ranks
        if "failure" in result:
            self._end(number, "failed", reason=result["failure"], device_hours=hours)
        elif "preempted" in result:
            self._table.set_device_hours(number, hours)
        else:
            self._table.report(number, TaskReport(**result["report"]), hours)
            if result["is_last"]:
                self._end(number, "finished")
            elif result["done"]:
                factor = self._sweep.scheduler.reduction_factor
                reason = f"not among the best 1/{factor} after {result['tasks_done']} tasks"
                self._end(number, "stopped", reason=reason)
                self._stopping.add(number)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record a trial that has lost its process or node too often."""
        cause = str(trial.get_error() or "unknown").strip().splitlines()[-1]
        reason = f"lost its process more than {self._sweep.node_losses} times, the last by {cause}"
        self._end(trial.config["number"], "failed", reason=reason)

    def _end(
        self,
        number: int,
        status: Status,
        *,
        reason: str | None = None,
        device_hours: float | None = None,
    ) -> None:
        self._table.end(number, status, reason=reason, device_hours=device_hours)
        self._proposer.add_outcome(self._table[number])


class StopAfterGrace(tune.Stopper):
    """Ends the sweep in Tune if its trials have not stopped by themselves in time."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._noticed: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """False: no single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Whether the grace period after the request has passed."""
        if self._noticed is None and self._stop.is_made:
            self._noticed = time.monotonic()
        return self._noticed is not None and time.monotonic() - self._noticed > _STOP_S
