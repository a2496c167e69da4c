"""Where an interrupted run continues: its last complete snapshot and its learned tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.output.identity import conflict
from pipeline.output.learned import read_learned
from pipeline.output.results import read_results
from pipeline.output.snapshots import Snapshot, read_latest

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Recovered:
    """A snapshot with the learned tensors of each task before it, in order."""

    snapshot: Snapshot
    learned: list[dict[str, Tensor]]


def snapshot_folder(config: Config) -> str:
    """The folder or URL of the snapshots of a run."""
    return config.snapshot.folder or storage.join(config.output, "snapshots")


def is_finished(config: Config, identity: Mapping[str, Any]) -> bool:
    """Whether the output holds this run with all its tasks learned.

    Raises:
        ConfigError: it holds another run.
    """
    results = read_results(config.output)
    if results is None:
        return False
    done = results.n_learned
    # The weights are not compared: loading the backbone would only slow down a finished run.
    found = {**results.manifest.identity, "backbone_sha256": identity["backbone_sha256"]}
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
    started = snapshot.task + (snapshot.step > 0)
    _raise_conflict(config, conflict(snapshot.state["identity"], identity, started=started))
    learned = [
        {} if sha256 is None else read_learned(config.output, task, sha256)
        for task, sha256 in enumerate(snapshot.state["learned_sha256"])
    ]
    return Recovered(snapshot, learned)


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
