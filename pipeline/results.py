"""``results.json``: what a run leaves behind for people and programs to trust."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline import storage
from pipeline.config import Config, EvaluationConfig, TuningConfig, config_hash, dump_config
from pipeline.errors import DataError
from pipeline.metrics import micro_accuracy, summarise
from pipeline.tasks import Task

SCHEMA = 2
NAME = "results.json"
CONFIG_NAME = "config.yaml"
_PACKAGES = ("torch", "torchvision", "deepspeed", "webdataset", "open_clip_torch", "fsspec", "s3fs")


@dataclass(frozen=True)
class Stage:
    """What was measured after one task: per seen task, in order."""

    correct: tuple[int, ...]
    images: tuple[int, ...]
    anchor_cosine: float  # mean cosine between different anchors
    modality_gap: float  # distance of mean image and mean anchor
    feature_drift: float | None  # of old classes' mean features since learned; None at first
    trainable_parameters: int  # of this task
    images_per_second: float | None  # in training, all ranks; None if nothing was trained
    train_seconds: float
    test_seconds: float


@dataclass
class Results:
    """All stages so far and where they came from."""

    method: str
    tasks: Sequence[Task]
    manifest: dict[str, Any]
    evaluation: EvaluationConfig = EvaluationConfig()
    tuning: TuningConfig | None = None
    stages: list[Stage] = field(default_factory=list)
    skipped_samples: list[dict[str, Any]] = field(default_factory=list)
    skipped_steps: list[dict[str, Any]] = field(default_factory=list)  # task, step, loss

    def state(self) -> dict[str, Any]:
        """What was measured so far, for :meth:`restore`; of plain JSON types."""
        return {
            "tuning": self.tuning and self.tuning.model_dump(mode="json"),
            "stages": [asdict(stage) for stage in self.stages],
            "skipped_samples": list(self.skipped_samples),
            "skipped_steps": list(self.skipped_steps),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave; where the settings came from is not forgotten."""
        if self.tuning is None and state["tuning"]:
            self.tuning = TuningConfig.model_validate(state["tuning"])
        self.stages = [
            Stage(**{k: tuple(v) if isinstance(v, list) else v for k, v in stage.items()})
            for stage in state["stages"]
        ]
        self.skipped_samples = list(state["skipped_samples"])
        self.skipped_steps = list(state["skipped_steps"])

    def accuracy_matrix(self) -> list[list[float | None]]:
        """``a[t][k]``: accuracy on task k after task t, None above the diagonal."""
        rows = (self.accuracy_after(stage)[1] for stage in range(len(self.stages)))
        return [[*row, *[None] * (len(self.tasks) - len(row))] for row in rows]

    def accuracy_after(self, stage: int) -> tuple[float, list[float]]:
        """After one stage: the accuracy over all images of all tasks, and of each task.

        No task is left out of it, whatever the summary figures leave out.
        """
        correct, images = self.stages[stage].correct, self.stages[stage].images
        by_task = [right / total for right, total in zip(correct, images, strict=True)]
        return micro_accuracy(correct, images), by_task

    def as_dict(self) -> dict[str, Any]:
        """The content of ``results.json``; accuracies are fractions.

        The accuracy matrix and the counts behind it are of every task; the summary figures leave
        out the first ``evaluation.exclude_tasks``, as :func:`pipeline.metrics.summarise` says.
        """
        correct = [stage.correct for stage in self.stages]
        images = [stage.images for stage in self.stages]
        speeds = [s.images_per_second for s in self.stages if s.images_per_second is not None]
        finished = len(self.stages) == len(self.tasks)
        return {
            "schema": SCHEMA,
            "status": "finished" if finished else "running",
            "method": self.method,
            "evaluation": self.evaluation.model_dump(mode="json"),
            "tuning": self.tuning and self.tuning.model_dump(mode="json"),
            "tasks": [list(task.names) for task in self.tasks],
            "accuracy_matrix": self.accuracy_matrix(),
            "counts": {"correct": list(map(list, correct)), "images": list(map(list, images))},
            **summarise(correct, images, exclude_tasks=self.evaluation.exclude_tasks),
            "diagnostics": [
                {
                    "task": index,
                    "anchor_cosine": stage.anchor_cosine,
                    "modality_gap": stage.modality_gap,
                    "feature_drift": stage.feature_drift,
                    "train_seconds": round(stage.train_seconds, 3),
                    "test_seconds": round(stage.test_seconds, 3),
                }
                for index, stage in enumerate(self.stages)
            ],
            "trainable_parameters": [stage.trainable_parameters for stage in self.stages],
            "images_per_second": fmean(speeds) if speeds else None,
            "skipped_samples": self.skipped_samples,
            "skipped_steps": self.skipped_steps,
            "manifest": self.manifest,
        }

    def write(self, output: str) -> None:
        """Replace ``results.json`` in the folder ``output`` as a whole."""
        _write(output, self.as_dict())


def read_results(output: str) -> dict[str, Any] | None:
    """The content of ``results.json`` in the folder ``output``, or None if there is none.

    Raises:
        DataError: there is one, but no run of this program wrote it.
    """
    url = storage.join(output, NAME)
    if not storage.exists(url):
        return None
    try:
        content = json.loads(storage.read_text(url))
        known = content["schema"] == SCHEMA and content["manifest"]["identity"]
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise DataError(
            f"{storage.redact(url)}: does not hold results of schema {SCHEMA}; "
            "choose another output=, or remove that file"
        )
    return content


def restate(config: Config) -> None:
    """Let finished results say what ``config`` wants said of them, which no measurement depends on.

    That is which first tasks their summary leaves out, and where the settings came from; the latter
    can be replaced and not be withdrawn.
    """
    content = read_results(config.output)
    tuning = config.tuning and config.tuning.model_dump(mode="json")
    said = {
        "evaluation": config.evaluation.model_dump(mode="json"),
        "tuning": tuning or content["tuning"],
    }
    if all(content[key] == value for key, value in said.items()):
        return
    recorded = Config.model_validate({**content["manifest"]["config"], **said})
    content["manifest"]["config"] = recorded.model_dump(mode="json")
    content["manifest"]["config_sha256"] = config_hash(recorded)
    exclude_tasks = config.evaluation.exclude_tasks
    content |= {**said, **summarise(**content["counts"], exclude_tasks=exclude_tasks)}
    url = storage.join(config.output, CONFIG_NAME)
    storage.write_atomically(url, dump_config(recorded).encode())
    _write(config.output, content)


def build_manifest(
    config: Config,
    *,
    tasks: Sequence[Task],
    index_sha256: str,
    identity: Mapping[str, Any],
    ranks: int,
) -> dict[str, Any]:
    """Everything that would be needed to make the same results again."""
    return {
        "config": config.model_dump(mode="json"),
        "config_sha256": config_hash(config),
        "class_order": [label for task in tasks for label in task.labels],
        "index_sha256": index_sha256,
        "backbone_sha256": identity["backbone_sha256"],
        "identity": identity,
        "packages": {name: version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
        "world_size": ranks,
    }


def _write(output: str, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2)
    storage.write_atomically(storage.join(output, NAME), f"{text}\n".encode())


def _git_commit() -> str | None:
    """The commit of this package's checkout, with ``+`` if files were changed; None outside one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
