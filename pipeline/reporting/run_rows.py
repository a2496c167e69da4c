"""The figures of each group of runs: means, and differences to a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from pipeline.errors import DataError
from pipeline.output.results import RunResults
from pipeline.reporting.run_groups import FinishedRun, RunGroup, RunTable
from pipeline.text import did_you_mean, format_spread

# The title of each figure by its key in results.json.
FIGURES = {
    "average_incremental_accuracy": "average",
    "last_accuracy": "last",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
}
# Those that only runs with evaluation.future_tasks have, see pipeline.output.transfer_metrics.
_TRANSFER_FIGURES = {
    "transfer": "transfer",
    "average_over_matrix": "average over matrix",
    "last_over_tasks": "last over tasks",
}


def figure_titles(runs: Sequence[RunResults]) -> dict[str, str]:
    """The title of each figure that one of the runs has, by its key."""
    more = _TRANSFER_FIGURES if any(run.transfer for run in runs) else {}
    sets = {entry.key: entry.index for run in runs for entry in run.retention}
    names = {key: index.rstrip("/").rpartition("/")[2] for key, index in sets.items()}
    if len({*names.values()}) < len(names):
        names = {key: f"{name} {key}" for key, name in names.items()}
    held_out = {f"held_out_{key}": f"held-out {name}" for key, name in names.items()}
    return {**FIGURES, **more, **held_out}


def figure_of(run: RunResults, key: str) -> float | None:
    """A figure by its key in :func:`figure_titles`; None if the run does not have it.

    The accuracy on a held-out set is that after the last task.
    """
    if key in _TRANSFER_FIGURES:
        value: float | None = getattr(run.transfer, key, None)
        return value
    for entry in run.retention:
        if key == f"held_out_{entry.key}":
            is_last = len(entry.accuracy) == run.n_learned + 1
            return entry.accuracy[-1] if is_last else None
    value = getattr(run, key, None)
    return value


class Spread(NamedTuple):
    """Mean and standard deviation of fractions; None if unknown, or of fewer than two."""

    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """The spread of ``values``; unknown if one of them is, or if there are none."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return cls(None, None)
        return cls(fmean(known), stdev(known) if len(known) > 1 else None)

    def minus(self, other: Spread) -> Spread:
        """The difference of two independent means; its standard deviation is √(a² + b²)."""
        if self.mean is None or other.mean is None:
            return Spread(None, None)
        known = self.deviation is not None and other.deviation is not None
        deviation = math.hypot(self.deviation or 0, other.deviation or 0) if known else None
        return Spread(self.mean - other.mean, deviation)

    def text(self, *, signed: bool = False) -> str:
        """In per cent, ``31.3 ± 0.2``; with ``signed``, a gain as ``+4.6 ± 0.2``."""
        text = format_spread(*self)
        return f"+{text}" if signed and self.mean is not None and text[0] != "-" else text


@dataclass(frozen=True, eq=False)
class Row:
    """One group of runs with its figures; ``differences`` are those to the baseline, if any."""

    group: RunGroup
    figures: dict[str, Spread]
    differences: dict[str, Spread] | None  # None without a baseline, or for the baseline itself
    n_pairs: int  # runs that the baseline has too, with equal seed; 0: the means are compared
    parameters: int  # most trained in one task
    seconds: float  # training and tests of all tasks, mean over the runs

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, each once."""
        return sorted({run.repetition[0] for run in self.group.runs})

    @property
    def n_orders(self) -> int:
        """The number of class orders of the runs."""
        return len({run.repetition[1] for run in self.group.runs})


def build_rows(table: RunTable, baseline: str | None = None) -> list[Row]:
    """A row per group; ``baseline`` is a label, the method of only one group, or an output.

    A difference is taken between runs of equal seed and class order; its mean is over those pairs.
    Where there is no pair, it is the difference of the means, see :meth:`Spread.minus`.
    """
    reference = _reference(table, baseline) if baseline else []
    keys = [*figure_titles(table.results)]
    return [_build_row(group, reference, keys) for group in table.groups]


def check_baseline(tables: Sequence[RunTable], baseline: str) -> None:
    """Raise DataError if no table has the group ``baseline``."""
    labels = list(dict.fromkeys(group.label for table in tables for group in table.groups))
    if not any(_reference(table, baseline) for table in tables):
        raise DataError(
            f"--baseline: {baseline!r} names no single row or run; {did_you_mean(baseline, labels)}"
        )


def _reference(table: RunTable, baseline: str) -> list[FinishedRun]:
    """The runs of the groups with the label ``baseline``, or else of the only one of the method.

    If ``baseline`` is an output, the runs of its group.
    """
    for group in table.groups:
        if any(baseline.rstrip("/") == each.rstrip("/") for each in group.outputs):
            return group.runs
    labels = {group.label for group in table.groups if group.method == baseline}
    label = next(iter(labels)) if baseline not in labels and len(labels) == 1 else baseline
    return [run for group in table.groups if group.label == label for run in group.runs]


def _build_row(group: RunGroup, reference: Sequence[FinishedRun], keys: Sequence[str]) -> Row:
    pairs = list(_pairs(group.runs, reference))
    figures = _spreads(group.results, keys)
    differences = {
        key: Spread.of([_difference(run, other, key) for run, other in pairs]) for key in keys
    }
    if reference and not pairs:
        means = _spreads([run.results for run in reference], keys)
        differences = {key: figures[key].minus(means[key]) for key in keys}
    is_baseline = group.runs[0] in reference
    return Row(
        group,
        figures=figures,
        differences=differences if reference and not is_baseline else None,
        n_pairs=len(pairs),
        parameters=max(run.n_trained_parameters for run in group.results),
        seconds=fmean(run.seconds for run in group.results),
    )


def _spreads(runs: Sequence[RunResults], keys: Sequence[str]) -> dict[str, Spread]:
    """The spread of each figure over some runs."""
    return {key: Spread.of([figure_of(run, key) for run in runs]) for key in keys}


def _pairs(
    runs: Sequence[FinishedRun], reference: Sequence[FinishedRun]
) -> Iterator[tuple[RunResults, RunResults]]:
    """The runs with the run of equal seed and class order in ``reference``, if there is one."""
    by_repetition = {run.repetition: run.results for run in reference}
    for run in runs:
        if run.repetition in by_repetition:
            yield run.results, by_repetition[run.repetition]


def _difference(run: RunResults, reference: RunResults, key: str) -> float | None:
    one, other = figure_of(run, key), figure_of(reference, key)
    return None if one is None or other is None else one - other
