"""From a plan to a finished sweep: Ray Tune runs the trials, the trial table keeps what they say.

Ray's own state is thrown away at every end. A later start takes the table, tells the searcher and
the scheduler what is known, and goes on with trials that were interrupted under their old number,
so that their runs go on from their own snapshots.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.config import dump_config
from pipeline.distributed.preemption import StopRequest
from pipeline.errors import ConfigError, SweepFailedError
from pipeline.output.ownership import Ownership
from pipeline.sweep.actor import StopFlag, TrialActor
from pipeline.sweep.config import Metric, ResourceSettings, SchedulerSettings
from pipeline.sweep.plan import BEST, Plan
from pipeline.sweep.ray_cluster import ray_cluster
from pipeline.sweep.searcher import Proposer, TrialSearcher
from pipeline.sweep.space import Parameters
from pipeline.sweep.trial_table import TaskReport, TrialRecord, TrialTable, best

_SETTINGS = "sweep.json"
_STOP_S = 150.0  # after this long, trials that were asked to stop are stopped by Tune
_POLL_S = 0.2
_LOOK_S = 2.0  # between two looks at whether a later start has taken over
_NOTICE_S = 25.0  # within which Ray notices that a node has gone (five health checks, 3 s apart)


def open_table(plan: Plan, *, resume: bool, watch: Callable[[TrialRecord], None]) -> TrialTable:
    """The trial table of a new sweep, or of one that goes on.

    Raises:
        ConfigError: the output holds a sweep and ``resume`` was not asked for, or another sweep.
    """
    sweep = plan.sweep
    place, url = storage.redact(sweep.output), storage.join(sweep.output, _SETTINGS)
    wanted = _identity(plan)
    if storage.exists(url):
        if not resume:
            raise ConfigError(
                f"output: {place} holds a sweep; add --resume to go on with it, choose another "
                "output=, or remove that folder"
            )
        found = json.loads(storage.read_text(url))
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise ConfigError(
                    f"output: {place} holds another sweep: its {key} was {found.get(key)!r}, and "
                    f"this is {wanted.get(key)!r}; choose another output="
                )
    else:
        storage.write_atomically(url, f"{json.dumps(wanted, indent=2)}\n".encode())
    owner = Ownership(sweep.output)
    owner.take()
    return TrialTable(
        sweep.output,
        sweep.metric,
        mark=plan.mark,
        watch=watch,
        raise_if_taken_over=owner.raise_if_taken_over,
    )


def run_sweep(plan: Plan, table: TrialTable, stop: StopRequest) -> bool:
    """Run every trial that has not ended yet; False if ``stop`` came before they had.

    Raises:
        ConfigError: Ray cannot be reached, or has no room for a trial.
        TakenOverError: a later start of the command writes to the output.
    """
    sweep = plan.sweep
    proposer = Proposer(plan.space, sweep.sampler, sweep.metric, sweep.trials)
    scheduler = build_scheduler(sweep.scheduler, plan.n_tasks * len(sweep.repetitions))
    for record in table.records:
        if record.status != "running":
            proposer.tell(record)
            tell_scheduler(scheduler, record, sweep.metric)
    ended = {record.number for record in table.records if record.status != "running"}
    known = dict(enumerate(plan.first)) | {r.number: r.parameters for r in table.records}
    known = {number: parameters for number, parameters in known.items() if number not in ended}
    new = [number for number in range(sweep.trials) if number not in ended | known.keys()]
    if not (known or new):
        return True

    def begin(number: int, parameters: Parameters) -> dict[str, Any]:
        table.begin(number, parameters)
        return told(plan, number, parameters)

    searcher = TrialSearcher(
        proposer, known=known, new=new, begin=begin, is_over=lambda: stop.is_made
    )
    tune_config = tune.TuneConfig(
        num_samples=len(known) + len(new),
        search_alg=searcher,
        scheduler=scheduler,
        max_concurrent_trials=sweep.max_concurrent,
        reuse_actors=False,
    )
    with ray_cluster(sweep.address, sweep.resources) as folder:
        stop.listen(signal.SIGINT)  # again: Ray has put a handler of its own in its place
        # Beside the command, so that no other node's loss takes it from the trials.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        flag = StopFlag.options(scheduling_strategy=here).remote()
        run_config = tune.RunConfig(
            name="sweep",
            storage_path=folder,
            callbacks=[TrialRecorder(plan, table, proposer, flag, stop)],
            # The runs' own snapshots are all that is ever needed.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=sweep.node_losses),
            stop=_LastResort(stop),
            verbose=0,
        )
        actor = _actor(plan, flag)
        tune.Tuner(actor, tune_config=tune_config, run_config=run_config).fit()
    return not any(record.status == "running" for record in table.records)


def conclude(plan: Plan, table: TrialTable) -> TrialRecord:
    """Write ``best.yaml``; returns the best trial.

    Raises:
        SweepFailedError: no trial finished.
    """
    winner = best(table.records, plan.sweep.metric)
    if winner is None:
        reasons = Counter(record.reason for record in table.records)
        reason, count = reasons.most_common(1)[0]
        raise SweepFailedError(
            f"none of {len(table.records)} trials finished; {count} of them: {reason}"
        )
    text = dump_config(plan.best_config(winner, table.records))
    mark = f"# {plan.mark}\n" if plan.mark else ""
    url = storage.join(plan.sweep.output, BEST)
    storage.write_atomically(url, f"{mark}{text}".encode())
    return winner


def build_scheduler(settings: SchedulerSettings, n_reports: int) -> TrialScheduler:
    """What stops weak trials; ``n_reports`` is the number of tasks of a whole trial."""
    if settings.name == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="tasks_done",
        metric="value",
        mode="max",
        max_t=n_reports,
        grace_period=min(settings.grace_tasks, n_reports),
        reduction_factor=settings.reduction_factor,
    )


def tell_scheduler(scheduler: TrialScheduler, record: TrialRecord, metric: Metric) -> None:
    """Let a trial of an earlier start count where later ones are compared with it."""
    trial = SimpleNamespace(trial_id=f"earlier-{record.number}")
    scheduler.on_trial_add(None, trial)
    for n_reports in range(1, len(record.reports) + 1):
        so_far = record.model_copy(update={"reports": record.reports[:n_reports]})
        result = {"tasks_done": so_far.tasks_done, "value": so_far.value(metric)}
        scheduler.on_trial_result(None, trial, result)


def bundles(resources: ResourceSettings) -> tune.PlacementGroupFactory:
    """What a trial reserves: the same on each of its nodes."""
    one = {"CPU": resources.cpus, "GPU": resources.gpus}
    strategy = "STRICT_SPREAD" if resources.nodes > 1 else "STRICT_PACK"
    return tune.PlacementGroupFactory([one] * resources.nodes, strategy=strategy)


class TrialRecorder(tune.Callback):
    """Keeps the trial table and the proposer up to date, and passes on a request to stop."""

    def __init__(
        self,
        plan: Plan,
        table: TrialTable,
        proposer: Proposer,
        flag: ray.actor.ActorHandle,
        stop: StopRequest,
    ) -> None:
        self._sweep = plan.sweep
        self._table = table
        self._proposer = proposer
        self._flag = flag
        self._stop = stop
        self._waved = False
        self._stopping: set[int] = set()  # trials that were stopped early
        self._looked = time.monotonic()
        self._restarted: set[int] = set()  # trials that have said nothing since
        self._hours_before: dict[int, float] = {}  # of each trial, before its present process

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Ask the trials to stop if the sweep was asked to, and end if another has taken over.

        Both would launch the trials, and end those of the other.
        """
        if time.monotonic() - self._looked > _LOOK_S:
            self._table.raise_if_taken_over()
            self._looked = time.monotonic()
        if self._stop.is_made and not self._waved:
            self._flag.wave.remote()
            self._waved = True

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Wait for trials that were stopped, if no other goes on.

        At the end of everything Tune kills what has not ended within seconds.
        """
        give_up = time.monotonic() + _STOP_S
        while self._stopping and all(trial.is_finished() for trial in trials):
            self._stopping -= ray.get(self._flag.gone.remote())
            if time.monotonic() > give_up:
                return
            time.sleep(_POLL_S if self._stopping else 0)

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial has got its devices, for the first time or again."""
        number = trial.config["number"]
        self._hours_before[number] = self._table[number].device_hours

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial that has lost its process or node is about to be started again.

        Until Ray notices that a node has gone it would start the trial there, again and again.
        """
        number = trial.config["number"]
        give_up = time.monotonic() + _NOTICE_S
        while number in self._restarted and time.monotonic() < give_up and not self._stop.is_made:
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
        """A trial has learned a task or ended; ``done`` may be what the scheduler says."""
        number = trial.config["number"]
        self._restarted.discard(number)
        held_hours = result["held_s"] / 3600 * self._sweep.resources.devices
        hours = self._hours_before[number] + held_hours
        if "failure" in result:
            self._end(number, "failed", reason=result["failure"], device_hours=hours)
        elif "preempted" in result:
            self._table.spend(number, hours)
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
        """A trial has lost its process or node too often."""
        cause = str(trial.get_error() or "unknown").strip().splitlines()[-1]
        reason = f"lost its process more than {self._sweep.node_losses} times, the last by {cause}"
        self._end(trial.config["number"], "failed", reason=reason)

    def _end(self, number: int, status: str, **details: Any) -> None:
        self._table.end(number, status, **details)
        self._proposer.tell(self._table[number])


class _LastResort(tune.Stopper):
    """Stops everything once trials have had long enough to stop by themselves."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._asked: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether patience is at its end."""
        if self._asked is None and self._stop.is_made:
            self._asked = time.monotonic()
        return self._asked is not None and time.monotonic() - self._asked > _STOP_S


def told(plan: Plan, number: int, parameters: Parameters) -> dict[str, Any]:
    """What the actor of a trial is told: its runs, or why there can be none."""
    repetitions = range(len(plan.sweep.repetitions))
    try:
        runs = [plan.run_config(parameters, number, repetition) for repetition in repetitions]
    except ConfigError as error:  # no end of the space showed that these do not go together
        return {"number": number, "runs": [], "refused": str(error)}
    return {"number": number, "runs": [run.model_dump(mode="json") for run in runs]}


def _actor(plan: Plan, flag: ray.actor.ActorHandle) -> Any:
    """What Tune starts for each trial, and with which resources."""
    sweep = plan.sweep
    actor = tune.with_parameters(
        TrialActor,
        folder=os.getcwd(),
        n_tasks=plan.n_tasks,
        metric=sweep.metric,
        resources=sweep.resources,
        losses=sweep.node_losses,
        flag=flag,
    )
    return tune.with_resources(actor, bundles(sweep.resources))


def _identity(plan: Plan) -> dict[str, Any]:
    """What makes two starts the same sweep: not how many trials, nor the machine."""
    machine = {"name", "output", "trials", "max_concurrent", "resources", "node_losses", "address"}
    run = plan.run.model_dump(mode="json", exclude={"name", "output", "engine", "snapshot"})
    return {
        **plan.sweep.model_dump(mode="json", exclude=machine),
        **{f"run.{section}": value for section, value in run.items()},
    }
