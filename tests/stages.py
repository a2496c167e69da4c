"""Results of runs that never ran: stages with given counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pipeline.config import Config, decisive_settings
from pipeline.output.manifest import build_manifest
from pipeline.output.results_builder import ResultsBuilder, Stage
from pipeline.tasks import Task, class_order, split_classes
from tests.tiny import CLASSES, build_config


def stage(correct: Sequence[int], images: Sequence[int], speed: float | None = 100.0) -> Stage:
    """A stage with so many correct answers of so many images, per task."""
    return Stage(
        correct=tuple(correct),
        images=tuple(images),
        anchor_cosine=0.5,
        modality_gap=0.25,
        feature_drift=None if len(correct) == 1 else 0.125,
        trainable_parameters=7 * len(correct),
        images_per_second=speed,
        train_seconds=1.23456,
        test_seconds=0.5,
    )


def build_results(
    stages: Sequence[Stage],
    *,
    method: str = "tppt_v",
    n_tasks: int | None = None,
    data: str = "photographs",
    weights: str = "pretrained",
    class_names: Sequence[str] = tuple(CLASSES),
    settings: dict[str, Any] | None = None,
    **fields: Any,
) -> ResultsBuilder:
    """The results of a run of the tiny tasks that has come to the last of ``stages``.

    ``data`` and ``weights`` stand for the content of the images and of the backbone; ``settings``
    are sections of the configuration.
    """
    sections = {"method": {"name": method}, "tasks": {}, **(settings or {})}
    sections["tasks"] = {"limit": n_tasks, **sections["tasks"]}
    if "evaluation" in fields:
        sections["evaluation"] = fields["evaluation"].model_dump()
    config = build_config("local-dir:clip", "shards", **sections)
    tasks = _tasks(config, class_names)
    identity = {
        "settings": decisive_settings(config),
        "backbone_sha256": _sha256(weights),
        "tasks": [
            {"names": list(task.names), "sha256": _sha256(data, *sorted(task.labels))}
            for task in tasks
        ],
    }
    manifest = build_manifest(
        config,
        tasks=tasks,
        index_sha256=_sha256(data, *class_names),
        identity=identity,
        ranks=2,
    )
    return ResultsBuilder(method, tasks, manifest, stages=list(stages), **fields)


def _tasks(config: Config, class_names: Sequence[str]) -> tuple[Task, ...]:
    tasks = config.tasks
    return split_classes(
        class_order(tasks.class_order, len(class_names), tasks.order_seed),
        class_names,
        classes_per_task=tasks.classes_per_task,
        initial_classes=tasks.initial_classes,
        limit=tasks.limit,
    )


def _sha256(*content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()
