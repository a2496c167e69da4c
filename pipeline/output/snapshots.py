"""Snapshots: the complete state of a run before an optimizer step, a few MB each.

``<folder>/task-003-step-000200/tensors.safetensors``  learned tensors and optimizer state
``<folder>/task-003-step-000200/state.json``           everything else, with the hashes of both

``state.json`` is written last: a snapshot without it, or with another hash, is never read. An older
snapshot is deleted only after the new one is complete. The learned tensors of earlier tasks are not
written again: the state names their files by hash. A snapshot fits any number of ranks.
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
_FILE = re.compile(r"/(task-\d+-step-\d+)/([^/]+)$")  # also the partial files of a killed writer


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a run before optimizer step ``step`` of task ``task``, both counted from 0."""

    task: int
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # of plain JSON types

    @classmethod
    def take(
        cls, task: int, step: int, groups: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
    ) -> Snapshot:
        """A copy of the tensors of each group and of ``state``, as they are now.

        Raises:
            DivergenceError: a tensor is not finite.
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

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors of one group of :meth:`take`."""
        prefix = f"{name}/"
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    @property
    def name(self) -> str:
        """The folder of this snapshot."""
        return f"task-{self.task:03d}-step-{self.step:06d}"


class SnapshotWriter:
    """Writes snapshots in a background thread, one at a time, and keeps the last two.

    ``before_write`` is called before each snapshot. If it raises, the snapshot is not written.
    """

    def __init__(self, folder: str, before_write: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._before_write = before_write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._pending: Future[None] | None = None

    def write(self, snapshot: Snapshot, *, files_first: Mapping[str, bytes]) -> None:
        """Start to write a snapshot, once the previous one is written.

        ``files_first``, content by URL, are complete before the snapshot.

        Raises:
            PipelineError: the previous snapshot was not written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot, dict(files_first))

    def wait(self) -> None:
        """Return once the last snapshot is written.

        Raises:
            PipelineError: it was not written.
        """
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """End the thread after its last snapshot; raises no error of that snapshot."""
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot, files_first: Mapping[str, bytes]) -> None:
        self._before_write()
        for url, data in files_first.items():
            storage.write_atomically(url, data)
        _write(self._folder, snapshot)


def read_latest(folder: str) -> Snapshot | None:
    """The newest valid snapshot in ``folder``, or None if no snapshot was written.

    Raises:
        StorageError: the folder cannot be read.
        DataError: every snapshot is damaged.
    """
    names = _snapshot_names(folder, complete=True)
    for name in reversed(names):
        try:
            return _read(folder, name)
        except _Damaged as damage:
            place = storage.redact(storage.join(folder, name))
            log.warning("%s: is damaged: %s; reading the previous snapshot", place, damage)
    if names:
        raise DataError(
            f"{storage.redact(folder)}: every snapshot is damaged; restore the folder from a copy, "
            "or remove the output to start again"
        )
    return None


def check_snapshots(folder: str) -> dict[str, str | None]:
    """Each snapshot in ``folder``, oldest first, with the reason why it cannot be used, or None.

    Raises:
        StorageError: the folder cannot be read.
        DataError: a snapshot has another schema.
    """
    return {name: _damage(folder, name) for name in _snapshot_names(folder)}


def _write(folder: str, snapshot: Snapshot) -> None:
    """Write a snapshot, then delete all but the newest older one."""
    before = _snapshot_names(folder)
    # A run that stops again before its first step takes the snapshot from which it resumed. A valid
    # one stays untouched, as it may be the only one. A damaged one loses its marker first, so that
    # it never looks valid while it is replaced.
    if snapshot.name not in before or _damage(folder, snapshot.name):
        place = storage.join(folder, snapshot.name)
        storage.remove(storage.join(place, _MARKER))
        tensors = to_safetensors(snapshot.tensors)
        storage.write_atomically(storage.join(place, _TENSORS), tensors)
        storage.write_atomically(storage.join(place, _MARKER), _format(snapshot, tensors))
    complete = _snapshot_names(folder, complete=True)
    older = [name for name in complete if _position(name) < _position(snapshot.name)]
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
    """Delete a snapshot, its marker first: an interrupted deletion leaves no valid snapshot."""
    storage.remove(storage.join(place, _MARKER))
    storage.remove_folder(place)


class _Damaged(Exception):
    """The reason why a snapshot cannot be used."""


def _damage(folder: str, name: str) -> str | None:
    """The reason why the snapshot called ``name`` cannot be used, or None."""
    try:
        _read(folder, name)
    except _Damaged as damage:
        return str(damage)
    return None


def _read(folder: str, name: str) -> Snapshot:
    """The snapshot called ``name``.

    Raises:
        _Damaged: it is incomplete, or a file has another content than was written.
        DataError: it has another schema.
    """
    place = storage.join(folder, name)
    marker, tensors_url = storage.join(place, _MARKER), storage.join(place, _TENSORS)
    if not storage.exists(marker) or not storage.exists(tensors_url):
        raise _Damaged(f"{_TENSORS} or {_MARKER} is missing")
    state = _parse_state(storage.read_bytes(marker, most=storage.MAX_TEXT_BYTES))
    if state.get("schema") != SCHEMA:
        raise DataError(
            f"{storage.redact(place)}: has schema {state.get('schema')!r}, this version reads "
            f"{SCHEMA}; finish the run with the version that started it"
        )
    task, step = state.get("task"), state.get("step")
    if (task, step) != _position(name) or not isinstance(task, int) or not isinstance(step, int):
        raise _Damaged(f"{_MARKER} is that of another snapshot")
    data = storage.read_bytes(tensors_url, most=storage.MAX_TENSOR_BYTES)
    if hashlib.sha256(data).hexdigest() != state.get("tensors_sha256"):
        raise _Damaged(f"{_TENSORS} has another content")
    return Snapshot(task, step, _parse_tensors(data), state)


def _parse_state(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
        state = content["state"]
        is_same = content["sha256"] == _digest(state)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Damaged(f"{_MARKER} holds no state ({type(error).__name__})") from error
    if not is_same or not isinstance(state, dict):
        raise _Damaged(f"{_MARKER} has another content")
    return state


def _parse_tensors(data: bytes) -> dict[str, Tensor]:
    try:
        tensors = from_safetensors(data)
        wrong = next((name for name, value in tensors.items() if not value.isfinite().all()), None)
    except Exception as error:  # of safetensors, or of torch for a type or shape
        raise _Damaged(f"{_TENSORS} holds no tensors ({type(error).__name__})") from error
    if wrong is not None:
        raise _Damaged(f"{wrong} in {_TENSORS} holds values that are not finite")
    return tensors


def _snapshot_names(folder: str, *, complete: bool = False) -> list[str]:
    """The snapshots in ``folder``, oldest first; ``complete`` excludes those without a marker."""
    found = filter(None, map(_FILE.search, storage.list_files(folder)))
    names = {file[1] for file in found if file[2] == _MARKER or not complete}
    return sorted(names, key=_position)


def _position(name: str) -> tuple[int, int]:
    """Task and step of a snapshot; snapshots sort by them."""
    _, task, _, step = name.split("-")
    return int(task), int(step)
