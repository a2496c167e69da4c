"""The page that compares several runs, which the command has divided into groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pipeline import storage
from pipeline.output.results import RunResults
from pipeline.pages.charts import Axis, Item, Series, height_for_names, line_chart
from pipeline.pages.page import Fact, Heading, TableRow, render_page
from pipeline.pages.scale import categorical_scale, linear_scale
from pipeline.pages.svg import Drawing
from pipeline.run_report.curves import N_KINDS
from pipeline.text import NOT_KNOWN, format_percent

FIGURES = ("average", "last", "forgetting", "backward transfer")
_N_CLASSES = 5  # that gain or lose most
_WIDTH, _HEIGHT = 760.0, 320.0  # of the chart, inside its axes; higher for many names
_MOST_NAME = 34  # characters beside a line
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ComparedGroup:
    """The runs of one method with equal settings in several repetitions.

    ``figures`` and ``differences`` are texts in the order of ``FIGURES``.
    """

    label: str
    seeds: str
    figures: Sequence[str]
    differences: Sequence[str] | None  # to the baseline; None without one, or for the baseline
    parameters: int  # most trained in one task
    seconds: float  # training and tests, mean over the runs
    runs: Mapping[str, RunResults]  # by output
    note: str = ""  # a warning about the origin of the settings


@dataclass(frozen=True)
class ComparedTable:
    """The groups of one protocol; ``baseline`` is the label of one of them, or empty."""

    heading: str
    groups: Sequence[ComparedGroup]
    baseline: str = ""


@dataclass(frozen=True)
class _Part:
    """One table of the page, ready to be shown."""

    heading: str
    baseline: str
    headings: list[Heading]
    rows: list[TableRow]
    chart: Drawing
    stage_headings: list[str]
    stages: list[list[str]]
    classes: list[list[str]]
    runs: list[list[str]]
    notes: list[str]


def render_comparison(tables: Sequence[ComparedTable]) -> str:
    """The page of several runs; equal files give equal bytes."""
    n_runs = sum(len(group.runs) for table in tables for group in table.groups)
    return render_page(
        _FOLDER / "templates/comparison.html",
        title=f"Comparison of {n_runs} runs",
        styles=[_FOLDER / "run.css"],
        facts=_facts(tables[0].groups) if len(tables) == 1 else [],
        parts=[_part(table, number) for number, table in enumerate(tables, start=1)],
    )


def _facts(groups: Sequence[ComparedGroup]) -> list[Fact]:
    """The best group by each figure."""
    facts = []
    for title, choose, figure, key in (
        ("highest average accuracy", max, "average", "average_incremental_accuracy"),
        ("highest last accuracy", max, "last", "last_accuracy"),
        ("least forgetting", min, "forgetting", "forgetting"),
    ):
        known = [(mean, group) for group in groups if (mean := _mean(group, key)) is not None]
        if known:
            _, best = choose(known, key=lambda pair: pair[0])
            facts.append(Fact(title, f"{best.figures[FIGURES.index(figure)]} %", best.label))
    fastest = min(groups, key=lambda group: group.seconds)
    facts.append(Fact("least time", f"{fastest.seconds:,.1f} s", fastest.label))
    return facts


def _mean(group: ComparedGroup, key: str) -> float | None:
    values = [getattr(run, key) for run in group.runs.values()]
    return None if None in values or not values else fmean(values)


def _by_average(group: ComparedGroup) -> float:
    """Sorts the highest average accuracy first, unknown ones last."""
    mean = _mean(group, "average_incremental_accuracy")
    return 1.0 if mean is None else -mean


def _part(table: ComparedTable, number: int) -> _Part:
    table = replace(table, groups=sorted(table.groups, key=_by_average))
    has_differences = any(group.differences for group in table.groups)
    names = ["method and settings", "seeds"]
    for figure in FIGURES:
        names += [f"{figure} (%)", *([f"Δ {figure}"] if has_differences else [])]
    rows = []
    for place, group in enumerate(table.groups):
        cells = [group.label, group.seeds]
        for column, figure in enumerate(group.figures):
            cells.append(figure)
            if has_differences:
                is_baseline = group.differences is None
                cells.append(NOT_KNOWN if is_baseline else (group.differences or ())[column])
        cells += [f"{group.parameters:,}", f"{group.seconds:,.1f}"]
        rows.append(TableRow(cells, _key(number, place)))
    return _Part(
        heading=table.heading,
        baseline=table.baseline,
        headings=list(map(Heading, [*names, "trained parameters", "seconds"])),
        rows=rows,
        chart=_chart(table, number),
        stage_headings=["after task", *(group.label for group in table.groups)],
        stages=_stages(table),
        classes=_class_changes(table),
        runs=[
            [
                storage.redact(output),
                group.label,
                str(run.manifest.config.get("seed", 1)),
                *(
                    format_percent([value])
                    for value in (
                        run.average_incremental_accuracy,
                        run.last_accuracy,
                        run.forgetting,
                        run.backward_transfer,
                    )
                ),
                f"{run.seconds:,.1f}",
            ]
            for group in table.groups
            for output, run in group.runs.items()
        ],
        notes=[f"{group.label}: {group.note}" for group in table.groups if group.note],
    )


def _chart(table: ComparedTable, number: int) -> Drawing:
    """The mean accuracy over all classes seen so far after each task, a line for each group."""
    series = []
    for place, group in enumerate(table.groups):
        means = _stage_means(group)
        item = Item(
            _key(number, place),
            f"{group.label}: average {group.figures[0]} %, last {group.figures[1]} %",
            f"line{place % N_KINDS}",
            name=group.label
            if len(group.label) <= _MOST_NAME
            else f"{group.label[: _MOST_NAME - 1]}…",
        )
        points = [(t, 100 * mean) for t, mean in enumerate(means, start=1) if mean is not None]
        series.append(Series(item, [points]))
    values = [y for each in series for line in each.lines for _, y in line] or [0.0]
    n_tasks = max(len(_stage_means(group)) for group in table.groups)
    return line_chart(
        series,
        Axis("tasks learned", categorical_scale(range(1, n_tasks + 1))),
        Axis("accuracy (%)", linear_scale(values, is_rounded=True)),
        title="Accuracy after each task",
        description=f"A line for each of {len(series)} groups of runs: mean accuracy over all "
        "classes seen so far. A table has the same values.",
        size=(_WIDTH, max(_HEIGHT, height_for_names(len(series)))),
    )


def _key(table: int, group: int) -> str:
    """The key that joins a row with its line."""
    return f"group-{table}-{group}"


def _stage_values(group: ComparedGroup) -> list[list[float | None]]:
    """For each stage the accuracy of each run."""
    columns = [run.stage_accuracy.micro for run in group.runs.values()]
    return [list(each) for each in zip(*columns, strict=False)]


def _stage_means(group: ComparedGroup) -> list[float | None]:
    return [
        None if None in values else fmean(value for value in values if value is not None)
        for values in _stage_values(group)
    ]


def _stages(table: ComparedTable) -> list[list[str]]:
    """A row per stage: the accuracy of each group, mean ± standard deviation."""
    columns = [[format_percent(v) for v in _stage_values(group)] for group in table.groups]
    n_stages = max(map(len, columns))
    padded = [[*column, *[NOT_KNOWN] * (n_stages - len(column))] for column in columns]
    return [[str(t), *cells] for t, cells in enumerate(zip(*padded, strict=True), start=1)]


def _class_changes(table: ComparedTable) -> list[list[str]]:
    """A row per group: the classes that gain most against the baseline, and that lose most."""
    reference = next((g for g in table.groups if g.label == table.baseline), None)
    before = _class_means(reference) if reference else {}
    rows = []
    for group in table.groups:
        now = _class_means(group)
        changes = sorted((now[name] - before[name], name) for name in now.keys() & before.keys())
        if group is not reference and changes:
            gains = [(change, name) for change, name in changes[::-1] if change > 0]
            losses = [(change, name) for change, name in changes if change < 0]
            rows.append([group.label, *map(_listed, (gains, losses))])
    return rows


def _class_means(group: ComparedGroup) -> dict[str, float]:
    """The last accuracy on each class, mean over the runs; without classes that have none."""
    values: dict[str, list[float]] = defaultdict(list)
    for run in group.runs.values():
        names = [name for task in run.tasks for name in task]
        accuracies = run.class_accuracies[-1] if run.class_accuracies else []
        for name, accuracy in zip(names, accuracies, strict=False):
            if accuracy is not None:
                values[name].append(accuracy)
    return {name: fmean(found) for name, found in values.items() if len(found) == len(group.runs)}


def _listed(changes: Sequence[tuple[float, str]]) -> str:
    """The largest changes in percentage points."""
    shown = (f"{name} {100 * change:+.1f}" for change, name in changes[:_N_CLASSES])
    return ", ".join(shown) or "none"
