"""The lines of ``metrics.jsonl`` as points that a logger can draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_STEP = ("learning_rate", "images_per_second", "data_wait")
_STAGE = (
    "anchor_cosine", "frozen_anchor_cosine", "cosine_to_frozen", "modality_gap", "feature_drift",
    "train_seconds", "test_seconds",
)  # fmt: skip


class Point(NamedTuple):
    """Figures at one moment of a run."""

    line: int  # of metrics.jsonl, from 1; a resumed run gives the same point at the same line
    step: int  # optimizer steps of the run so far
    values: dict[str, float]


def point_of(line: int, content: Mapping[str, Any], task_steps: Callable[[int], int]) -> Point:
    """The point of a line; ``task_steps`` gives the optimizer steps of a task, counted from 0.

    Losses are ``loss/total`` and ``loss/TERM``; accuracies, fractions, are ``accuracy/all_seen``
    and ``accuracy/task_001``, those on held-out sets ``retention/set_001``; both kinds of lines
    have their diagnostics beside them. Tasks and sets count from 1.
    """
    task = content["task"]
    before = sum(map(task_steps, range(task)))
    if content["kind"] == "step":
        values = {"task": task + 1, "epoch": content["epoch"] + 1, "loss/total": content["loss"]}
        values |= {f"loss/{name}": value for name, value in content["terms"].items()}
        values |= {name: content[name] for name in _STEP}
        return Point(line, before + content["step"] + 1, values)
    values = {"accuracy/all_seen": content["micro"]}
    values |= {f"accuracy/task_{k:03d}": value for k, value in enumerate(content["accuracy"], 1)}
    values |= {
        f"retention/set_{k:03d}": value
        for k, value in enumerate(content.get("retention", ()), 1)
        if value is not None
    }
    diagnostics = {f"diagnostics/{name}": content.get(name) for name in _STAGE}
    values |= {name: value for name, value in diagnostics.items() if value is not None}
    return Point(line, before + task_steps(task), values)
