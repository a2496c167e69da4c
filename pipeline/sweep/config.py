"""All settings of a sweep, read as strictly as those of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config import PathText, Protocol
from pipeline.settings_file import Section, load_section

Metric = Literal["average_incremental_accuracy", "last_accuracy"]


class SamplerSettings(Section):
    """The sampler that proposes configurations."""

    name: Literal["tpe", "random"] = "tpe"  # of Optuna
    seed: int = Field(1, ge=0, lt=2**63)  # trial n draws the same in every start


class SchedulerSettings(Section):
    """When a weak trial is stopped: at tasks grace · factor^i it must be among the best 1/factor.

    Tasks are counted over all repetitions of a trial.
    """

    name: Literal["asha", "none"] = "asha"  # none: every trial learns all tasks
    grace_tasks: int = Field(3, gt=0)  # tasks that every trial learns
    reduction_factor: int = Field(2, gt=1)  # the best 1/factor of the trials continue


class ResourceSettings(Section):
    """The devices of one trial on each of its nodes. Each GPU, else each core, makes a rank."""

    gpus: int = Field(0, ge=0)  # 0: ranks on the CPU
    cpus: int = Field(1, gt=0)  # loader processes included
    nodes: int = Field(1, gt=0)  # of one trial

    @property
    def ranks(self) -> int:
        """Ranks of a run, over all its nodes; device-hours count one device for each."""
        return self.nodes * (self.gpus or self.cpus)


class SweepConfig(Section):
    """One sweep."""

    name: str = "sweep"  # in logs and on the page
    output: PathText = "runs/sweep"  # folder or URL; with every trial in it
    run: PathText  # configuration file of the run that is varied
    overrides: list[str] = []  # of that file: key=value
    space: dict[str, Any] = Field(min_length=1)  # by dotted key of a run's settings
    trials: int = Field(20, gt=0)  # number of configurations
    first: list[dict[str, Any]] = []  # parameters of the first trials; the others are drawn
    seeds: list[int] = Field([1], min_length=1)  # each configuration is repeated over these
    class_orders: list[int] | None = Field(None, min_length=1)  # … and over these order seeds
    protocol: Protocol = "first_k_tasks"  # the tasks of a trial, see docs/SWEEPS.md
    k: int = Field(3, gt=0)  # tasks of first_k_tasks
    report: PathText | None = None  # transfer only: configuration file of the run that is reported
    exclude_from_report: bool = True  # leave the tasks of the trials out of the reported figures
    validation_fraction: float = Field(0.2, gt=0, lt=1)  # of training images, by hash of the key
    sampler: SamplerSettings = SamplerSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    resources: ResourceSettings = ResourceSettings()
    max_concurrent: int | None = Field(None, gt=0)  # None: as many as the resources allow
    node_losses: int = Field(3, ge=0)  # times that one trial may lose its node or process
    metric: Metric = "average_incremental_accuracy"  # that the sweep maximises
    address: str | None = None  # of a Ray cluster, or 'auto'; None starts one for this command

    @model_validator(mode="after")
    def _check_together(self) -> SweepConfig:
        if (self.report is not None) != (self.protocol == "transfer"):
            raise ValueError(
                f"protocol is {self.protocol!r} and report is {self.report!r}; 'transfer' needs "
                "the configuration to report, the other protocols report `run`"
            )
        for name in ("seeds", "class_orders"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {values} lists a value twice; repetitions must differ")
        return self

    @property
    def repetitions(self) -> list[tuple[int, int | None]]:
        """Seed and order seed of each repetition; None leaves the run's own order of classes."""
        orders: Sequence[int | None] = self.class_orders or [None]
        return [(seed, order) for order in orders for seed in self.seeds]

    @property
    def n_first_tasks(self) -> int | None:
        """The number of first tasks that a trial learns; None for all tasks."""
        return {"first_task": 1, "first_k_tasks": self.k}.get(self.protocol)

    @property
    def is_oracle(self) -> bool:
        """Whether configurations are chosen on the images that are reported."""
        return self.protocol == "oracle_sequence"


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep in the YAML file ``path``, then ``key.sub=value`` overrides.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has the wrong type.
    """
    return load_section(SweepConfig, path, overrides)
