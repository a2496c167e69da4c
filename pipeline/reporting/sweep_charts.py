"""The charts of a sweep: its trials' parameters and metric as the plain values of ``charts``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.pages.charts import (
    Axis,
    Item,
    Missing,
    Point,
    Row,
    Series,
    line_chart,
    parallel_coordinates,
    scatter_plot,
)
from pipeline.pages.scale import Scale, categorical_scale, linear_scale, log_scale
from pipeline.pages.svg import Drawing
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.progress import SYMBOLS, format_value
from pipeline.sweep.space import Domain
from pipeline.sweep.trial_table import TrialRecord, rank
from pipeline.text import format_spread

N_SHADES = 5  # classes of finished trials by rank, shade0 to shade4, the best ones
_N_NAMED = 3  # best trials whose number is beside their line
_NOT_DRAWN = Missing("not drawn")


class SweepCharts:
    """The charts of a sweep's ``records``; ``labels`` are short names of their parameters."""

    def __init__(
        self, plan: SweepPlan, records: Sequence[TrialRecord], labels: Mapping[str, str]
    ) -> None:
        self._sweep, self._n_tasks = plan.sweep, plan.n_tasks
        self._metric_title = f"{plan.sweep.metric.replace('_', ' ')} (%)"
        ranked = rank(records, plan.sweep.metric)
        self._records = ranked[::-1]  # the best is drawn last, above the others
        self._items = _items(ranked, plan.sweep, labels)
        found = dict.fromkeys(key for record in records for key in record.parameters)
        keys = [key for key in plan.space.domains if key in found]
        keys += [key for key in found if key not in plan.space.domains]
        self._axes = {
            key: Axis(labels[key], _scale(key, records, plan.space.domains.get(key)), key)
            for key in keys
        }
        values = [self._percent(record) for record in ranked if record.status == "finished"]
        scale = linear_scale(values, is_rounded=True) if values else None
        self._metric_axis = Axis(self._metric_title, scale) if scale else None

    def parameters_and_metric(self) -> Drawing:
        """An axis for each parameter and one for the metric, a line for each trial."""
        # Without a finished trial the last axis has no values, only places below it.
        metric = self._metric_axis or Axis(self._metric_title, linear_scale([0, 100]))
        rows = [
            Row(
                self._items[record.number],
                [
                    *(record.parameters.get(key, _NOT_DRAWN) for key in self._axes),
                    self._worth(record),
                ],
            )
            for record in self._records
        ]
        return parallel_coordinates(
            rows,
            [*self._axes.values(), metric],
            title="Parameters and metric of each trial",
            description=f"One line for each of {len(rows)} trials, from its parameters to its "
            "metric. The table of all trials has the same values.",
        )

    def metric_after_each_task(self) -> Drawing | None:
        """A line for each trial; repetitions stand side by side. None before the first task."""
        metric = self._sweep.metric
        reports = [report for record in self._records for report in record.reports]
        if not reports:
            return None
        panels = repetition_names(self._sweep)
        series = [
            Series(
                self._items[record.number],
                [
                    [
                        (report.task + 1, 100 * getattr(report, metric))
                        for report in record.reports
                        if report.repetition == repetition
                    ]
                    for repetition in range(len(panels))
                ],
            )
            for record in self._records
        ]
        values = [100 * getattr(report, metric) for report in reports]
        return line_chart(
            series,
            Axis("tasks learned", categorical_scale(range(1, self._n_tasks + 1))),
            Axis(self._metric_title, linear_scale(values, is_rounded=True)),
            title="Metric after each task",
            description=f"One line for each of {sum(bool(r.reports) for r in self._records)} "
            f"trials over the {self._n_tasks} tasks of each repetition.",
            panels=panels if len(panels) > 1 else [""],
        )

    def each_parameter(self) -> list[Drawing]:
        """A scatter plot for each parameter; trials that did not finish have no metric there."""
        if self._metric_axis is None:
            return []
        return [
            scatter_plot(
                [
                    Point(self._items[record.number], record.parameters[key], self._worth(record))
                    for record in self._records
                    if key in record.parameters
                ],
                axis,
                self._metric_axis,
                title=f"{key} against the metric",
                description=f"One point for each trial that has {key}.",
            )
            for key, axis in self._axes.items()
        ]

    def _percent(self, record: TrialRecord) -> float:
        value = record.value(self._sweep.metric)
        return 100 * value if value is not None else 0.0

    def _worth(self, record: TrialRecord) -> float | Missing:
        """The metric of a finished trial; other trials learned fewer tasks."""
        if record.status == "finished":
            return self._percent(record)
        return Missing(record.status, record.status)


def trial_label(record: TrialRecord, sweep: SweepConfig, labels: Mapping[str, str]) -> str:
    """A trial in one line: number, status, metric, parameters, reason."""
    figure = format_spread(record.value(sweep.metric), record.spread(sweep.metric))
    parts = [f"trial {record.number}, {record.status}: {figure} %"]
    parts += [f"{labels[key]} = {format_value(value)}" for key, value in record.parameters.items()]
    return " · ".join([*parts, record.reason] if record.reason else parts)


def repetition_names(sweep: SweepConfig) -> list[str]:
    """The settings in which each repetition differs from the others."""
    return [
        f"seed {seed}" + ("" if order is None else f", class order {order}")
        for seed, order in sweep.repetitions
    ]


def _items(
    ranked: Sequence[TrialRecord], sweep: SweepConfig, labels: Mapping[str, str]
) -> dict[int, Item]:
    """The item of each trial by number: its rank is its shade, its status its symbol."""
    n_finished = sum(record.status == "finished" for record in ranked)
    items = {}
    for place, record in enumerate(ranked):
        kind: str = record.status
        is_finished = record.status == "finished"  # these are ranked first
        if is_finished:
            kind += f" shade{N_SHADES - 1 - N_SHADES * place // n_finished}"
            kind += " best" if place == 0 else ""
        items[record.number] = Item(
            key=str(record.number),
            label=trial_label(record, sweep, labels),
            kind=kind,
            symbol="" if is_finished else SYMBOLS[record.status],
            name=f"trial {record.number}" if is_finished and place < _N_NAMED else "",
        )
    return items


def _scale(key: str, records: Sequence[TrialRecord], domain: Domain | None) -> Scale:
    """The axis of a parameter, with all values of its domain."""
    values: list[Any] = [record.parameters[key] for record in records if key in record.parameters]
    if domain is None:
        is_number = all(type(value) in (int, float) for value in values)
        return linear_scale(values) if is_number else categorical_scale(values)
    if domain.choice is not None:
        return categorical_scale([*domain.choice, *values])
    ends = [*domain.extremes, *values]
    if domain.log_uniform:
        return log_scale(ends)
    return linear_scale(ends, is_whole=domain.integer is not None)
