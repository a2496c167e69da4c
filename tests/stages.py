"""Results of runs that never ran: stages with given counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.output.manifest import build_manifest
from pipeline.output.results_builder import ResultsBuilder, Stage
from tests.tiny import build_config, tiny_tasks


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
    stages: Sequence[Stage], *, method: str = "tppt_v", n_tasks: int = 3, **fields: Any
) -> ResultsBuilder:
    """The results of a run of the tiny tasks that has come to the last of ``stages``."""
    config, tasks = build_config("local-dir:clip", "shards"), tiny_tasks()
    identity = {"backbone_sha256": "b" * 64}
    manifest = build_manifest(
        config, tasks=tasks, index_sha256="1" * 64, identity=identity, ranks=2
    )
    return ResultsBuilder(method, tasks[:n_tasks], manifest, stages=list(stages), **fields)
