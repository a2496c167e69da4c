"""Snapshots: all that a run needs to go on exactly where it was, a few MB each.

``<folder>/task-003-step-000200/tensors.safetensors``  what the task has learned, with its moments
``<folder>/task-003-step-000200/state.json``           everything else, with the hashes of both

``state.json`` is written last: a snapshot without it, or that does not match its hashes, is never
chosen. The snapshot before is deleted only once the next is whole. What earlier tasks have learned
is not written again: their files are named by hash. Nothing here is tied to a number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.errors import DataError, DivergenceError

log = logging.getLogger(__name__)

SCHEMA = 1
_TENSORS, _MARKER = "tensors.safetensors", "state.json"
_FILE = re.compile(r"/(task-\d+-step-\d+)/([^/]+)$")  # also what a killed writer left behind


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where a run stood: before optimizer step ``step`` of task ``task``, both counted from 0."""

    task: int
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # of plain JSON types

    @classmethod
    def take(
        cls, task: int, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
    ) -> Snapshot:
        """A snapshot of everything as it is now; no later change reaches it.

        Raises:
            DivergenceError: one of them is not finite.
        """
        tensors = {
            f"{group}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for group, members in groups.items()
            for name, tensor in members.items()
        }
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise DivergenceError(
                    f"task {task + 1}, step {step}: {name} holds values that are not finite; no "
                    "snapshot was taken; lower optim.learning_rate"
                )
        return cls(task, step, tensors, json.loads(json.dumps(state)))

    def group(self, group: str) -> dict[str, Tensor]:
        """The tensors of one group, as :meth:`take` was given them."""
        prefix = f"{group}/"
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    @property
    def name(self) -> str:
        """The folder of this snapshot."""
        return f"task-{self.task:03d}-step-{self.step:06d}"


class SnapshotWriter:
    """Writes snapshots in a background thread, one at a time, and keeps the last two.

    Before each of them ``before_write`` may raise why it must not be written.
    """

    def __init__(self, folder: str, before_write: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._before_write = before_write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._running: Future[None] | None = None

    def write(self, snapshot: Snapshot, *, beside: Mapping[str, bytes]) -> None:
        """Begin to write; waits for the snapshot before.

        The files ``beside`` (content by URL) are whole before the snapshot is.

        Raises:
            PipelineError: the snapshot before could not, or must not, be written.
        """
        self.wait()
        self._running = self._thread.submit(self._write, snapshot, dict(beside))

    def wait(self) -> None:
        """Return once everything is written.

        Raises:
            PipelineError: it could not, or must not, be.
        """
        running, self._running = self._running, None
        if running:
            running.result()

    def close(self) -> None:
        """End the thread once it has written what it was given, however that went."""
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot, beside: Mapping[str, bytes]) -> None:
        self._before_write()
        _write(self._folder, snapshot, beside)


def read_latest(folder: str) -> Snapshot | None:
    """The newest whole snapshot in ``folder``, or None if there is none.

    Raises:
        StorageError: the folder cannot be read.
        DataError: there are snapshots, and none of them is whole.
    """
    names = _names(folder, marked=True)
    for name in reversed(names):
        snapshot = _read(folder, name)
        if snapshot:
            return snapshot
        place = storage.redact(storage.join(folder, name))
        log.warning("%s: is damaged; trying the one before", place)
    if names:
        raise DataError(
            f"{storage.redact(folder)}: every snapshot is damaged; restore the folder from a copy, "
            "or remove the whole output to begin again"
        )
    return None


def _write(folder: str, snapshot: Snapshot, beside: Mapping[str, bytes]) -> None:
    for url, data in beside.items():
        storage.write_atomically(url, data)
    before = _names(folder)
    # A run that stops before its first step stands where it began. That snapshot may be the only
    # one, so it is left alone; one that is damaged must not look whole while it is replaced.
    if snapshot.name not in before or not _read(folder, snapshot.name):
        place = storage.join(folder, snapshot.name)
        storage.remove(storage.join(place, _MARKER))
        tensors = to_safetensors(snapshot.tensors)
        storage.write_atomically(storage.join(place, _TENSORS), tensors)
        storage.write_atomically(storage.join(place, _MARKER), _format(snapshot, tensors))
    older = [name for name in _names(folder, marked=True) if _age(name) < _age(snapshot.name)]
    for name in before:
        if name not in (snapshot.name, *older[-1:]):
            _delete(storage.join(folder, name))


def _format(snapshot: Snapshot, tensors: bytes) -> bytes:
    """The content of ``state.json``."""
    state = {
        "schema": SCHEMA,
        "task": snapshot.task,
        "step": snapshot.step,
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        **snapshot.state,
    }
    return json.dumps({"sha256": _digest(state), "state": state}).encode()


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _delete(place: str) -> None:
    """Marker first: what is left of a half-deleted snapshot is not a snapshot."""
    storage.remove(storage.join(place, _MARKER))
    storage.remove_folder(place)


def _read(folder: str, name: str) -> Snapshot | None:
    """The snapshot called ``name`` if it is whole."""
    place = storage.join(folder, name)
    marker, tensors_url = storage.join(place, _MARKER), storage.join(place, _TENSORS)
    if not storage.exists(marker) or not storage.exists(tensors_url):
        return None
    try:
        content = json.loads(storage.read_bytes(marker))
        state = content["state"]
        if content["sha256"] != _digest(state):
            return None
    except (ValueError, KeyError, TypeError):
        return None
    if state["schema"] != SCHEMA:
        raise DataError(
            f"{storage.redact(place)}: has schema {state['schema']}, this version reads "
            f"{SCHEMA}; finish the run with the version that began it"
        )
    tensors = storage.read_bytes(tensors_url)
    if hashlib.sha256(tensors).hexdigest() != state["tensors_sha256"]:
        return None
    return Snapshot(state["task"], state["step"], from_safetensors(tensors), state)


def _names(folder: str, *, marked: bool = False) -> list[str]:
    """The snapshots in ``folder``, oldest first; only those with their marker if ``marked``."""
    found = filter(None, map(_FILE.search, storage.list_files(folder)))
    return sorted({file[1] for file in found if file[2] == _MARKER or not marked}, key=_age)


def _age(name: str) -> tuple[int, int]:
    """Task and step of a snapshot, by which snapshots sort."""
    _, task, _, step = name.split("-")
    return int(task), int(step)
