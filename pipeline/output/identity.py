"""The identity of a run: a run continues only where a run of the same identity stopped.

A run may continue on other machines, with further tasks after its last one, and with other
tolerances for errors. It may not continue with another method, backbone, batch or image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Config, decisive_settings
from pipeline.data.index import ShardIndex
from pipeline.tasks import Task

# A tolerance decides whether a run ends at an error; it does not change the steps before.
_TOLERANCES = {
    "data": ("on_bad_sample", "bad_sample_budget"),
    "optim": ("on_nonfinite_loss", "nonfinite_loss_budget"),
}


def identify(
    config: Config, index: ShardIndex, tasks: Sequence[Task], backbone_sha256: str
) -> dict[str, Any]:
    """Settings, backbone and data of each task, in plain JSON types."""
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


def conflict(found: Mapping[str, Any], wanted: Mapping[str, Any], *, started: int) -> str | None:
    """The reason why the run ``found`` cannot continue as ``wanted``, or None if it can.

    The run has started the first ``started`` tasks, which must be equal; later tasks may differ.
    """
    before, now = _flat(found["settings"]), _flat(wanted["settings"])
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"it was started with {key}={before.get(key)!r} instead of {now.get(key)!r}"
    if found["backbone_sha256"] != wanted["backbone_sha256"]:
        return "its backbone has other weights"
    if started > len(wanted["tasks"]):
        return f"it has started {started} tasks, and these settings give {len(wanted['tasks'])}"
    pairs = zip(found["tasks"][:started], wanted["tasks"], strict=False)
    for number, (old, new) in enumerate(pairs, start=1):
        if old["names"] != new["names"]:
            return f"the classes or their order differ in task {number}"
        if old["sha256"] != new["sha256"]:
            return f"the images of task {number} differ from those of the run"
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
