"""What the runs of a trial are, so that nothing is chosen on what is reported later.

A trial's run learns the first tasks of the sequence, or all tasks of another benchmark, and is
scored on images held out from the *training* split by hash of their key, the same in every trial.
``oracle_sequence`` is the exception that other papers make: everything it touches says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline import storage
from pipeline.config import TUNED_ON_EVALUATION, Config, load_config
from pipeline.errors import ConfigError
from pipeline.methods import parse_options
from pipeline.settings_file import parse_section
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.space import Parameters, Space, parse_space, with_settings
from pipeline.sweep.trial_table import TrialRecord, trial_folder
from pipeline.training.run import Run, check_run

BEST = "best.yaml"


@dataclass(frozen=True)
class Plan:
    """A sweep whose files were found to fit each other."""

    sweep: SweepConfig
    run: Config  # the run that is varied
    reported: Config  # the run that the best parameters are for
    space: Space
    n_tasks: int = 0  # of one run of a trial

    def run_config(self, parameters: Parameters, number: int, repetition: int) -> Config:
        """What one repetition of a trial learns, and where its output goes.

        Raises:
            ConfigError: the parameters do not fit the run.
        """
        sweep = self.sweep
        seed, order_seed = sweep.repetitions[repetition]
        folder = trial_folder(sweep.output, number)
        decided: Parameters = {
            "name": f"{sweep.name} trial {number}",
            "output": storage.join(folder, f"run-{repetition}"),
            "seed": seed,
            "snapshot.folder": None,
            "tuning": _provenance(sweep),
        }
        if order_seed is not None:
            decided["tasks.order_seed"] = order_seed
        limit = {"first_task": 1, "first_k_tasks": sweep.k}.get(sweep.protocol)
        if limit:
            decided["tasks.limit"] = limit
        decided["evaluation.exclude_tasks"] = 0
        if sweep.is_oracle:
            decided["evaluation.split"] = "test"
        else:
            decided["evaluation.split"] = "validation"
            decided["data.validation_fraction"] = sweep.validation_fraction
        return _parse(with_settings(self.space.apply(parameters), decided), sweep, parameters)

    def best_config(self, record: TrialRecord, records: list[TrialRecord]) -> Config:
        """The reported run with a trial's parameters and how they were found."""
        sweep = self.sweep
        decided: Parameters = {
            "name": f"{self.reported.name}_tuned",
            "output": storage.join(sweep.output, "best"),
            "evaluation.exclude_tasks": self.excluded_tasks,
            "tuning": _provenance(sweep)
            | {
                "trials": len(records),
                "device_hours": round(sum(each.device_hours for each in records), 4),
            },
        }
        reported = self.reported.model_dump(mode="json")
        tree = with_settings(with_settings(reported, record.parameters), decided)
        return _parse(tree, sweep, record.parameters)

    @property
    def first(self) -> list[Parameters]:
        """Parameters of the first trials.

        Raises:
            ConfigError: they are not of the space.
        """
        return [self.space.validate(given) for given in self.sweep.first[: self.sweep.trials]]

    @property
    def excluded_tasks(self) -> int:
        """First tasks that chose the settings and are to be left out of the reported figures."""
        chosen = {"first_task": 1, "first_k_tasks": self.sweep.k}.get(self.sweep.protocol, 0)
        return chosen if self.sweep.exclude_from_report else 0

    @property
    def mark(self) -> str:
        """What stands over every table of the sweep; empty where there is nothing to warn of."""
        return TUNED_ON_EVALUATION if self.sweep.is_oracle else ""

    def check_corners(self) -> Run:
        """Try every end of the space; returns one of the runs that were tried.

        Raises:
            ConfigError: at some end of the space is no run that could be launched.
            DataError: the index cannot be used.
        """
        for corner in (*self.first, *self.space.corners()):
            config = self.run_config(corner, 0, 0)
            try:
                run = check_run(config, self.sweep.resources.ranks)
                record = TrialRecord(number=0, parameters=corner)
                parse_options(self.best_config(record, [record]).method)
            except ConfigError as error:
                raise ConfigError(f"space: with {_told(corner)}: {error}") from None
        if self.excluded_tasks:
            self._check_a_task_is_reported(config)
        return run

    def _check_a_task_is_reported(self, trial: Config) -> None:
        """A sequence must go on behind the tasks that choose; no test image is needed to know."""
        evaluation = trial.evaluation.model_copy(update={"exclude_tasks": self.excluded_tasks})
        changes = {"tasks": self.reported.tasks, "evaluation": evaluation}
        try:
            check_run(trial.model_copy(update=changes), self.sweep.resources.ranks)
        except ConfigError as error:
            raise ConfigError(
                f"exclude_from_report: it is true, and of {self.sweep.run} {error}"
            ) from None


def load_plan(sweep: SweepConfig) -> Plan:
    """The sweep with its run files.

    Raises:
        ConfigError: a file is wrong, or they do not fit each other.
    """
    run = load_config(sweep.run, sweep.overrides)
    reported = load_config(sweep.report) if sweep.report else run
    if sweep.class_orders and run.tasks.class_order != "lamda":
        raise ConfigError(
            f"class_orders: these are order seeds, and {sweep.run} has "
            f"tasks.class_order={run.tasks.class_order!r}; only 'lamda' knows a seed"
        )
    space = parse_space(sweep.space, run.model_dump(mode="json"))
    plan = Plan(sweep, run, reported, space)
    return replace(plan, n_tasks=len(plan.check_corners().tasks))


def _provenance(sweep: SweepConfig) -> dict[str, Any]:
    return {
        "protocol": sweep.protocol,
        "sweep": sweep.output,
        "note": TUNED_ON_EVALUATION if sweep.is_oracle else None,
    }


def _parse(tree: dict[str, Any], sweep: SweepConfig, parameters: Parameters) -> Config:
    return parse_section(Config, tree, place=f"{sweep.run} with {_told(parameters)}")


def _told(parameters: Parameters) -> str:
    return " ".join(f"{key}={value}" for key, value in parameters.items())
