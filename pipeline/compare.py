"""Put finished runs side by side: ``python -m pipeline.compare runs/tinar/*``.

Runs of one method are taken together: mean ± standard deviation over them, in per cent. Below the
table stands how the settings were found, if a sweep has found them.
Exit status: 0, or 2 if an output is missing or unfinished, or if it was tested on other tasks or
another split than the rest, or leaves other tasks out of its summary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pipeline.config import TuningConfig
from pipeline.errors import DataError, PipelineError
from pipeline.results import read_results

MARK = "†"  # of a column whose figures are not what they seem
_FIGURES = (
    ("average", "average_incremental_accuracy"),
    ("last", "last_accuracy"),
    ("forgetting", "forgetting"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="folder or URL of a run")
    try:
        Console().print(comparison(parser.parse_args(arguments).outputs))
    except PipelineError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def comparison(outputs: Sequence[str]) -> Group:
    """A table of the runs in ``outputs``: a row per stage and per summary, a column per method.

    A dash stands for what is not known or left out of the summary.

    Raises:
        DataError: an output holds no finished run, or their figures mean different things.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for output in outputs:
        results = _finished(output)
        by_method.setdefault(results["method"], []).append(results)
    every = [run for runs in by_method.values() for run in runs]
    n_stages = _common({len(r["accuracy_matrix"]) for r in every}, "have {} tasks")
    split = _common({r["evaluation"]["split"] for r in every}, "were tested on {} images")
    excluded = _common(
        {r["evaluation"]["exclude_tasks"] for r in every}, "leave {} first tasks out of the summary"
    )
    table = Table()
    table.add_column("after task", justify="right")
    for method, runs in by_method.items():
        mark = f" {MARK}" if any(r["tuning"] and r["tuning"]["note"] for r in runs) else ""
        times = f" ×{len(runs)}" if len(runs) > 1 else ""
        table.add_column(f"{method}{times}{mark}", justify="right")
    for stage in range(n_stages):
        cells = ([r["stage_accuracy"]["micro"][stage] for r in runs] for runs in by_method.values())
        table.add_row(str(stage + 1), *map(_spread, cells))
    table.add_section()
    for title, key in _FIGURES:
        table.add_row(title, *(_spread([r[key] for r in runs]) for runs in by_method.values()))
    # not as the table's own title and caption, which would be as narrow as the table
    return Group(Text(_title(split, excluded)), table, *map(Text, _origins(by_method)))


def _common(found: set[Any], words: str) -> Any:
    """The one value that all runs share."""
    if len(found) > 1:
        differing = words.format(" and ".join(map(str, sorted(found))))
        raise DataError(f"the runs {differing}; compare those of one sequence and one kind")
    return next(iter(found))


def _title(split: str, excluded: int) -> str:
    seen = "all classes seen so far"
    if excluded:
        seen += f" but those of the first {excluded} task(s), which chose the settings"
    return f"accuracy over {seen} (%{'' if split == 'test' else f' of {split} images'})"


def _origins(by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """For each method how its settings were found; marked where a reader must know of it."""
    for method, runs in by_method.items():
        tunings = [TuningConfig.model_validate(run["tuning"]) for run in runs if run["tuning"]]
        for tuning in dict.fromkeys(tunings):
            yield f"{f'{MARK} ' if tuning.note else ''}{method}: {tuning.summary}"


def _finished(output: str) -> dict[str, Any]:
    results = read_results(output)
    if results is None or results["status"] != "finished":
        found = "no results.json" if results is None else f"a run that is {results['status']}"
        raise DataError(f"{output}: holds {found}; only finished runs can be compared")
    return results


def _spread(fractions: Sequence[float | None]) -> str:
    if None in fractions:
        return "–"
    percent = [100 * fraction for fraction in fractions]
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return f"{fmean(percent):.1f} ± {stdev(percent):.1f}"


if __name__ == "__main__":
    sys.exit(main())
