"""The results of a run in progress: one stage per learned task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from pipeline.config import EvaluationConfig, TuningConfig
from pipeline.output.anchor_cosines import AnchorCosines
from pipeline.output.metrics import micro_accuracy, summarise
from pipeline.output.results import SCHEMA, RunResults
from pipeline.output.transfer_metrics import transfer_figures
from pipeline.tasks import Task, known_names

_MAX_CLASS_FIGURES = 100_000  # accuracies of classes, all stages together; about 1.5 MB


@dataclass(frozen=True)
class Stage:
    """Measurements after one task; the counts are per seen task, in order."""

    correct: tuple[int, ...]
    images: tuple[int, ...]
    anchor_cosine: float | None  # mean cosine between different anchors; None without anchors
    modality_gap: float | None  # distance of mean image and mean anchor; None without anchors
    feature_drift: float | None  # of old classes' mean features since learned; None at first
    trainable_parameters: int  # of this task
    images_per_second: float | None  # of all ranks in train_seconds; None: nothing is trained
    train_seconds: float  # from the start of the task to its test
    test_seconds: float
    # Of each class seen so far; empty where they are not kept, or by an older version.
    class_correct: tuple[int, ...] = ()
    class_images: tuple[int, ...] = ()
    # Of the frozen CLIP; None without anchors, or by an older version.
    frozen_anchor_cosine: float | None = None  # mean cosine between its anchors of other classes
    cosine_to_frozen: float | None = None  # of each anchor with its own anchor there, the mean

    def diagnostics(self) -> dict[str, float | None]:
        """The measurements beside the accuracies, as they are written."""
        return {
            "anchor_cosine": self.anchor_cosine,
            "modality_gap": self.modality_gap,
            "feature_drift": self.feature_drift,
            "train_seconds": round(self.train_seconds, 3),
            "test_seconds": round(self.test_seconds, 3),
            "frozen_anchor_cosine": self.frozen_anchor_cosine,
            "cosine_to_frozen": self.cosine_to_frozen,
        }

    def without_classes(self) -> Stage:
        """The same measurements without those of the classes."""
        return replace(self, class_correct=(), class_images=())

    def class_accuracies(self) -> list[float | None]:
        """Accuracy of each class, to 4 decimals; None for a class without test images."""
        counts = zip(self.class_correct, self.class_images, strict=True)
        return [round(right / total, 4) if total else None for right, total in counts]


@dataclass
class ResultsBuilder:
    """The stages of a run so far, with its method, tasks and manifest."""

    method: str
    tasks: Sequence[Task]
    manifest: dict[str, Any]
    evaluation: EvaluationConfig = EvaluationConfig()
    tuning: TuningConfig | None = None
    stages: list[Stage] = field(default_factory=list)
    learned_sha256: list[str | None] = field(default_factory=list)  # per learned task
    predictions_sha256: str | None = None  # of the last stage
    anchor_cosines: AnchorCosines | None = None  # at the last stage
    skipped_samples: list[dict[str, Any]] = field(default_factory=list)
    skipped_steps: list[dict[str, Any]] = field(default_factory=list)  # task, step, loss, samples
    retention: list[dict[str, Any]] = field(default_factory=list)  # an entry per held-out set
    # By the number of learned tasks: accuracies of the tasks that follow.
    future: dict[int, list[float]] = field(default_factory=dict)

    def add(self, stage: Stage) -> None:
        """Add the stage of the next task.

        A run with more than 100,000 accuracies of classes keeps those of the last stage alone.
        """
        if sum(task.last for task in self.tasks) > _MAX_CLASS_FIGURES:
            self.stages = [earlier.without_classes() for earlier in self.stages]
        self.stages.append(stage)

    def state(self) -> dict[str, Any]:
        """The measurements so far, for :meth:`restore`; of plain JSON types."""
        return {
            "tuning": self.tuning and self.tuning.model_dump(mode="json"),
            "stages": [asdict(stage) for stage in self.stages],
            "skipped_samples": list(self.skipped_samples),
            "skipped_steps": list(self.skipped_steps),
            "retention": self.retention,
            "future": [[n_learned, row] for n_learned, row in self.future.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a value of :meth:`state`; ``tuning`` is kept if it is set."""
        if self.tuning is None and state["tuning"]:
            self.tuning = TuningConfig.model_validate(state["tuning"])
        self.stages = [_stage(entry) for entry in state["stages"]]
        self.skipped_samples = list(state["skipped_samples"])
        self.skipped_steps = list(state["skipped_steps"])
        self.retention = list(state.get("retention", ()))
        self.future = dict(state.get("future", ()))

    def add_retention(
        self,
        *,
        index: str,
        sha256: str,
        classes: int,
        images: int,
        n_learned: int,
        accuracy: float,
        templates: Sequence[str] = (),
        skipped: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Add the accuracy on a held-out set after ``n_learned`` tasks.

        Stages that were not tested have None: the run was started without this set, or with other
        ``templates`` of the set. ``skipped`` are the samples of the set that could not be used.
        """
        named = {"index": index, "sha256": sha256, "classes": classes, "images": images}
        own = {"templates": list(templates)} if templates else {}
        wanted = sha256, [*templates]
        sets = [(each["sha256"], each.get("templates", [])) for each in self.retention]
        entry = self.retention[sets.index(wanted)] if wanted in sets else None
        if entry is None:
            entry = {**named, **own, "accuracy": []}
            self.retention.append(entry)
        known = entry.get("skipped_samples", [])
        entry["skipped_samples"] = [*known, *(dict(each) for each in skipped if each not in known)]
        untested = [None] * (n_learned - len(entry["accuracy"]))
        entry["accuracy"] = [*entry["accuracy"][:n_learned], *untested, accuracy]

    def retention_after(self, n_learned: int) -> list[float | None]:
        """The accuracy on each held-out set after ``n_learned`` tasks."""
        columns = (entry["accuracy"] for entry in self.retention)
        return [column[n_learned] if n_learned < len(column) else None for column in columns]

    def add_future(self, n_learned: int, accuracies: Sequence[float]) -> None:
        """Add the accuracies of the tasks that follow the first ``n_learned``."""
        self.future[n_learned] = list(accuracies)

    def full_matrix(self) -> list[list[float | None]]:
        """Accuracy on each task before the first task and after each; None: not tested.

        No row if future tasks are not tested.
        """
        if not self.future:
            return []
        n_tasks, rows = len(self.tasks), [[], *self.accuracy_matrix()]
        return [
            [*row[:n_learned], *self.future.get(n_learned, ()), *[None] * n_tasks][:n_tasks]
            for n_learned, row in enumerate(rows)
        ]

    def accuracy_matrix(self) -> list[list[float | None]]:
        """``a[t][k]``: accuracy on task k after task t, None above the diagonal."""
        rows = (self.accuracy_after(stage)[1] for stage in range(len(self.stages)))
        return [[*row, *[None] * (len(self.tasks) - len(row))] for row in rows]

    def accuracy_after(self, stage: int) -> tuple[float, list[float]]:
        """After one stage: the accuracy over all images of all tasks, and of each task.

        Tasks that the summary excludes are included here.
        """
        correct, images = self.stages[stage].correct, self.stages[stage].images
        by_task = [right / total for right, total in zip(correct, images, strict=True)]
        return micro_accuracy(correct, images), by_task

    def build(self) -> RunResults:
        """The results so far."""
        correct = [list(stage.correct) for stage in self.stages]
        images = [list(stage.images) for stage in self.stages]
        speeds = [s.images_per_second for s in self.stages if s.images_per_second is not None]
        finished = len(self.stages) == len(self.tasks)
        known, full_matrix = known_names(self.tasks), self.full_matrix()
        groups = [task.group for task in self.tasks]
        return RunResults.model_validate(
            {
                "schema": SCHEMA,
                "status": "finished" if finished else "running",
                "method": self.method,
                "evaluation": self.evaluation,
                "tuning": self.tuning,
                "tasks": [list(task.names) for task in self.tasks],
                "known_classes": known if any(known) else [],
                "groups": groups if any(groups) else [],
                "accuracy_matrix": self.accuracy_matrix(),
                "counts": {"correct": correct, "images": images},
                "class_accuracies": [stage.class_accuracies() for stage in self.stages],
                "class_images": self.stages[-1].class_images if self.stages else (),
                "predictions_sha256": self.predictions_sha256,
                **summarise(correct, images, exclude_tasks=self.evaluation.exclude_tasks),
                "diagnostics": [
                    {"task": index, **stage.diagnostics()}
                    for index, stage in enumerate(self.stages)
                ],
                "anchor_cosines": self.anchor_cosines,
                "trainable_parameters": [stage.trainable_parameters for stage in self.stages],
                "learned_sha256": self.learned_sha256,
                "images_per_second": fmean(speeds) if speeds else None,
                "skipped_samples": self.skipped_samples,
                "skipped_steps": self.skipped_steps,
                "retention": self.retention,
                "full_matrix": full_matrix,
                "transfer": transfer_figures(full_matrix),
                "manifest": self.manifest,
            }
        )


def _stage(entry: Mapping[str, Any]) -> Stage:
    """A stage from its fields as JSON, in which tuples are lists."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    return Stage(**fields)
