"""What makes two runs the same, so that one may go on where the other stopped.

A run may be continued on other machines, with more tasks behind those it has, with more patience
for what would have ended it, and in no other way: not with another method, backbone, batch or
picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Config, decisive_settings
from pipeline.data.index import ShardIndex
from pipeline.tasks import Task

# What a run bears decides whether it goes on, not where it has come to.
_TOLERANCES = {
    "data": ("on_bad_sample", "bad_sample_budget"),
    "optim": ("on_nonfinite_loss", "nonfinite_loss_budget"),
}


def identify(
    config: Config, index: ShardIndex, tasks: Sequence[Task], backbone_sha256: str
) -> dict[str, Any]:
    """The identity of a run, of plain JSON types: its settings, its backbone, each task's data."""
    settings = decisive_settings(config)
    for section, names in _TOLERANCES.items():
        settings[section] = {k: v for k, v in settings[section].items() if k not in names}
    return {
        "settings": settings,
        "backbone_sha256": backbone_sha256,
        "tasks": [
            {"names": list(task.names), "sha256": index.digest(task.labels)} for task in tasks
        ],
    }


def conflict(found: Mapping[str, Any], wanted: Mapping[str, Any], *, begun: int) -> str | None:
    """Why the run ``found`` cannot be continued as ``wanted``, or None if it can.

    The first ``begun`` tasks were at least begun and must be the same; later ones may differ.
    """
    before, now = _flat(found["settings"]), _flat(wanted["settings"])
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"it was run with {key}={before.get(key)!r}, and this is {now.get(key)!r}"
    if found["backbone_sha256"] != wanted["backbone_sha256"]:
        return "its backbone had other weights"
    if begun > len(wanted["tasks"]):
        return f"it has begun {begun} tasks, and these settings make {len(wanted['tasks'])}"
    pairs = zip(found["tasks"][:begun], wanted["tasks"], strict=False)
    for number, (old, new) in enumerate(pairs, start=1):
        if old["names"] != new["names"]:
            return f"the classes or their order differ in task {number}"
        if old["sha256"] != new["sha256"]:
            return f"the pictures of task {number} are not those it was run with"
    return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
