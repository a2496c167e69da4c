"""Compare finished runs: ``python -m pipeline.compare runs/tinar/*``.

A column gives all runs of one method: mean ± standard deviation, in per cent. The lines below the
table give the source of the settings, if a sweep has chosen them.
Exit status: 0, or 2 if an output is missing or unfinished, or if the runs differ in their number of
tasks, in the split of the test, or in the tasks that the summary excludes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pipeline.cli import build_parser, run_command
from pipeline.errors import DataError
from pipeline.output.results import RunResults, finished_results
from pipeline.text import format_percent

MARK = "†"  # of a method whose settings were chosen on the evaluated images; the line below says so
_FIGURES = (
    ("average", "average_incremental_accuracy"),
    ("last", "last_accuracy"),
    ("forgetting", "forgetting"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = build_parser("python -m pipeline.compare", __doc__)
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="folder or URL of a run")
    options = parser.parse_args(arguments)

    def compare() -> int:
        Console().print(comparison(options.outputs))
        return 0

    return run_command(compare)


def comparison(outputs: Sequence[str]) -> Group:
    """A table of the runs in ``outputs``: a row per stage and summary figure, a column per method.

    A dash stands for a figure that is unknown or excluded from the summary.

    Raises:
        DataError: an output holds no finished run, or the figures of the runs are not comparable.
    """
    by_method: dict[str, list[RunResults]] = {}
    for output in outputs:
        results = finished_results(output)
        by_method.setdefault(results.method, []).append(results)
    every = [run for runs in by_method.values() for run in runs]
    n_stages = _common({run.n_learned for run in every}, "have {} tasks")
    split = _common({run.evaluation.split for run in every}, "were tested on {} images")
    excluded = _common(
        {run.evaluation.exclude_tasks for run in every}, "exclude {} first tasks from the summary"
    )
    table = Table()
    table.add_column("after task", justify="right")
    for method, runs in by_method.items():
        mark = f" {MARK}" if any(run.tuning and run.tuning.note for run in runs) else ""
        times = f" ×{len(runs)}" if len(runs) > 1 else ""
        table.add_column(f"{method}{times}{mark}", justify="right")
    for stage in range(n_stages):
        cells = ([run.stage_accuracy.micro[stage] for run in runs] for runs in by_method.values())
        table.add_row(str(stage + 1), *map(format_percent, cells))
    table.add_section()
    for title, key in _FIGURES:
        cells = ([getattr(run, key) for run in runs] for runs in by_method.values())
        table.add_row(title, *map(format_percent, cells))
    # rich would wrap a title or caption of the table at the width of the table.
    return Group(Text(_title(split, excluded)), table, *map(Text, _sources(by_method)))


def _common(found: set[Any], words: str) -> Any:
    """The value that all runs share; ``words`` describe different ones."""
    if len(found) > 1:
        differing = words.format(" and ".join(map(str, sorted(found))))
        raise DataError(f"the runs {differing}; compare runs with the same tasks and evaluation")
    return next(iter(found))


def _title(split: str, excluded: int) -> str:
    classes = "all classes seen so far"
    if excluded:
        classes += f" except those of the first {excluded} task(s), which chose the settings"
    return f"accuracy over {classes} (%{'' if split == 'test' else f' of {split} images'})"


def _sources(by_method: Mapping[str, Sequence[RunResults]]) -> Iterator[str]:
    """A line for each source of the settings of each method, with the mark if it has a note."""
    for method, runs in by_method.items():
        for tuning in dict.fromkeys(run.tuning for run in runs if run.tuning):
            yield f"{f'{MARK} ' if tuning.note else ''}{method}: {tuning.summary}"


if __name__ == "__main__":
    sys.exit(main())
