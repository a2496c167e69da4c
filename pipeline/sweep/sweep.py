"""A sweep from its plan to ``best.yaml``: Ray Tune runs the trials, the trial table records them.

The way of a trial, here trial 7 with two tasks::

    searcher.py     propose(7)                        → {"optim.learning_rate": 0.002}
    plan.py         trial_spec(7, parameters)         → {"number": 7, "runs": [settings of run-0]}
    actor.py        TrialActor, where Ray has devices → places: GPU 3 of this node, port 20417
    trial.py        Trial.reports: launches run-0, again if it loses a process
    launching/      RunProcess: deepspeed pipeline/train.py --config <settings of run-0>
    training/       the run                           → trials/007/run-0/results.json
    trial_table.py  task_reports(results)             → TaskReport of task 1, later of task 2
    recorder.py     TrialRecorder: each report        → trials/007/trial.json, trials.csv; its end
                                                        → the proposer, for the next proposals

Ray's state is thrown away at every end. A later start reads the trial table, gives the proposer and
the scheduler the known outcomes, and starts interrupted trials again under their old number, so
that their runs resume from their own snapshots.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.config import dump_config, with_absolute_paths
from pipeline.distributed.preemption import StopRequest
from pipeline.errors import ConfigError, DataError, SweepFailedError
from pipeline.output.ownership import Ownership
from pipeline.sweep.actor import StopFlag, TrialActor, TrialSettings
from pipeline.sweep.config import Metric, ResourceSettings, SchedulerSettings
from pipeline.sweep.plan import BEST, SweepPlan
from pipeline.sweep.ray_cluster import ray_cluster
from pipeline.sweep.recorder import StopAfterGrace, TrialRecorder
from pipeline.sweep.searcher import Proposer, TrialSearcher
from pipeline.sweep.space import Parameters
from pipeline.sweep.trial_table import TrialRecord, TrialTable, best
from pipeline.training.checked_run import with_all_options

_SETTINGS = "sweep.json"


def open_table(
    plan: SweepPlan, *, resume: bool, watch: Callable[[TrialRecord], None]
) -> TrialTable:
    """The trial table of a new sweep, or of the sweep in the output.

    Raises:
        ConfigError: the output has a sweep although ``resume`` is false, or has another sweep.
        DataError: a file of the sweep in the output is damaged.
    """
    sweep = plan.sweep
    place, url = storage.redact(sweep.output), storage.join(sweep.output, _SETTINGS)
    wanted = _identity(plan)
    if storage.exists(url):
        if not resume:
            raise ConfigError(
                f"output: {place} has a sweep; add --resume to continue it, choose another "
                "output=, or remove that folder"
            )
        found = _read_identity(url)
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise ConfigError(
                    f"output: {place} has another sweep: its {key} was {found.get(key)!r}, and "
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


def run_sweep(plan: SweepPlan, table: TrialTable, stop: StopRequest) -> bool:
    """Run every trial that has not ended yet; False if ``stop`` was requested before the end.

    Raises:
        ConfigError: Ray cannot be reached, or has no room for a trial.
        TakenOverError: a later start of the command writes to the output.
    """
    sweep = plan.sweep
    proposer = Proposer(plan.space, sweep.sampler, sweep.metric, sweep.trials)
    scheduler = build_scheduler(sweep.scheduler, plan.n_reports)
    for record in table.records:
        if record.has_ended:
            proposer.add_outcome(record)
            replay_trial(scheduler, record, sweep.metric)
    searcher = _build_searcher(plan, table, proposer, stop)
    if not searcher.n_left:
        return True
    tune_config = tune.TuneConfig(
        num_samples=searcher.n_left,
        search_alg=searcher,
        scheduler=scheduler,
        max_concurrent_trials=sweep.max_concurrent,
        reuse_actors=False,
    )
    with ray_cluster(sweep.address, sweep.resources) as folder:
        stop.listen()  # again: Ray has replaced the handler
        flag = _start_flag()
        run_config = tune.RunConfig(
            name="sweep",
            storage_path=folder,
            callbacks=[TrialRecorder(plan, table, proposer, flag, stop)],
            # The runs have snapshots of their own, and need no other.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=sweep.node_losses),
            stop=StopAfterGrace(stop),
            verbose=0,
        )
        actor = _actor(plan, flag, table.raise_if_taken_over)
        tune.Tuner(actor, tune_config=tune_config, run_config=run_config).fit()
    return all(record.has_ended for record in table.records)


def conclude(plan: SweepPlan, table: TrialTable) -> TrialRecord:
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
    best_run = with_all_options(plan.best_config(winner, table.records))
    text = dump_config(with_absolute_paths(best_run))
    mark = f"# {plan.mark}\n" if plan.mark else ""
    url = storage.join(plan.sweep.output, BEST)
    storage.write_atomically(url, f"{mark}{text}".encode())
    return winner


def build_scheduler(settings: SchedulerSettings, n_reports: int) -> TrialScheduler:
    """The scheduler that stops weak trials; a complete trial has ``n_reports`` reports."""
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


def replay_trial(scheduler: TrialScheduler, record: TrialRecord, metric: Metric) -> None:
    """Report a trial of an earlier start to the scheduler, which compares later trials with it."""
    controller: Any = None  # no scheduler of ours asks it
    trial: Any = SimpleNamespace(trial_id=f"earlier-{record.number}")
    scheduler.on_trial_add(controller, trial)
    for tasks_done, value in record.values_by_task(metric).items():
        scheduler.on_trial_result(controller, trial, {"tasks_done": tasks_done, "value": value})


def bundles(resources: ResourceSettings) -> tune.PlacementGroupFactory:
    """The resources that a trial reserves: the same on each of its nodes."""
    one: dict[str, float] = {"CPU": resources.cpus, "GPU": resources.gpus}
    strategy = "STRICT_SPREAD" if resources.nodes > 1 else "STRICT_PACK"
    return tune.PlacementGroupFactory([one] * resources.nodes, strategy=strategy)


def _build_searcher(
    plan: SweepPlan, table: TrialTable, proposer: Proposer, stop: StopRequest
) -> TrialSearcher:
    """The searcher of all trials that have not ended."""
    known = dict(enumerate(plan.first)) | {r.number: r.parameters for r in table.records}
    new = [number for number in range(plan.sweep.trials) if number not in known]
    for record in table.records:
        if record.has_ended:
            del known[record.number]

    def begin(number: int, parameters: Parameters) -> dict[str, Any]:
        table.begin(number, parameters)
        return plan.trial_spec(number, parameters)

    return TrialSearcher(proposer, known=known, new=new, begin=begin, is_over=lambda: stop.is_made)


def _start_flag() -> Any:
    """A stop flag beside the command, so that the loss of another node does not end it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(StopFlag).options(scheduling_strategy=here).remote()


def _actor(plan: SweepPlan, flag: ActorHandle[Any], check_owner: Callable[[], None]) -> Any:
    """The class that Tune starts for each trial, with its resources."""
    sweep = plan.sweep
    settings = TrialSettings(
        folder=os.getcwd(),
        n_tasks=plan.n_tasks,
        metric=sweep.metric,
        resources=sweep.resources,
        node_losses=sweep.node_losses,
        check_owner=check_owner,
    )
    actor = tune.with_parameters(TrialActor, settings=settings, flag=flag)
    return tune.with_resources(actor, bundles(sweep.resources))


def _read_identity(url: str) -> dict[str, Any]:
    """The settings of the sweep in an output, as :func:`_identity` gave them."""
    problem = "is no JSON object"
    try:
        found = json.loads(storage.read_text(url))
        if isinstance(found, dict):
            return found
    except ValueError as error:
        problem = f"is not JSON: {error}"
    raise DataError(
        f"{storage.redact(url)}: {problem}; restore it from a copy, or choose another output="
    )


def _identity(plan: SweepPlan) -> dict[str, Any]:
    """The settings that two starts of a sweep share: not the number of trials, nor the machine."""
    machine = {"name", "output", "trials", "max_concurrent", "resources", "node_losses", "address"}
    run = plan.run.model_dump(mode="json", exclude={"name", "output", "engine", "snapshot"})
    return {
        **plan.sweep.model_dump(mode="json", exclude=machine),
        **{f"run.{section}": value for section, value in run.items()},
    }
