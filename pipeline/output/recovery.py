"""Where an interrupted run continues: its last complete snapshot and its learned tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import Tensor

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.output.identity import conflict
from pipeline.output.learned import read_learned
from pipeline.output.results import read_results
from pipeline.output.snapshots import Snapshot, read_latest
from pipeline.text import first_problem

log = logging.getLogger(__name__)

_RESTORE = "restore the snapshots from a copy, or remove the output to start again"
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Stage(BaseModel):
    """Measurements after a task, see :class:`pipeline.output.results_builder.Stage`."""

    correct: list[int]
    images: list[int]
    anchor_cosine: float | None
    modality_gap: float | None
    feature_drift: float | None
    trainable_parameters: int
    images_per_second: float | None
    train_seconds: float
    test_seconds: float
    class_correct: list[int] = []
    class_images: list[int] = []
    frozen_anchor_cosine: float | None = None
    cosine_to_frozen: float | None = None

    @model_validator(mode="after")
    def _check_classes(self) -> _Stage:
        if len(self.class_correct) != len(self.class_images):
            raise ValueError("class_correct and class_images are of different classes")
        return self


class _Results(BaseModel):
    tuning: dict[str, Any] | None
    stages: list[_Stage]
    skipped_samples: list[dict[str, Any]]
    skipped_steps: list[dict[str, Any]]


class _Task(BaseModel):
    names: list[str]
    known_classes: list[str] = []
    templates: list[str] = []
    sha256: str

    @property
    def n_classes(self) -> int:
        """The number of classes that the task has images of."""
        return len(self.names) + len(self.known_classes)


class _Method(BaseModel):
    name: str
    options: dict[str, dict[str, Any]]


class _Settings(BaseModel):
    method: _Method


class _Identity(BaseModel):
    """The form of :func:`pipeline.output.identity.identify`."""

    settings: _Settings
    backbone_sha256: str
    tasks: list[_Task]


class _State(BaseModel):
    """The form of a snapshot's state, beside its position."""

    identity: _Identity
    results: _Results
    skipped_samples: dict[Annotated[str, Field(pattern="^[0-9]{1,18}$")], dict[str, str]]
    learned_sha256: list[_Sha256 | None]
    train_seconds: float
    metrics_lines: int = Field(ge=0)


@dataclass(frozen=True, eq=False)
class Recovered:
    """A snapshot with the learned tensors of each task before it, in order."""

    snapshot: Snapshot
    learned: list[dict[str, Tensor]]

    def class_means(self, width: int) -> list[Tensor]:
        """Mean embedding of each class of each learned task, when that was learned: ``C × width``.

        Raises:
            DataError: the embeddings have another width.
        """
        means = self.snapshot.group("class_means")
        ordered = [means[str(task)] for task in range(len(means))]
        for task, mean_CE in enumerate(ordered, start=1):
            if mean_CE.shape[-1] != width or not mean_CE.is_floating_point():
                raise DataError(
                    f"snapshot {self.snapshot.name}: class_means of task {task} has shape "
                    f"{list(mean_CE.shape)} of {mean_CE.dtype}, not the width {width}; {_RESTORE}"
                )
        return ordered


def snapshot_folder(config: Config) -> str:
    """The folder or URL of the snapshots of a run."""
    return config.snapshot.folder or storage.join(config.output, "snapshots")


def is_finished(config: Config, identity: Mapping[str, Any]) -> bool:
    """Whether the output holds this run with all its tasks learned.

    Raises:
        ConfigError: it holds another run.
        DataError: its results are damaged.
    """
    results = read_results(config.output)
    if results is None:
        return False
    done = results.n_learned
    # The weights are not compared: loading the backbone would only slow down a finished run.
    found = {**results.manifest.identity, "backbone_sha256": identity["backbone_sha256"]}
    try:
        _Identity.model_validate(found)
    except ValidationError as error:
        raise DataError(
            f"{storage.redact(config.output)}: results.json: manifest.identity is damaged "
            f"({first_problem(error)}); choose another output=, or remove that file"
        ) from None
    _raise_conflict(config, conflict(found, identity, started=done))
    return done == len(identity["tasks"])


def recover(config: Config, identity: Mapping[str, Any]) -> Recovered | None:
    """The point to continue from, or None to start from the beginning.

    Raises:
        ConfigError: the snapshots belong to another run, or the snapshots of this run are missing.
        DataError: a file of learned tensors is not the one that the run wrote.
        StorageError: a file cannot be read.
    """
    snapshot = read_latest(snapshot_folder(config))
    if snapshot is None:
        _raise_if_learned(config)
        return None
    _check_state(config, snapshot)
    started = snapshot.task + (snapshot.step > 0)
    _raise_conflict(config, conflict(snapshot.state["identity"], identity, started=started))
    learned = [
        {} if sha256 is None else read_learned(config.output, task, sha256)
        for task, sha256 in enumerate(snapshot.state["learned_sha256"])
    ]
    return Recovered(snapshot, learned)


def _check_state(config: Config, snapshot: Snapshot) -> None:
    """Refuse a snapshot whose files are undamaged and that no run can have written."""
    try:
        state = _State.model_validate(snapshot.state)
    except ValidationError as error:
        raise _refusal(config, snapshot, f"its state is damaged ({first_problem(error)})") from None
    n_tasks, means = snapshot.task, snapshot.group("class_means")
    sizes = [task.n_classes for task in state.identity.tasks]
    lengths = {len(state.learned_sha256), len(state.results.stages), len(means)}
    if lengths != {n_tasks} or len(sizes) < n_tasks:
        raise _refusal(config, snapshot, f"it does not record {n_tasks} learned tasks")
    for number, n_classes in enumerate(sizes[:n_tasks]):
        mean_CE = means.get(str(number), torch.empty(0))
        if mean_CE.ndim != 2 or len(mean_CE) != n_classes:
            shape = list(mean_CE.shape)
            raise _refusal(config, snapshot, f"class_means of task {number + 1} has shape {shape}")


def _refusal(config: Config, snapshot: Snapshot, problem: str) -> DataError:
    place = storage.redact(storage.join(snapshot_folder(config), snapshot.name))
    return DataError(f"{place}: {problem}; {_RESTORE}")


def _raise_if_learned(config: Config) -> None:
    """Learned tensors must not be overwritten only because their snapshots were not found."""
    results = read_results(config.output)
    if results and storage.list_files(storage.join(config.output, "tasks")):
        raise ConfigError(
            f"output: {storage.redact(config.output)} holds {results.n_learned} "
            f"learned tasks, but no snapshot is in {storage.redact(snapshot_folder(config))}; "
            "set snapshot.folder to the folder of the snapshots, or choose another output="
        )


def _raise_conflict(config: Config, problem: str | None) -> None:
    if problem:
        raise ConfigError(
            f"output: {storage.redact(config.output)} holds another run: {problem}; "
            "choose another output=, or remove that folder"
        )
