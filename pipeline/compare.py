"""Put finished runs side by side: ``python -m pipeline.compare runs/tinar/*``.

Runs of one method are taken together: mean ± standard deviation over them, in per cent.
Exit status: 0, or 2 if an output is missing, unfinished, or of other tasks than the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import DataError, PipelineError
from pipeline.results import read_results

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


def comparison(outputs: Sequence[str]) -> Table:
    """A table of the runs in ``outputs``: a row per stage and per summary, a column per method.

    Raises:
        DataError: an output holds no finished run, or their tasks differ in number.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for output in outputs:
        results = _finished(output)
        by_method.setdefault(results["method"], []).append(results)
    n_stages = {len(r["accuracy_matrix"]) for runs in by_method.values() for r in runs}
    if len(n_stages) > 1:
        raise DataError(f"the runs have {sorted(n_stages)} tasks; compare those of one sequence")
    table = Table(title="accuracy over all classes seen so far (%)", title_justify="left")
    table.add_column("after task", justify="right")
    for method, runs in by_method.items():
        table.add_column(f"{method} ×{len(runs)}" if len(runs) > 1 else method, justify="right")
    for stage in range(n_stages.pop()):
        cells = ([r["stage_accuracy"]["micro"][stage] for r in runs] for runs in by_method.values())
        table.add_row(str(stage + 1), *map(_spread, cells))
    table.add_section()
    for title, key in _FIGURES:
        table.add_row(title, *(_spread([r[key] for r in runs]) for runs in by_method.values()))
    return table


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
