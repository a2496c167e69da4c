"""Snapshots: complete, or torn by a writer that was killed."""

from __future__ import annotations

import json
import os
from typing import Any

from pipeline import storage
from pipeline.inspection.findings import Findings, Part
from pipeline.output.snapshots import check_snapshots


def snapshot_parts(folder: str) -> list[Part]:
    """Each snapshot in ``folder``, oldest first; a torn one has a note.

    Raises:
        StorageError: the folder cannot be read.
        DataError: a snapshot has another schema.
    """
    return [
        Part(name, _size(storage.join(folder, name)), note=damage and f"torn: {damage}")
        for name, damage in check_snapshots(folder).items()
    ]


def inspect_snapshots(folder: str) -> Findings:
    """All snapshots of a run: complete if one of them is.

    Raises:
        StorageError: the folder cannot be read.
        DataError: a snapshot has another schema.
    """
    parts = snapshot_parts(folder)
    complete = [part.name for part in parts if not part.note]
    stage = f"the newest is {complete[-1]}" if complete else "no snapshot is complete"
    return Findings("snapshot folder", storage.redact(folder), stage, bool(complete), {}, parts)


def inspect_snapshot(folder: str) -> Findings:
    """One snapshot.

    Raises:
        StorageError: a file cannot be read.
        DataError: it has another schema.
    """
    place = storage.redact(folder)
    folder = os.path.abspath(storage.local_path(folder)) if storage.is_local(folder) else folder
    above, _, name = folder.rstrip("/").rpartition("/")
    found = check_snapshots(above)
    damage = found.get(name, "its name is not task-NNN-step-NNNNNN")
    parts = [Part(name, _size(folder), fault=damage and f"cannot be used: {damage}")]
    if damage:
        return Findings("snapshot", place, "torn", True, {}, parts)
    state = json.loads(storage.read_text(storage.join(folder, "state.json")))["state"]
    is_last = state["task"] == len(state["identity"]["tasks"])
    stage = f"before step {state['step'] + 1} of task {state['task'] + 1}"
    stage = "after the last task" if is_last else stage
    return Findings("snapshot", place, stage, True, _facts(state), parts)


def _facts(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": state["identity"]["settings"]["method"]["name"],
        "tasks_learned": len(state["learned_sha256"]),
        "tasks": len(state["identity"]["tasks"]),
        "tensors_sha256": state["tensors_sha256"],
        "backbone_sha256": state["identity"]["backbone_sha256"],
    }


def _size(folder: str) -> int:
    return sum(storage.list_sizes(folder).values())
