"""``report.html`` of one run or of several, from the files of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import DataError
from pipeline.output.predictions import Prediction
from pipeline.pages.page import render_page
from pipeline.run_report import anchors, curves, mistakes, parts
from pipeline.run_report.comparison import ComparedTable, render_comparison
from pipeline.run_report.heat_map import build_heat_map
from pipeline.run_report.run import ReportedRun, read_run
from pipeline.run_report.thumbnails import Thumbnails
from pipeline.text import format_percent

PAGE = "report.html"
N_CONFUSIONS, N_EXAMPLES = 10, 3  # pairs of classes, images of each
N_MISTAKES = 16  # confidently wrong images
N_EXTREMES = 10  # classes with the lowest and the highest accuracy
MOST_CLASSES = 40  # in a table that is shown at once
_FOLDER = Path(__file__).parent


def write_report(
    outputs: Sequence[str], target: str, *, tables: Sequence[ComparedTable] = ()
) -> None:
    """Write the page of the run in ``outputs`` to the file or URL ``target``.

    With several runs the page compares the ``tables`` of their groups.

    Raises:
        DataError: an output has no results, or a file does not have its form.
        StorageError: a file cannot be read or written.
    """
    if tables:
        text = render_comparison(tables)
    elif len(outputs) == 1:
        text = render_run(read_run(outputs[0]))
    else:
        raise DataError(f"{len(outputs)} outputs: a page of several runs needs their groups")
    storage.write_atomically(target, text.encode())


def render_run(run: ReportedRun) -> str:
    """The page of one run; equal files give equal bytes."""
    results = run.results
    changed, everything = parts.settings(run)
    classes = parts.class_table(run)
    return render_page(
        _FOLDER / "templates/run.html",
        title=parts.title(run),
        styles=[_FOLDER / "run.css"],
        headline=parts.headline(run),
        is_finished=results.is_finished,
        n_learned=results.n_learned,
        n_tasks=len(results.tasks),
        note=results.tuning.note if results.tuning else None,
        tuning=parts.tuning(run),
        excluded=results.evaluation.exclude_tasks,
        facts=parts.facts(run),
        matrix=build_heat_map(
            [row[: results.n_learned] for row in results.accuracy_matrix],
            caption="Accuracy on each task (columns) after each task (rows), in per cent",
        ),
        stage_chart=curves.stage_curves(run),
        task_chart=curves.task_curves(run),
        stages=parts.stage_table(run),
        tasks=_task_names(run),
        classes=classes,
        class_chart=curves.class_histogram([float(row[4]) / 100 for row in classes or ()]),
        n_extremes=N_EXTREMES,
        most_classes=MOST_CLASSES,
        predictions=_shown_predictions(run),
        no_predictions=run.no_predictions,
        anchors=anchors.anchor_table(run),
        anchor_charts=[*anchors.anchor_curves(run), anchors.cosine_histogram(run)],
        closest_anchors=anchors.closest_anchors(run),
        missing_anchors=anchors.missing_anchors(run),
        loss_chart=curves.loss_curves(run),
        time_chart=curves.time_chart(run),
        times=parts.time_table(run),
        time_summary=parts.time_summary(run),
        skipped=parts.skipped(run),
        changed=changed,
        everything=everything,
        protocol=parts.protocol(run),
        environment=parts.environment(run),
        learned_hashes=parts.learned_hashes(run),
    )


@dataclass(frozen=True)
class _Image:
    """A tested image; ``source`` is empty where it cannot be shown."""

    source: str
    text: str  # its alternative text
    true: str
    predicted: str
    probability: str


@dataclass(frozen=True)
class _Pair:
    """Two classes that are confused, in words."""

    true: str
    predicted: str
    share: str
    reverse: str
    images: list[_Image]


@dataclass(frozen=True)
class _Predictions:
    """What the predictions of single images show."""

    n_images: int
    top: str
    pairs: list[_Pair]
    mistakes: list[_Image]
    tasks: Any
    calibration: str
    certainty_chart: Any
    certainty: list[list[str]] = field(default_factory=list)
    problem: str = ""


def _shown_predictions(run: ReportedRun) -> _Predictions | None:
    if not run.predictions:
        return None
    thumbnails = Thumbnails(run.output, run.results)
    names = run.class_names

    def show(prediction: Prediction) -> _Image:
        number, probability = prediction.top[0]
        true, predicted = names[prediction.label], names[number]
        return _Image(
            thumbnails.source(prediction),
            f"test image of {true}, classified as {predicted}",
            true,
            predicted,
            f"{100 * probability:.1f} %",
        )

    wrong = mistakes.confident_mistakes(run.predictions, most=N_MISTAKES)
    shown = [show(each) for each in wrong]
    pairs = [
        _Pair(
            names[pair.true],
            names[pair.predicted],
            f"{pair.count} of {pair.images}",
            str(pair.reverse),
            [show(each) for each in pair.examples],
        )
        for pair in mistakes.confusions(run.predictions, most=N_CONFUSIONS, examples=N_EXAMPLES)
    ]
    n_listed, in_top = mistakes.top_accuracy(run.predictions)
    bins = mistakes.certainty(run.predictions)
    n_tasks = run.results.n_learned
    between = mistakes.task_confusion(run.predictions, run.task_of_class, n_tasks)
    return _Predictions(
        n_images=len(run.predictions),
        top=f"{format_percent([in_top])} % of the images have the right class among the "
        f"{n_listed} most probable ones.",
        pairs=pairs,
        mistakes=shown,
        tasks=build_heat_map(
            between,
            caption="Images of each task's classes (rows) by the task of the predicted class "
            "(columns), in per cent of the row",
        ),
        calibration=f"{100 * mistakes.calibration_error(bins):.1f}",
        certainty_chart=curves.certainty_chart(bins),
        certainty=[
            [
                f"{100 * each.low:.0f} to {100 * each.high:.0f} %",
                str(each.images),
                format_percent([each.probability]),
                format_percent([each.accuracy]),
            ]
            for each in bins
        ],
        problem=thumbnails.problem,
    )


def _task_names(run: ReportedRun) -> list[list[str]]:
    """Each task with the names of its classes."""
    known = run.results.known_classes or [[] for _ in run.results.tasks]
    return [
        [str(number), ", ".join(names) + (f"; more of {', '.join(more)}" if more else "")]
        for number, (names, more) in enumerate(zip(run.results.tasks, known, strict=True), start=1)
    ]
