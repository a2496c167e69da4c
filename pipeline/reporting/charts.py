"""The pictures of a sweep as SVG: parameters against the metric, and the course of every trial.

Everything that belongs to a trial bears its number as ``data-trial``. What colour tells is told a
second time: the rank by the width of a line, the status by its dashes and its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.reporting.markup import Element, element
from pipeline.reporting.scale import scale_for, spanning
from pipeline.sweep.config import Metric
from pipeline.sweep.progress import SYMBOLS, parameter_labels
from pipeline.sweep.space import Domain
from pipeline.sweep.trial_table import TaskReport, TrialRecord, rank

N_SHADES = 5  # of finished trials, by rank; the last is the best
_N_NAMED = 3  # trials whose number stands beside their line
_MANY = 60  # trials, from which on lines are drawn so that those below shine through
_UNFINISHED = ("stopped", "failed", "running")


@dataclass(frozen=True)
class Frame:
    """Where an axis from 0 to 1 lies in a picture, in pixels; ``bottom`` is larger than ``top``."""

    left: float
    right: float
    top: float
    bottom: float

    def x(self, position: float) -> float:
        """From left to right."""
        return round(self.left + position * (self.right - self.left), 1)

    def y(self, position: float) -> float:
        """From bottom to top."""
        return round(self.bottom - position * (self.bottom - self.top), 1)


class Charts:
    """The pictures of some trials; ``told`` says a trial in a line, by number."""

    def __init__(
        self,
        records: Sequence[TrialRecord],
        domains: Mapping[str, Domain],
        metric: Metric,
        told: Mapping[int, str],
    ) -> None:
        self._metric: Metric = metric
        self._told = told
        ranked = rank(records, metric)
        self._finished = [record for record in ranked if record.status == "finished"]
        self._backwards = ranked[::-1]  # the best is drawn last, above the others
        self._place = {record.number: place for place, record in enumerate(self._backwards)}
        self._shade = {
            record.number: N_SHADES - 1 - N_SHADES * place // len(self._finished)
            for place, record in enumerate(self._finished)
        }
        found = dict.fromkeys(key for record in records for key in record.parameters)
        self._keys = [*(key for key in domains if key in found), *(found.keys() - domains.keys())]
        self._labels = parameter_labels(records)
        self._scales = {
            key: scale_for(
                [r.parameters[key] for r in records if key in r.parameters], domains.get(key)
            )
            for key in self._keys
        }
        self._values = {record.number: record.value(metric) for record in records}
        values = [100 * self._values[record.number] for record in self._finished]
        self._value_scale = spanning(values) if values else None

    def parallel_coordinates(self) -> Element:
        """An axis for each parameter and one for the metric; a line for each trial."""
        step, slot = max(140, min(220, 920 / max(1, len(self._keys)))), 26
        missing = [s for s in _UNFINISHED if any(r.status == s for r in self._backwards)]
        is_drawn = all(key in r.parameters for r in self._backwards for key in self._keys)
        slots = max(len(missing), 0 if is_drawn else 1)
        frame = Frame(80, 80 + step * len(self._keys), 52, 312)
        height = frame.bottom + 22 + slot * slots
        chart = _picture(frame.right + 170, height, "Parameters of each trial and its metric")
        depth = {name: frame.bottom + 8 + slot * (n + 1) for n, name in enumerate(missing)}
        for number, key in enumerate(self._keys):
            ticks = self._scales[key].ticks()
            chart.append(_axis(frame, frame.left + step * number, self._label(key), ticks, key))
            if any(key not in record.parameters for record in self._backwards):
                here = (frame.left + step * number - 8, frame.bottom + 12 + slot)
                chart.append(_text(*here, "not drawn", "tick right"))
        ticks = self._value_scale.ticks() if self._value_scale else []
        title = self._metric.replace("_", " ")
        chart.append(_axis(frame, frame.right, f"{title} (%)", ticks, title, is_last=True))
        for name, y in depth.items():
            chart.append(_text(frame.right + 10, y + 4, name, f"tick {name}"))
        for record in self._backwards:
            points = [
                (frame.left + step * n, self._height(frame, record, key, slot))
                for n, key in enumerate(self._keys)
            ]
            if record.status == "finished":
                points.append((frame.right, frame.y(self._level(record))))
            else:
                points.append((frame.right, depth[record.status]))
            chart.append(self._line(record, [points]))
        ends = {r.number: frame.y(self._level(r)) for r in self._finished[:_N_NAMED]}
        self._name(chart, {number: (frame.right + 48, y) for number, y in ends.items()})
        return chart

    def learning_curves(self, n_tasks: int, repetitions: Sequence[str]) -> Element | None:
        """The metric after each task; repetitions of ``n_tasks`` tasks stand side by side."""
        reports = [report for record in self._backwards for report in record.reports]
        if not reports:
            return None
        scale = spanning([100 * self._worth(report) for report in reports])
        n_points = n_tasks * len(repetitions)
        frame = Frame(56, 56 + max(640, min(1100, 64 * n_points)), 34, 304)
        chart = _picture(frame.right + 84, frame.bottom + 44, "Metric after each task")
        for position, label in scale.ticks():
            y = frame.y(position)
            chart.append(_rule(frame.left, y, frame.right, y, "grid"))
            chart.append(_text(frame.left - 8, y + 4, label, "tick right"))

        def x(tasks_done: int) -> float:
            return frame.x((tasks_done - 0.5) / n_points)

        for done in range(1, n_points + 1):
            label = str((done - 1) % n_tasks + 1)
            chart.append(_text(x(done), frame.bottom + 18, label, "tick middle"))
        for number, name in enumerate(repetitions):
            edge = frame.x(number / len(repetitions))
            if number:
                chart.append(_rule(edge, frame.top - 22, edge, frame.bottom, "edge"))
            if len(repetitions) > 1:
                chart.append(_text(edge + 6, frame.top - 10, name, "tick"))
        middle = (frame.left + frame.right) / 2
        chart.append(_text(middle, frame.bottom + 38, "tasks learned", "tick middle"))
        ends = {}
        for record in self._backwards:
            curves: dict[int, list[tuple[float, float]]] = {}
            for report in record.reports:
                y = frame.y(scale.position(100 * self._worth(report)))
                curves.setdefault(report.repetition, []).append((x(report.tasks_done), y))
            if curves:
                chart.append(self._line(record, list(curves.values()), dotted=True))
                ends[record.number] = [*curves.values()][-1][-1]
        named = [record.number for record in self._finished[:_N_NAMED]]
        self._name(chart, {number: (frame.right + 6, ends[number][1]) for number in named})
        return chart

    def slices(self) -> list[Element]:
        """A picture for each parameter: its value, and the metric of the trials that finished.

        Below the axis lie, without a metric, the trials that did not.
        """
        return [self._slice(key) for key in self._keys] if self._value_scale else []

    def _slice(self, key: str) -> Element:
        frame = Frame(44, 264, 30, 170)
        chart = _picture(284, 240, f"{key} against the metric")
        chart.append(_text(frame.left, 16, self._label(key), "name", key))
        for position, label in self._value_scale.ticks():
            y = frame.y(position)
            chart.append(_rule(frame.left, y, frame.right, y, "grid"))
            chart.append(_text(frame.left - 6, y + 4, label, "tick right"))
        ticks = self._scales[key].ticks()
        for position, label in ticks:
            wanted = _cut(label, int(220 / max(1, len(ticks)) / 6))
            chart.append(_text(frame.x(position), 216, wanted, "tick middle", label))
        chart.append(_rule(frame.left, 200, frame.right, 200, "axis"))
        for record in self._backwards:
            if key in record.parameters:
                x = frame.x(self._position(record, key))
                y = frame.y(self._level(record)) if record.status == "finished" else 189
                chart.append(self._group(record, self._mark(record, x, y)))
        return chart

    def _label(self, key: str) -> str:
        return self._labels[key]

    def _worth(self, report: TaskReport) -> float:
        return getattr(report, self._metric)

    def _level(self, record: TrialRecord) -> float:
        """Where a finished trial lies on the axis of the metric."""
        return self._value_scale.position(100 * self._values[record.number])

    def _position(self, record: TrialRecord, key: str) -> float:
        """Where a trial lies on a parameter's axis; those of one choice lie side by side."""
        scale = self._scales[key]
        position = scale.position(record.parameters[key])
        if scale.places:
            aside = (self._place[record.number] + 0.5) / len(self._place) - 0.5
            position += 0.6 / len(scale.places) * aside
        return position

    def _height(self, frame: Frame, record: TrialRecord, key: str, slot: float) -> float:
        if key not in record.parameters:
            return frame.bottom + 8 + slot
        return frame.y(self._position(record, key))

    def _class(self, record: TrialRecord) -> str:
        best = " best" if self._finished and record is self._finished[0] else ""
        shade = self._shade.get(record.number)
        many = " many" if len(self._place) > _MANY and not best else ""
        return f"trial {record.status}{'' if shade is None else f' shade{shade}'}{best}{many}"

    def _group(self, record: TrialRecord, *children: Element) -> Element:
        """What belongs to one trial."""
        attributes = {"class": self._class(record), "data-trial": record.number}
        return element("g", attributes, element("title", {}, self._told[record.number]), *children)

    def _line(
        self,
        record: TrialRecord,
        curves: Sequence[Sequence[tuple[float, float]]],
        *,
        dotted: bool = False,
    ) -> Element:
        """A trial's line, with a broad invisible one that is easy to point at."""
        path = " ".join(
            f"{'L' if n else 'M'}{x:g} {y:g}" for curve in curves for n, (x, y) in enumerate(curve)
        )
        dots = [point for curve in curves for point in curve] if dotted else []
        return self._group(
            record,
            *(element("path", {"class": kind, "d": path}) for kind in ("reach", "line")),
            *(_circle(*point, 2.5, "dot") for point in dots),
            self._mark(record, *curves[-1][-1]),
        )

    def _name(self, chart: Element, places: Mapping[int, tuple[float, float]]) -> None:
        """Write the best trials' numbers beside their ends, none over another."""
        lowest = float("-inf")
        for number, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
            lowest = max(y, lowest + 14)
            kind = "named best" if number == self._finished[0].number else "named"
            chart.append(_text(x, lowest + 4, f"trial {number}", kind))

    def _mark(self, record: TrialRecord, x: float, y: float) -> Element:
        """The end of a trial: a disc if it finished, else the sign of its status."""
        if record.status == "finished":
            return _circle(x, y, 4.5, "end")
        return _text(x, y + 4, SYMBOLS[record.status], f"end middle {record.status}")


def _picture(width: float, height: float, label: str) -> Element:
    attributes = {"viewBox": f"0 0 {width:g} {height:g}", "width": width, "height": height}
    return element("svg", {**attributes, "role": "group", "aria-label": label})


def _axis(
    frame: Frame,
    x: float,
    label: str,
    ticks: Sequence[tuple[float, str]],
    name: str,
    *,
    is_last: bool = False,
) -> Element:
    """An upright axis with its name above it and its ticks beside it."""
    side, where = (8, "tick") if is_last else (-8, "tick right")
    marks = [
        _text(x + side, frame.y(position) + 4, _cut(text, 17), where, text)
        for position, text in ticks
    ]
    return element(
        "g",
        {},
        _text(x + 160, frame.top - 22, label, "name right", name)
        if is_last
        else _text(x, frame.top - 22, _cut(label, 21), "name middle", name),
        _rule(x, frame.top, x, frame.bottom, "axis"),
        *marks,
    )


def _text(x: float, y: float, text: str, kind: str, whole: str | None = None) -> Element:
    """A word in a picture; ``whole`` is what it is short for."""
    title = element("title", {}, whole) if whole not in (None, text) else None
    attributes = {"x": round(x, 1), "y": round(y, 1), "class": kind}
    return element("text", attributes, text, title)


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def _circle(x: float, y: float, radius: float, kind: str) -> Element:
    return element("circle", {"cx": x, "cy": y, "r": radius, "class": kind})


def _cut(text: str, length: int) -> str:
    """The end of a long text tells keys and values apart better than its beginning."""
    length = max(length, 4)
    return text if len(text) <= length else f"…{text[1 - length :]}"
