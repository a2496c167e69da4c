"""Tables of compared runs on a terminal.

A short comparison has a column per group and a row per task; a long one has a row per group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline import storage
from pipeline.reporting.protocols import Difference
from pipeline.reporting.run_groups import FinishedRun, RunGroup, RunTable
from pipeline.reporting.run_rows import FIGURES, Row, Spread, figure_of, figure_titles
from pipeline.text import format_percent

MARK = "†"  # of settings that were chosen on the evaluated images; a line below says so
_LABEL_SPACES = {
    "seen": "all classes seen so far",
    "task": "the classes seen so far, each image among those of its own task",
    "all": "the classes seen so far, each image among those of all tasks",
}
_STAGE_FIGURES = ("average_incremental_accuracy", "last_accuracy", "forgetting")


def stage_table(table: RunTable) -> Group:
    """A row per stage and summary figure, a column per group of runs.

    A dash stands for a figure that is unknown or excluded from the summary.
    """
    shown = Table()
    shown.add_column("after task", justify="right")
    for group in table.groups:
        times = f" ×{len(group.runs)}" if len(group.runs) > 1 else ""
        shown.add_column(f"{group.label}{times}{_mark(group)}", justify="right")
    for stage in range(table.results[0].n_learned):
        cells = ([run.stage_accuracy.micro[stage] for run in g.results] for g in table.groups)
        shown.add_row(str(stage + 1), *map(format_percent, cells))
    shown.add_section()
    titles = figure_titles(table.results)
    for key in [*_STAGE_FIGURES, *(key for key in titles if key not in FIGURES)]:
        cells = ([figure_of(run, key) for run in group.results] for group in table.groups)
        shown.add_row(titles[key], *map(format_percent, cells))
    return _framed(table, shown)


def summary_table(
    table: RunTable,
    rows: Sequence[Row],
    *,
    baseline: str | None = None,
    over_order: bool = False,
    single: bool = False,
) -> Group:
    """A row per group of runs: figures, differences to ``baseline``, repetitions and cost.

    With ``over_order`` a column counts the class orders; with ``single`` each row is one run and
    names its output.
    """
    shown = Table()
    shown.add_column("run", overflow="fold")
    compared = [key for key in _STAGE_FIGURES if baseline]
    titles = [*figure_titles(table.results).values(), *(f"Δ {FIGURES[key]}" for key in compared)]
    titles += ["seed" if single else "seeds", *(["orders"] if over_order else [])]
    for title in [*titles, "parameters", "seconds"]:
        shown.add_column(title, justify="right")
    if single:
        shown.add_column("output", overflow="fold")
    for row in rows:
        cells = [spread.text() for spread in row.figures.values()]
        cells += [_difference(row, key) for key in compared]
        cells += [str(row.seeds[0] if single else len(row.seeds))]
        cells += [str(row.n_orders)] if over_order else []
        cells += [f"{row.parameters:,}", f"{row.seconds:.1f}"]
        cells += [storage.redact(row.group.runs[0].output)] if single else []
        shown.add_row(f"{row.group.label}{_mark(row.group)}", *cells)
    notes = _pairings(rows, baseline, over_order) if baseline else []
    return _framed(table, shown, notes)


def table_notes(table: RunTable) -> list[str]:
    """The lines below a table: sources of settings, repeated outputs, skipped samples and steps."""
    runs = [run for group in table.groups for run in group.runs]
    return [*_sources(table.groups), *_copies(runs), *_skipped(runs)]


def describe_protocol(number: int, differences: Sequence[Difference]) -> str:
    """The heading of one table of several: the settings that the first table has differently."""
    changes = "; ".join(f"{setting} is {other}, not {one}" for setting, one, other in differences)
    return f"protocol {number}" + (f": {changes}" if changes else "")


def _difference(row: Row, key: str) -> str:
    return (row.differences[key] if row.differences else Spread(None, None)).text(signed=True)


def _pairings(rows: Sequence[Row], baseline: str, over_order: bool) -> list[str]:
    """How the differences were taken: over pairs of runs, or between the means."""
    pairs = "seed and class order" if over_order else "seed"
    row_of_run = [row for row in rows if baseline.rstrip("/") in row.group.outputs]
    if row_of_run:
        baseline = f"{row_of_run[0].group.label} ({storage.redact(baseline)})"
    compared = [row for row in rows if row.differences]
    lines = [f"Δ: difference to {baseline}, over runs of equal {pairs}"]
    lines += [
        f"{row.group.label}: no run has the {pairs} of a run of {baseline}; Δ is the difference of "
        "the means, unpaired, and its deviation √(a² + b²) of the two"
        for row in compared
        if not row.n_pairs
    ]
    return lines if any(row.n_pairs for row in compared) else lines[1:]


def _framed(table: RunTable, shown: Table, notes: Sequence[str] = ()) -> Group:
    # rich would wrap a title or caption of the table at the width of the table.
    return Group(Text(_title(table)), shown, *map(Text, [*notes, *table_notes(table)]))


def _title(table: RunTable) -> str:
    evaluation = table.results[0].evaluation
    classes = _LABEL_SPACES[evaluation.label_space]
    if evaluation.exclude_tasks:
        first = f"those of the first {evaluation.exclude_tasks} task(s)"
        classes += f" except {first}, which chose the settings"
    split = "" if evaluation.split == "test" else f" of {evaluation.split} images"
    return f"accuracy over {classes} (%{split})"


def _mark(group: RunGroup) -> str:
    return f" {MARK}" if any(run.tuning and run.tuning.note for run in group.results) else ""


def _sources(groups: Sequence[RunGroup]) -> Iterator[str]:
    """A line for each source of the settings of each group, with the mark if it has a note."""
    lines = {
        f"{f'{MARK} ' if run.tuning.note else ''}{group.label}: {run.tuning.summary}": None
        for group in groups
        for run in group.results
        if run.tuning
    }
    yield from lines


def _copies(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """A line for each output that repeats another one."""
    for run in runs:
        place = storage.redact(run.output)
        for copy in run.copies:
            yield f"{storage.redact(copy)} is the run of {place} again: counted once"


def _skipped(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """A line for each run that left out samples or optimizer steps."""
    for run in runs:
        samples, steps = len(run.results.skipped_samples), len(run.results.skipped_steps)
        held_out = sum(len(entry.skipped_samples) for entry in run.results.retention)
        more = f", and {held_out} sample(s) of held-out sets" if held_out else ""
        if samples or steps or held_out:
            place = storage.redact(run.output)
            yield f"{place} skipped {samples} sample(s) and {steps} step(s){more}"
