"""The files of a run as values of its report; they may be those of a running or an older run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline import storage
from pipeline.errors import DataError, PipelineError
from pipeline.output.metrics import forgetting
from pipeline.output.metrics_log import NAME as METRICS
from pipeline.output.predictions import Prediction, read_predictions
from pipeline.output.results import RunResults, read_results_with_protocol


@dataclass(frozen=True)
class LoggedStep:
    """One line of ``metrics.jsonl``; ``task`` and ``step`` are counted from 0."""

    task: int
    step: int
    loss: float
    terms: dict[str, float]
    images_per_second: float
    data_wait: float  # fraction of the time spent waiting for images


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """A run whose first task has been learned, or that has not learned any yet.

    ``predictions`` is None where the run has none that belong to its last test; then
    ``no_predictions`` is a sentence with the reason.
    """

    output: str
    results: RunResults
    steps: list[LoggedStep]
    predictions: list[Prediction] | None
    no_predictions: str = ""

    @cached_property
    def class_names(self) -> list[str]:
        """The name of each class number."""
        return [name for names in self.results.tasks for name in names]

    @cached_property
    def task_of_class(self) -> list[int]:
        """The task of each class number, counted from 0."""
        return [task for task, names in enumerate(self.results.tasks) for _ in names]

    @cached_property
    def forgetting(self) -> list[float | None]:
        """Forgetting after each task, as the summary counts it: without excluded tasks."""
        first = self.results.evaluation.exclude_tasks
        matrix = [row[first:] for row in self.results.accuracy_matrix]
        return [
            forgetting(matrix[first : stage + 1]) if stage >= first else None
            for stage in range(len(matrix))
        ]


def read_run(output: str) -> ReportedRun:
    """The run in the folder or URL ``output``.

    Raises:
        DataError: there are no results, or a file is damaged.
        StorageError: a file cannot be read.
    """
    results = read_results_with_protocol(output)
    if results is None:
        raise DataError(
            f"{storage.redact(output)}: holds no results.json; give the output of a run that has "
            "learned at least one task"
        )
    predictions, reason = _predictions(output, results)
    return ReportedRun(output, results, list(_steps(output)), predictions, reason)


def _steps(output: str) -> Iterator[LoggedStep]:
    url = storage.join(output, METRICS)
    if not storage.exists(url):
        return
    for number, line in enumerate(storage.read_text(url, most=None).splitlines(), start=1):
        try:
            values: dict[str, Any] = json.loads(line)
            if values["kind"] == "step":
                yield LoggedStep(
                    int(values["task"]),
                    int(values["step"]),
                    float(values["loss"]),
                    {str(name): float(term) for name, term in values["terms"].items()},
                    float(values["images_per_second"]),
                    float(values["data_wait"]),
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{storage.redact(url)}: line {number} is not a step or a stage "
                f"({type(error).__name__}: {error}); restore the file from a copy"
            ) from None


def _predictions(output: str, results: RunResults) -> tuple[list[Prediction] | None, str]:
    """The predictions of the last test, or None and the reason."""
    try:
        found = read_predictions(output)
    except PipelineError as error:
        return None, f"The predictions of single images cannot be read: {error}."
    if not found and not results.is_finished:
        return None, "The predictions of single images are not written yet."
    if not found:
        return None, (
            "The run kept no predictions of single images: evaluation.predictions was false, or "
            "the program was older."
        )
    if _counts(found, results) != list(
        zip(results.counts.correct[-1], results.counts.images[-1], strict=True)
    ):
        return None, "predictions.jsonl is not that of the last test in results.json."
    return found, ""


def _counts(predictions: list[Prediction], results: RunResults) -> list[tuple[int, int]]:
    """Correct predictions and images of each task; empty if a class number is impossible."""
    n_classes = sum(map(len, results.tasks))
    correct, images = [0] * results.n_learned, [0] * results.n_learned
    for each in predictions:
        numbers = [each.label, *(number for number, _ in each.top)]
        is_known = all(0 <= number < n_classes for number in numbers)
        if not (is_known and each.top and 0 <= each.task < results.n_learned):
            return []
        images[each.task] += 1
        correct[each.task] += each.top[0][0] == each.label
    return list(zip(correct, images, strict=True))
