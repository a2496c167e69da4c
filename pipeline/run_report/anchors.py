"""Anchors and features of a run: how they change over the tasks, and from the frozen CLIP."""

from __future__ import annotations

from pipeline.output.anchor_cosines import N_BINS
from pipeline.pages.charts import Axis, Item, Series, line_chart
from pipeline.pages.scale import linear_scale
from pipeline.pages.svg import Drawing
from pipeline.run_report.curves import over_tasks, stage_points
from pipeline.run_report.run import ReportedRun
from pipeline.text import NOT_KNOWN

_SMALL = (290.0, 170.0)  # pixels inside the axes of charts that stand side by side


def anchor_curves(run: ReportedRun) -> list[Drawing]:
    """A chart over the tasks for each measurement that the run has."""
    stages = run.results.diagnostics
    charts: dict[str, dict[str, list[float | None]]] = {
        "mean cosine between anchors": {
            "now": [stage.anchor_cosine for stage in stages],
            "before": [stage.frozen_anchor_cosine for stage in stages],
        },
        "cosine to before": {"": [stage.cosine_to_frozen for stage in stages]},
        "modality gap": {"": [stage.modality_gap for stage in stages]},
        "drift of old classes": {"": [stage.feature_drift for stage in stages]},
    }
    drawings = []
    for title, lines in charts.items():
        known = {name: values for name, values in lines.items() if {*values} - {None}}
        series = [
            Series(
                Item(f"{title}-{name}", f"{title} {name}".strip(), f"line{kind}"),
                [stage_points(values)],
            )
            for kind, (name, values) in enumerate(known.items())
        ]
        if series:
            heading = f"{title[0].upper()}{title[1:]} after each task"
            drawings.append(over_tasks(series, len(stages), title, title=heading, size=_SMALL))
    return drawings


def cosine_histogram(run: ReportedRun) -> Drawing | None:
    """How many pairs of classes have which cosine between their anchors, before and now."""
    found = run.results.anchor_cosines
    if found is None or not sum(found.now):
        return None
    filled = [number for number in range(N_BINS) if found.before[number] or found.now[number]]
    shown = range(max(0, filled[0] - 1), min(N_BINS, filled[-1] + 2))
    width = 2 / N_BINS
    middles = [(number + 0.5) * width - 1 for number in shown]
    share = 100 / sum(found.now)
    lines = {"now": found.now, "before": found.before}
    points = {name: [share * counts[n] for n in shown] for name, counts in lines.items()}
    series = [
        Series(
            Item(f"cosines-{name}", f"pairs of classes {name}", f"line{kind}"),
            [list(zip(middles, values, strict=True))],
        )
        for kind, (name, values) in enumerate(points.items())
    ]
    highest = max(max(values) for values in points.values())
    return line_chart(
        series,
        Axis("cosine between two anchors", linear_scale(middles)),
        Axis("pairs of classes (%)", linear_scale([0, highest], is_rounded=True)),
        title="Pairs of classes by the cosine of their anchors",
        description=f"The shares of {sum(found.now)} pairs in steps of {width:g}, from "
        f"{middles[0] - width / 2:.2f} to {middles[-1] + width / 2:.2f}, before learning and now.",
        size=_SMALL,
    )


def anchor_table(run: ReportedRun) -> list[list[str]]:
    """A row per learned task: cosines now, before and to before, modality gap, drift."""
    return [
        [
            str(stage.task + 1),
            _show(stage.anchor_cosine),
            _show(stage.frozen_anchor_cosine),
            _show(stage.cosine_to_frozen),
            _show(stage.modality_gap),
            _show(stage.feature_drift),
        ]
        for stage in run.results.diagnostics
    ]


def closest_anchors(run: ReportedRun) -> list[list[str]]:
    """The closest pairs of anchors: two classes, their cosine before and now, its change."""
    found = run.results.anchor_cosines
    names = run.class_names
    return [
        [
            f"{names[pair.classes[0]]} – {names[pair.classes[1]]}",
            f"{pair.before:.3f}",
            f"{pair.now:.3f}",
            f"{pair.now - pair.before:+.3f}",
        ]
        for pair in (found.closest if found else ())
    ]


def missing_anchors(run: ReportedRun) -> str:
    """The reason why no anchors from before learning are shown; empty if they are."""
    if run.results.anchor_cosines is not None:
        return ""
    if all(stage.anchor_cosine is None for stage in run.results.diagnostics):
        return "The classifier of this run has no anchors: it reads no class name."
    return (
        "These results are of an older version of the program, which kept no figure of the anchors "
        "before learning. A run of method zeroshot with the same protocol has those of the frozen "
        "CLIP."
    )


def _show(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.3f}"
