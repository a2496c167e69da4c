"""``results.json``: all measurements of a run, as a validated value.

``docs/results.schema.json`` is the JSON schema of :class:`RunResults`. A file of an older version
of the program is read with defaults for the fields that it lacks; unknown fields are kept.
"""

from __future__ import annotations

import hashlib
import json
from itertools import accumulate
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from pipeline import storage
from pipeline.config import EvaluationConfig, TuningConfig
from pipeline.data.membership import Membership
from pipeline.errors import DataError
from pipeline.output.anchor_cosines import AnchorCosines
from pipeline.output.protocol import protocol_of
from pipeline.text import first_problem

SCHEMA = 2
NAME = "results.json"
CONFIG_NAME = "config.yaml"
_FIRST_METRICS_VERSION = 1  # of results that have no protocol


class _Record(BaseModel):
    """A frozen part of the results."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Counts(_Record):
    """Correct predictions ``correct[t][k]`` of ``images[t][k]`` images of task k, after task t."""

    correct: list[list[int]]
    images: list[list[int]]


class StageAccuracy(_Record):
    """Accuracy over all seen tasks after each task, a fraction; None if every task is excluded."""

    micro: list[float | None]  # over all images
    macro: list[float | None]  # mean over tasks


class StageDiagnostics(_Record):
    """Measurements after one task, beside the accuracies."""

    task: int  # counted from 0
    anchor_cosine: float | None  # mean cosine between different anchors; None without anchors
    modality_gap: float | None  # distance of mean image and mean anchor; None without anchors
    feature_drift: float | None  # of old classes' mean features since learned; None at first
    train_seconds: float  # from the start of the task to its test
    test_seconds: float
    # Of the frozen CLIP, from which learning started; None without anchors and in older results.
    frozen_anchor_cosine: float | None = None  # mean cosine between its anchors of other classes
    cosine_to_frozen: float | None = None  # of each anchor with its own anchor there, the mean

    @property
    def seconds(self) -> float:
        """Training and test."""
        return self.train_seconds + self.test_seconds


class SkippedSample(_Record):
    """A sample that could not be used."""

    shard: str
    key: str
    reason: str


class SkippedStep(_Record):
    """An optimizer step that was skipped because its loss was not finite."""

    task: int
    step: int
    loss: str
    samples: list[str]  # keys


class Retention(_Record):
    """Accuracy on a data set that is never learned, see :mod:`pipeline.training.retention`."""

    index: str  # folder or URL
    sha256: str  # of its index.json
    templates: list[str] = []  # of its own, if it has any
    classes: int
    images: int  # that were tested
    accuracy: list[float | None]  # before the first task, then after each; None: not tested
    skipped_samples: list[SkippedSample] = []  # of this set

    @property
    def key(self) -> str:
        """Eight hexadecimal digits, equal for accuracies that may be compared."""
        if not self.templates:
            return self.sha256[:8]
        return hashlib.sha256(json.dumps([self.sha256, self.templates]).encode()).hexdigest()[:8]


class TransferFigures(_Record):
    """Figures over all tasks, excluded ones too, see :mod:`pipeline.output.transfer_metrics`."""

    transfer: float | None
    average_over_matrix: float
    last_over_tasks: float
    forward_transfer: float | None


class RunProtocol(_Record):
    """The settings that runs must share to be compared, see :mod:`pipeline.output.protocol`."""

    sha256: str  # of the settings: equal for comparable runs
    settings: dict[str, Any]


class RunManifest(_Record):
    """Everything that is needed to reproduce the results."""

    config: dict[str, Any]
    config_sha256: str
    class_order: list[int]
    index_sha256: str
    membership: Membership | None = None  # the benchmark and its split, if the index names them
    memberships: list[Membership | None] = []  # the same of each index of several
    train_images: int | None = None  # of all classes of the index; None in older results
    backbone_sha256: str
    identity: dict[str, Any]  # see pipeline.output.identity
    protocol: RunProtocol | None = None  # None in results of older versions
    packages: dict[str, str] = {}
    git_commit: str | None = None
    world_size: int

    @property
    def benchmarks(self) -> list[Membership | None]:
        """The benchmark and its split of each index, in order; None: the index names none."""
        return self.memberships or [self.membership]


class RunResults(_Record):
    """The content of ``results.json``; accuracies are fractions.

    ``accuracy_matrix[t][k]`` is the accuracy on task ``k`` after task ``t``, None for ``k > t``.
    The matrix and its counts cover every task. The summary figures exclude the first
    ``evaluation.exclude_tasks`` tasks, see :func:`pipeline.output.metrics.summarise`.

    ``class_accuracies[t][c]`` is the accuracy of class ``c``, in class order, after task ``t``,
    over all tasks that test it: to 4 decimals, None without a test image. ``class_images`` counts
    the test images of each class at the last stage. Both are empty in results of older versions.
    Of a run with more than 100,000 such accuracies only the last row is kept; the others are empty.

    ``full_matrix[n][k]`` is the accuracy on task ``k`` after ``n`` tasks: row 0 is the frozen CLIP.
    A task that is not learned yet is classified by the names of its classes.
    """

    schema_version: Literal[2] = Field(alias="schema")  # `schema` is a method of pydantic's
    status: Literal["running", "finished"]
    method: str
    evaluation: EvaluationConfig = EvaluationConfig()
    tuning: TuningConfig | None = None
    tasks: list[list[str]]  # names of the new classes of each task
    known_classes: list[list[str]] = []  # of each task: earlier classes that it has images of
    groups: list[NonNegativeInt] = []  # of each task: its position in data.index; empty: 0
    accuracy_matrix: list[list[float | None]]
    counts: Counts
    class_accuracies: list[list[float | None]] = []
    class_images: list[int] = []
    stage_accuracy: StageAccuracy
    average_incremental_accuracy: float | None
    last_accuracy: float | None
    forgetting: float | None
    backward_transfer: float | None
    variants: dict[str, float | None] = {}  # see pipeline.output.metric_variants
    diagnostics: list[StageDiagnostics]
    anchor_cosines: AnchorCosines | None = None  # at the last stage; None as in diagnostics
    trainable_parameters: list[int]  # of each task
    learned_sha256: list[str | None] | None = None  # of each task's file; None: it wrote no file
    predictions_sha256: str | None = None  # of predictions.jsonl; None: it was not written
    images_per_second: float | None  # of all ranks in train_seconds; None: nothing is trained
    skipped_samples: list[SkippedSample] = []
    skipped_steps: list[SkippedStep] = []
    retention: list[Retention] = []  # of each set of evaluation.held_out
    full_matrix: list[list[float | None]] = []  # with evaluation.future_tasks, see above
    transfer: TransferFigures | None = None  # of a finished run with every accuracy of full_matrix
    manifest: RunManifest

    @model_validator(mode="after")
    def _check_sizes(self) -> RunResults:
        """Refuse figures of other tasks than those that are named."""
        n_tasks, n_learned = len(self.tasks), len(self.accuracy_matrix)
        rows = {len(row) for row in self.accuracy_matrix} | {n_tasks}
        lengths = {len(self.counts.correct), len(self.counts.images), n_learned}
        if n_learned > n_tasks or rows != {n_tasks} or len(lengths) > 1:
            raise ValueError(f"the figures are not those of {n_learned} learned of {n_tasks} tasks")
        for number, counts in enumerate(
            zip(self.counts.correct, self.counts.images, strict=True), start=1
        ):
            if {len(row) for row in counts} != {number}:
                raise ValueError(f"the counts after task {number} are not those of {number} tasks")
            if not all(0 <= right <= total for right, total in zip(*counts, strict=True)):
                raise ValueError(f"the counts after task {number} are not possible")
        self._check_classes()
        self._check_known_classes()
        if len(self.manifest.class_order) != sum(map(len, self.tasks)):
            raise ValueError("manifest.class_order has another number of classes than tasks")
        if any(len(entry.accuracy) > n_learned + 1 for entry in self.retention):
            raise ValueError("retention has more stages than accuracy_matrix")
        sizes = [len(self.full_matrix) - 1, *map(len, self.full_matrix)]
        if self.full_matrix and sizes != [n_learned, *[n_tasks] * (n_learned + 1)]:
            raise ValueError("full_matrix has other stages or tasks than accuracy_matrix")
        if len(self.learned_sha256 or ()) > n_learned:
            raise ValueError("learned_sha256 has more tasks than accuracy_matrix")
        return self

    def _check_classes(self) -> None:
        """Refuse accuracies of other classes than those that the tasks have."""
        seen = list(accumulate(map(len, self.tasks)))[: self.n_learned]
        for number, row in enumerate(self.class_accuracies, start=1):
            if number > len(seen) or len(row) not in (0, seen[number - 1]):
                raise ValueError(f"class_accuracies after task {number} are of other classes")
            if not all(value is None or 0 <= value <= 1 for value in row):
                raise ValueError(f"class_accuracies after task {number} are not possible")
        if len(self.class_images) not in (0, *seen[-1:]) or min(self.class_images, default=0) < 0:
            raise ValueError("class_images does not count the images of the learned classes")
        if self.anchor_cosines and self.anchor_cosines.last_class >= seen[-1]:
            raise ValueError("anchor_cosines has a class that is not learned")

    def _check_known_classes(self) -> None:
        """Refuse known classes that no earlier task has learned."""
        if self.known_classes and len(self.known_classes) != len(self.tasks):
            raise ValueError("known_classes has another number of tasks than tasks")
        if len(self.groups) not in (0, len(self.tasks)):
            raise ValueError("groups has another number of tasks than tasks")
        learned: set[str] = set()
        for names, known in zip(self.tasks, self.known_classes, strict=False):
            if not learned.issuperset(known):
                raise ValueError("known_classes names a class that no earlier task has")
            learned.update(names)

    @property
    def is_finished(self) -> bool:
        """Whether every task has been learned and tested."""
        return self.status == "finished"

    @property
    def n_learned(self) -> int:
        """The number of tasks that have been learned and tested."""
        return len(self.accuracy_matrix)

    @property
    def n_trained_parameters(self) -> int:
        """The parameters trained in the task with most of them."""
        return max(self.trainable_parameters, default=0)

    @property
    def seconds(self) -> float:
        """Training and tests of all tasks."""
        return sum(stage.seconds for stage in self.diagnostics)

    @property
    def protocol(self) -> RunProtocol:
        """The protocol, derived from the manifest, so that results of older versions have one."""
        manifest = self.manifest
        stored = manifest.protocol.settings if manifest.protocol else {}
        recorded = [*manifest.identity.get("tasks", ()), *[{}] * len(self.tasks)]
        known = self.known_classes or [[] for _ in self.tasks]
        tasks = [
            {"names": names, "known_classes": known_names}
            | {key: task[key] for key in ("sha256", "templates") if key in task}
            for names, known_names, task in zip(self.tasks, known, recorded, strict=False)
        ]
        protocol = protocol_of(
            {**manifest.config, "evaluation": self.evaluation.model_dump(mode="json")},
            tasks,
            manifest.backbone_sha256,
            metrics_version=stored.get("metrics_version", _FIRST_METRICS_VERSION),
        )
        return RunProtocol.model_validate(protocol)

    def content(self) -> dict[str, Any]:
        """The results as plain JSON types, in the order of the file."""
        return self.model_dump(mode="json", by_alias=True)

    def write(self, output: str) -> None:
        """Replace ``results.json`` in the folder or URL ``output`` atomically."""
        text = json.dumps(self.content(), indent=2)
        storage.write_atomically(storage.join(output, NAME), f"{text}\n".encode())


def read_results(output: str) -> RunResults | None:
    """The results in the folder or URL ``output``, or None if there are none.

    Raises:
        DataError: ``results.json`` does not hold results of this schema.
    """
    url = storage.join(output, NAME)
    if not storage.exists(url):
        return None
    try:
        return RunResults.model_validate_json(storage.read_text(url))
    except ValidationError as error:
        raise DataError(
            f"{storage.redact(url)}: does not hold results of schema {SCHEMA} "
            f"({first_problem(error)}); restore it from a copy, or choose another output="
        ) from None


def read_results_with_protocol(output: str) -> RunResults | None:
    """The results of :func:`read_results`, from whose manifest the protocol can be derived.

    Raises:
        DataError: ``results.json`` or its manifest has another form.
    """
    results = read_results(output)
    try:
        _ = results and results.protocol
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{storage.redact(output)}: the manifest in {NAME} is damaged "
            f"({type(error).__name__}: {error}); restore the file from a copy"
        ) from None
    return results


def finished_results(output: str) -> RunResults:
    """The results of the finished run in the folder or URL ``output``.

    Raises:
        DataError: there are no results, or the run is not finished.
    """
    results = read_results(output)
    if results is None or not results.is_finished:
        found = "no results.json" if results is None else f"a run that is {results.status}"
        raise DataError(
            f"{storage.redact(output)}: holds {found}; a finished run is wanted; let it finish, "
            "or give another output"
        )
    return results
