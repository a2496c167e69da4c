"""The charts of a run. Accuracies are drawn in per cent, tasks are counted from 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from pipeline.pages import svg
from pipeline.pages.charts import (
    Axis,
    Item,
    Series,
    item_line,
    line_chart,
    name_width,
    names_beside,
)
from pipeline.pages.scale import categorical_scale, linear_scale
from pipeline.pages.svg import TEXT_GAP, Drawing, Element, Frame
from pipeline.run_report.bars import Bar, bar_chart
from pipeline.run_report.mistakes import CertaintyBin
from pipeline.run_report.run import LoggedStep, ReportedRun

N_SHADES = 5  # CSS classes shade0 to shade4 of tasks, the latest is shade4
N_KINDS = 8  # CSS classes line0 to line7 of lines without an order
_BESIDE = (420.0, 290.0)  # pixels inside the axes of a chart beside a table
_WIDE = (920.0, 250.0)
_BARS = (560.0, 170.0)
_MOST_POINTS = 1200  # of a line over steps; more logged steps are averaged
_MOST_NAMED = 12  # lines with a name beside them
_MOST_NUMBERS = 25  # of tasks above the losses
_N_BINS = 20  # of the histogram of accuracies, 5 % each


def stage_curves(run: ReportedRun) -> Drawing:
    """Accuracy over all classes seen so far, and forgetting, after each task."""
    stages = run.results.stage_accuracy
    lines = {"micro": stages.micro, "macro": stages.macro, "forgetting": run.forgetting}
    if _is_equal(stages.micro, stages.macro):
        lines = {"accuracy": stages.micro, "forgetting": run.forgetting}
    series = [
        Series(Item(f"stage-{name}", f"{name} after each task", f"line{number}", name=name), [
            stage_points(values, 100)
        ])
        for number, (name, values) in enumerate(lines.items())
    ]  # fmt: skip
    return over_tasks(
        series,
        run.results.n_learned,
        "per cent",
        title="Accuracy and forgetting after each task",
    )


def task_curves(run: ReportedRun) -> Drawing:
    """The accuracy on each task after each later task."""
    matrix, n_learned = run.results.accuracy_matrix, run.results.n_learned
    series = []
    for task in range(n_learned):
        values = [row[task] for row in matrix]
        shade = N_SHADES * task // n_learned
        last = values[-1]
        label = f"task {task + 1}: {_percent(values[task])} % when learned, {_percent(last)} % now"
        name = f"task {task + 1}" if n_learned <= _MOST_NAMED else ""
        item = Item(f"task-{task + 1}", label, f"shade{shade}", name=name)
        series.append(Series(item, [stage_points(values, 100)]))
    return over_tasks(series, n_learned, "accuracy (%)", title="Accuracy on each task")


def loss_curves(run: ReportedRun) -> Drawing | None:
    """The loss and its terms over the steps of all tasks; None if no step was logged."""
    tasks = [list(steps) for _, steps in groupby(run.steps, key=lambda step: step.task)]
    if not tasks:
        return None
    merged = max(1, -(-len(run.steps) // _MOST_POINTS))
    names = list(dict.fromkeys(name for step in run.steps for name in step.terms))
    lines = {"loss": [_averaged(steps, merged, None) for steps in tasks]}
    if len(names) > 1:
        lines |= {name: [_averaged(steps, merged, name) for steps in tasks] for name in names}
    firsts = [0]
    for steps in tasks:
        firsts.append(firsts[-1] + steps[-1].step + 1)
    values = [y for parts in lines.values() for part in parts for _, y in part]
    x, y = linear_scale([0, firsts[-1]]), linear_scale([0, *values], is_rounded=True)
    frame = Frame(56, 56 + _WIDE[0], 44, 44 + _WIDE[1])
    marks = [svg.text((TEXT_GAP, TEXT_GAP), "loss", "name"), *svg.grid(frame, y.ticks())]
    for position, label in x.ticks():
        marks.append(svg.text((frame.x(position), frame.bottom + 14), label, "tick middle"))
    numbers = [steps[0].task + 1 for steps in tasks]
    marks += _task_edges(frame, [x.position(first) for first in firsts], numbers)
    below = ((frame.left + frame.right) / 2, frame.bottom + 34)
    marks.append(svg.text(below, "optimizer steps of all tasks", "tick middle"))
    ends = {}
    for number, (name, parts) in enumerate(lines.items()):
        item = Item(f"loss-{name}", f"{name} by step", f"thin line{number % N_KINDS}", name=name)
        shown = [
            [(frame.x(x.position(first + a)), frame.y(y.position(b))) for a, b in part]
            for first, part in zip(firsts, parts, strict=False)
            if part
        ]
        if shown:
            marks.append(item_line(item, shown))
            ends[item] = shown[-1][-1][1]
    detail = f"; each point is the mean of {merged} logged steps" if merged > 1 else ""
    size = (frame.right + name_width(ends), below[1] + 14)
    marks += names_beside(ends, (frame.right + TEXT_GAP, size[1]))
    described = f"Lines over {firsts[-1]} optimizer steps of {len(tasks)} tasks{detail}."
    return Drawing(size, "Loss by optimizer step", described, *marks)


def time_chart(run: ReportedRun) -> Drawing:
    """The seconds of training and test of each task."""
    bars = [
        Bar(
            str(stage.task + 1),
            [stage.train_seconds, stage.test_seconds],
            f"Task {stage.task + 1}: {stage.train_seconds:.1f} s training, "
            f"{stage.test_seconds:.1f} s test.",
        )
        for stage in run.results.diagnostics
    ]
    highest = max((sum(bar.parts) for bar in bars), default=1.0)
    y = Axis("seconds", linear_scale([0, highest or 1.0], is_rounded=True))
    return bar_chart(bars, ["train", "test"], "task", y, size=_BARS, title="Seconds of each task")


def class_histogram(accuracies: Sequence[float]) -> Drawing:
    """How many classes have which accuracy."""
    counts = [0] * _N_BINS
    for value in accuracies:
        counts[min(_N_BINS - 1, int(value * _N_BINS + 1e-9))] += 1
    width = 100 // _N_BINS
    bars = [
        Bar(str(width * n), [count], f"{width * n} to {width * (n + 1)} %: {count} classes.")
        for n, count in enumerate(counts)
    ]
    y = Axis("classes", linear_scale([0, max(counts) or 1], is_rounded=True))
    return bar_chart(
        bars, ["train"], "accuracy (%)", y, size=_BARS, title="Number of classes by accuracy"
    )


def certainty_chart(bins: Sequence[CertaintyBin]) -> Drawing:
    """Accuracy against the mean probability of the predicted class, in bins of probability."""
    points = [
        (100 * each.probability, 100 * each.accuracy)
        for each in bins
        if each.probability is not None and each.accuracy is not None
    ]
    axis = linear_scale([0, 100])
    series = [
        Series(Item("certainty-ideal", "accuracy equals probability", "line2", name="equal"), [
            [(0, 0), (100, 100)]
        ]),
        Series(Item("certainty-run", "accuracy of this run", "line0", name="this run"), [points]),
    ]  # fmt: skip
    return line_chart(
        series,
        Axis("probability of the predicted class (%)", axis),
        Axis("accuracy (%)", axis),
        title="Accuracy by probability",
        description="One point for each tenth of probability that occurs. On the line of equal "
        "values a prediction is right as often as its probability says.",
        size=(320.0, 220.0),
    )


def over_tasks(
    series: Sequence[Series],
    n_tasks: int,
    y_title: str,
    *,
    title: str,
    size: tuple[float, float] = _BESIDE,
) -> Drawing:
    """Lines over the tasks; a table of the page has the same values."""
    values = [y for each in series for line in each.lines for _, y in line]
    return line_chart(
        series,
        Axis("tasks learned", categorical_scale(range(1, n_tasks + 1))),
        Axis(y_title, linear_scale(values or [0.0], is_rounded=True)),
        title=title,
        description=f"{len(series)} lines over {n_tasks} tasks. A table has the same values.",
        size=size,
    )


def stage_points(values: Sequence[float | None], factor: float = 1.0) -> list[tuple[int, float]]:
    """The number of learned tasks and the value, times ``factor``, of each stage that has one."""
    return [
        (stage, factor * value) for stage, value in enumerate(values, start=1) if value is not None
    ]


def _averaged(
    steps: Sequence[LoggedStep], merged: int, term: str | None
) -> list[tuple[float, float]]:
    """Step and loss, or one of its terms, each the mean of ``merged`` logged steps.

    A step that was skipped because its loss is not finite has no part in it.
    """
    points = []
    for start in range(0, len(steps), merged):
        part = steps[start : start + merged]
        values = [(s.step, s.loss if term is None else s.terms.get(term, math.nan)) for s in part]
        finite = [(step, value) for step, value in values if math.isfinite(value)]
        if finite:
            points.append((fmean(step for step, _ in finite), fmean(value for _, value in finite)))
    return points


def _task_edges(frame: Frame, edges: Sequence[float], numbers: Sequence[int]) -> list[Element]:
    """A dashed rule at the end of each task but the last, and numbers of tasks above."""
    every = max(1, -(-len(numbers) // _MOST_NUMBERS))
    marks = []
    for place, number in enumerate(numbers):
        if place and every == 1:
            left = frame.x(edges[place])
            marks.append(svg.rule((left, frame.top), (left, frame.bottom), "edge"))
        if place % every == 0:
            middle = frame.x((edges[place] + edges[place + 1]) / 2)
            label, kind = (str(number), "tick middle") if place else (f"task {number}", "tick")
            left = middle if place else frame.left
            marks.append(svg.text((left, frame.top - 10), label, kind))
    return marks


def _is_equal(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    """Whether two series of fractions look the same."""
    pairs = zip(one, other, strict=True)
    return all(a == b or (a is not None and b is not None and abs(a - b) < 1e-9) for a, b in pairs)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
