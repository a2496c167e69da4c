"""All settings of a sweep; strict, and read as those of a run are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config import Protocol
from pipeline.settings_file import Section, load_section

Metric = Literal["average_incremental_accuracy", "last_accuracy"]


class SamplerSettings(Section):
    """How configurations are proposed."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = Field(1, ge=0, lt=2**63)  # trial n draws the same in every start of the sweep


class SchedulerSettings(Section):
    """When a weak trial is stopped: at tasks grace · factor^i it must be among the best 1/factor.

    Tasks count over repetitions: the first of the second repetition comes after the last of the
    first.
    """

    name: Literal["asha", "none"] = "asha"
    grace_tasks: int = Field(3, gt=0)  # tasks that every trial may learn
    reduction_factor: int = Field(2, gt=1)


class ResourceSettings(Section):
    """What one trial gets on each of its nodes. A GPU makes a rank; without GPUs a core does."""

    gpus: int = Field(0, ge=0)
    cpus: int = Field(1, gt=0)  # loader processes included
    nodes: int = Field(1, gt=0)

    @property
    def ranks(self) -> int:
        """Ranks of a run, over all its nodes."""
        return self.nodes * (self.gpus or self.cpus)

    @property
    def devices(self) -> int:
        """What device-hours count: GPUs, or cores where there is none."""
        return self.ranks


class SweepConfig(Section):
    """One sweep."""

    name: str = "sweep"
    output: str = Field("runs/sweep", min_length=1)  # folder or URL; holds every trial
    run: str  # configuration file of the run that is varied
    overrides: list[str] = []  # of that file, as on the command line
    space: dict[str, Any] = Field(min_length=1)  # by dotted key of a run's settings
    trials: int = Field(20, gt=0)  # configurations tried
    first: list[dict[str, Any]] = []  # parameters of the first of them; the others are drawn
    seeds: list[int] = Field([1], min_length=1)  # each configuration is repeated over these
    class_orders: list[int] | None = Field(None, min_length=1)  # … and over these order seeds
    protocol: Protocol = "first_k_tasks"
    k: int = Field(3, gt=0)  # tasks of first_k_tasks
    report: str | None = None  # transfer only: configuration file of the run that is reported
    exclude_from_report: bool = True  # leave the tasks that chose out of the reported figures
    validation_fraction: float = Field(0.2, gt=0, lt=1)  # of training images, by hash of the key
    sampler: SamplerSettings = SamplerSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    resources: ResourceSettings = ResourceSettings()
    max_concurrent: int | None = Field(None, gt=0)  # None: as many as the resources allow
    node_losses: int = Field(3, ge=0)  # how often one trial may lose its node or its process
    metric: Metric = "average_incremental_accuracy"
    address: str | None = None  # of a Ray cluster, or 'auto'; None starts one for this command

    @model_validator(mode="after")
    def _check_together(self) -> SweepConfig:
        if (self.report is not None) != (self.protocol == "transfer"):
            raise ValueError(
                f"protocol is {self.protocol!r} and report is {self.report!r}; 'transfer' needs "
                "the configuration to report, the other protocols report `run` itself"
            )
        for name in ("seeds", "class_orders"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {values} names one twice; repetitions must differ")
        return self

    @property
    def repetitions(self) -> list[tuple[int, int | None]]:
        """Seed and order seed of each repetition; None leaves the run's own order of classes."""
        return [(seed, order) for order in self.class_orders or [None] for seed in self.seeds]

    @property
    def is_oracle(self) -> bool:
        """Whether configurations are chosen on the very images that are reported."""
        return self.protocol == "oracle_sequence"


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep in the YAML file ``path``, then ``key.sub=value`` overrides.

    Raises:
        ConfigError: a file is missing or no YAML, a key unknown, a value of the wrong kind.
    """
    return load_section(SweepConfig, path, overrides)
