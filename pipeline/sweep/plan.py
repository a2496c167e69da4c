"""The runs of a sweep's trials, chosen so that no reported image takes part in the choice.

A trial's run learns the first tasks of the sequence, or all tasks of another benchmark. It is
tested on images held out from the *training* split by a hash of their key, the same in every trial.
The protocol ``oracle_sequence`` tests on the reported images, as other papers do; everything that
it writes says so.
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
from pipeline.sweep.space import Parameters, Space, format_parameters, parse_space, with_settings
from pipeline.sweep.trial_table import TrialRecord, trial_folder
from pipeline.tasks import SEEDED_ORDERS
from pipeline.training.checked_run import Run, check_run

BEST = "best.yaml"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep and its files, which fit each other."""

    sweep: SweepConfig
    run: Config  # the run that is varied
    reported: Config  # the run that the best parameters are for
    space: Space
    n_tasks: int = 0  # of one run of a trial

    @property
    def n_reports(self) -> int:
        """The number of tasks of a complete trial, over all its repetitions."""
        return self.n_tasks * len(self.sweep.repetitions)

    @property
    def first(self) -> list[Parameters]:
        """Parameters of the first trials.

        Raises:
            ConfigError: they are outside the space.
        """
        return [self.space.validate(given) for given in self.sweep.first[: self.sweep.trials]]

    @property
    def excluded_tasks(self) -> int:
        """First tasks that the trials learn and that the reported figures leave out."""
        return self.sweep.n_first_tasks or 0 if self.sweep.exclude_from_report else 0

    @property
    def mark(self) -> str:
        """The warning over every table of the sweep; empty if none is needed."""
        return TUNED_ON_EVALUATION if self.sweep.is_oracle else ""

    def run_config(self, parameters: Parameters, number: int, repetition: int) -> Config:
        """The run of one repetition of trial ``number``.

        Raises:
            ConfigError: the parameters do not fit the run.
        """
        sweep = self.sweep
        seed, order_seed = sweep.repetitions[repetition]
        decided: Parameters = {
            "name": f"{sweep.name} trial {number}",
            "output": storage.join(trial_folder(sweep.output, number), f"run-{repetition}"),
            "seed": seed,
            "snapshot.folder": None,
            "tuning": _provenance(sweep),
            "report": False,  # nobody looks at one trial
            "evaluation.predictions": False,
            "evaluation.exclude_tasks": 0,
            "evaluation.split": "test" if sweep.is_oracle else "validation",
        }
        if order_seed is not None:
            decided["tasks.order_seed"] = order_seed
        if sweep.n_first_tasks is not None:
            decided["tasks.limit"] = sweep.n_first_tasks
        if not sweep.is_oracle:
            decided["data.validation_fraction"] = sweep.validation_fraction
        tree = with_settings(with_settings(self.space.settings, parameters), decided)
        return _parse(tree, sweep, parameters)

    def trial_spec(self, number: int, parameters: Parameters) -> dict[str, Any]:
        """The ``config`` of a :class:`TrialActor`: the runs of the trial, or why it has none."""
        repetitions = range(len(self.sweep.repetitions))
        try:
            runs = [self.run_config(parameters, number, repetition) for repetition in repetitions]
        except ConfigError as error:  # these parameters do not fit together, though each fits alone
            return {"number": number, "runs": [], "refused": str(error)}
        return {"number": number, "runs": [run.model_dump(mode="json") for run in runs]}

    def best_config(self, record: TrialRecord, records: list[TrialRecord]) -> Config:
        """The reported run with the parameters of a trial, and how the sweep found them."""
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

    def check_corners(self) -> Run:
        """Check the run at every end of the space; returns the last of these runs.

        Raises:
            ConfigError: the run at some end of the space cannot be launched.
            DataError: the index cannot be used.
        """
        for corner in (*self.first, *self.space.corners()):
            config = self.run_config(corner, 0, 0)
            try:
                run = check_run(config, self.sweep.resources.ranks)
                record = TrialRecord(number=0, parameters=corner)
                parse_options(self.best_config(record, [record]).method)
            except ConfigError as error:
                raise ConfigError(f"space: with {format_parameters(corner)}: {error}") from None
        if self.excluded_tasks:
            self._check_a_task_is_reported(config)
        return run

    def _check_a_task_is_reported(self, trial: Config) -> None:
        """Check that the sequence has tasks after those of the trials, without the test images."""
        evaluation = trial.evaluation.model_copy(update={"exclude_tasks": self.excluded_tasks})
        changes = {"tasks": self.reported.tasks, "evaluation": evaluation}
        try:
            check_run(trial.model_copy(update=changes), self.sweep.resources.ranks)
        except ConfigError as error:
            raise ConfigError(
                f"exclude_from_report: it is true, and of {self.sweep.run} {error}"
            ) from None


def load_plan(sweep: SweepConfig) -> SweepPlan:
    """The sweep with its run files.

    Raises:
        ConfigError: a file is wrong, or the files do not fit each other.
        DataError: the index cannot be used.
    """
    run = load_config(sweep.run, sweep.overrides)
    reported = load_config(sweep.report) if sweep.report else run
    if sweep.class_orders and run.tasks.class_order not in SEEDED_ORDERS:
        raise ConfigError(
            f"class_orders: these are order seeds, and {sweep.run} has "
            f"tasks.class_order={run.tasks.class_order!r}; only 'lamda' and 'mammoth' have "
            "a seed"
        )
    space = parse_space(sweep.space, run.model_dump(mode="json"))
    plan = SweepPlan(sweep, run, reported, space)
    return replace(plan, n_tasks=len(plan.check_corners().tasks))


def _provenance(sweep: SweepConfig) -> dict[str, Any]:
    """The section ``tuning`` of every run of the sweep and of ``best.yaml``."""
    return {
        "protocol": sweep.protocol,
        "sweep": sweep.output,
        "note": TUNED_ON_EVALUATION if sweep.is_oracle else None,
    }


def _parse(tree: dict[str, Any], sweep: SweepConfig, parameters: Parameters) -> Config:
    return parse_section(Config, tree, place=f"{sweep.run} with {format_parameters(parameters)}")
