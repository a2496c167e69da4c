"""Where an interrupted run goes on: its last whole snapshot and what its tasks have learned."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load as from_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.output.identity import conflict
from pipeline.output.results import read_results
from pipeline.output.snapshots import Snapshot, read_latest

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Recovered:
    """A snapshot with the learned tensors of each task before it, in order."""

    snapshot: Snapshot
    learned: list[dict[str, Tensor]]


def snapshot_folder(config: Config) -> str:
    """Where the snapshots of a run lie."""
    return config.snapshot.folder or storage.join(config.output, "snapshots")


def learned_url(config: Config, task: int) -> str:
    """Where the tensors that a task has learned lie once it is finished."""
    return storage.join(config.output, "tasks", f"task-{task:03d}.safetensors")


def is_finished(config: Config, identity: Mapping[str, Any]) -> bool:
    """Whether the output already holds this very run, with as many tasks.

    Raises:
        ConfigError: it holds another run.
    """
    results = read_results(config.output)
    if results is None:
        return False
    done = results.n_learned
    # The backbone is not loaded only to say that nothing is to be done.
    found = {**results.manifest.identity, "backbone_sha256": identity["backbone_sha256"]}
    _refuse(config, conflict(found, identity, begun=done))
    return done == len(identity["tasks"])


def recover(config: Config, identity: Mapping[str, Any]) -> Recovered | None:
    """The point to go on from, or None to begin at the beginning.

    Raises:
        ConfigError: the snapshots are of another run, or those of this one are not there.
        DataError: a learned tensor is not the one that the snapshot was taken with.
        StorageError: something cannot be read.
    """
    snapshot = read_latest(snapshot_folder(config))
    if snapshot is None:
        _check_untrained(config)
        return None
    begun = snapshot.task + (snapshot.step > 0)
    _refuse(config, conflict(snapshot.state["identity"], identity, begun=begun))
    learned = [
        _read_learned(learned_url(config, task), sha256)
        for task, sha256 in enumerate(snapshot.state["learned_sha256"])
    ]
    return Recovered(snapshot, learned)


def _check_untrained(config: Config) -> None:
    """What was learned is never overwritten because its snapshots were not found."""
    results = read_results(config.output)
    if results and any(results.trainable_parameters):
        raise ConfigError(
            f"output: {storage.redact(config.output)} holds {results.n_learned} "
            f"learned tasks, and no snapshot lies in {storage.redact(snapshot_folder(config))}; "
            "set snapshot.folder to where they are, or choose another output="
        )


def _refuse(config: Config, problem: str | None) -> None:
    if problem:
        raise ConfigError(
            f"output: {storage.redact(config.output)} holds another run: {problem}; "
            "choose another output=, or remove that folder"
        )


def _read_learned(url: str, sha256: str | None) -> dict[str, Tensor]:
    """The tensors at ``url``; none were written if there is no hash."""
    if sha256 is None:
        return {}
    data = storage.read_bytes(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{storage.redact(url)}: is not the file that the snapshot was taken with; "
            "restore it from a copy, or remove the whole output to begin again"
        )
    return from_safetensors(data)
