"""Write a page about a run, or a page that compares several runs: one file for a browser.

The page of one run shows accuracies by task and by class, confusions and confident mistakes with
their images, anchors, losses, time, settings and versions; the run may still be running. The page
of several finished runs shows mean ± standard deviation over seeds, and curves in one chart. The
page opens from disk, needs no network and contains no path to another file. See docs/REPORT.md.
Exit status: 0; 2 if an output is missing or cannot be compared; 75 if stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.cli import add_deadline, build_parser, run_command, stopped_by_signals
from pipeline.errors import ConfigError
from pipeline.run_source import RUN, check_source

if TYPE_CHECKING:
    from pipeline.reporting.run_groups import RunTable
    from pipeline.reporting.run_rows import Row
    from pipeline.run_report.comparison import ComparedGroup, ComparedTable

_PAGE = "report.html"
_EXAMPLE = """\
Examples:
  python -m pipeline.report runs/try
  python -m pipeline.report runs/tinar/* --out tinar.html --baseline zeroshot
  python -m pipeline.report s3://bucket/runs/a s3://bucket/runs/b --out s3://bucket/report.html
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _build_parser().parse_args(arguments)
    return run_command(lambda: _run(options))


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.report", __doc__ or "", _EXAMPLE)
    add = parser.add_argument
    add("outputs", nargs="+", metavar="RUN", help="folder or URL of a run")
    add(
        "--out",
        metavar="FILE",
        help=f"file or URL of the page; by default RUN/{_PAGE}, or {_PAGE} for several runs",
    )
    add(
        "--baseline",
        metavar="METHOD-or-RUN",
        help="show differences to the runs of this method, or to this run and its other seeds",
    )
    add("--over", choices=["order"], help="average runs of different class orders too")
    add_deadline(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    with stopped_by_signals(), storage.patience(options.deadline), storage.giving_up_early():
        outputs = list(dict.fromkeys(options.outputs))
        for output in outputs:
            check_source(output, RUN)
        from pipeline.run_report.page import write_report  # with the libraries that read images

        if len(outputs) == 1:
            if options.baseline or options.over:
                raise ConfigError("--baseline and --over compare runs; give two runs or more")
            target = options.out or storage.join(outputs[0], _PAGE)
            write_report(outputs, target)
        else:
            target = options.out or _PAGE
            tables = _compare(outputs, options.baseline, over_order=options.over == "order")
            write_report(outputs, target, tables=tables)
    print(storage.redact(target))
    return 0


def _compare(
    outputs: Sequence[str], baseline: str | None, *, over_order: bool
) -> list[ComparedTable]:
    """The groups of the runs, as ``pipeline.compare`` makes them: a table for each protocol."""
    from pipeline.reporting.run_groups import group_runs
    from pipeline.reporting.run_rows import build_rows, check_baseline
    from pipeline.reporting.run_tables import describe_protocol
    from pipeline.run_report.comparison import ComparedTable

    tables = group_runs(outputs, by_protocol=True, over_order=over_order)
    if baseline:
        baseline = _label_of(baseline, tables)
        check_baseline(tables, baseline)
    compared = []
    for number, table in enumerate(tables, start=1):
        rows = build_rows(table, baseline)
        has_baseline = any(row.differences for row in rows)
        label = next((r.group.label for r in rows if has_baseline and not r.differences), "")
        heading = describe_protocol(number, table.differences) if len(tables) > 1 else ""
        compared.append(ComparedTable(heading, list(map(_group, rows)), label))
    return compared


def _label_of(baseline: str, tables: Sequence[RunTable]) -> str:
    """The label of the group that has the run ``baseline``, or the name that was given."""
    for table in tables:
        for group in table.groups:
            if any(baseline in (run.output, *run.copies) for run in group.runs):
                return group.label
    return baseline


def _group(row: Row) -> ComparedGroup:
    from pipeline.reporting.run_rows import FIGURES
    from pipeline.run_report.comparison import ComparedGroup

    notes = {run.tuning.note: None for run in row.group.results if run.tuning and run.tuning.note}
    return ComparedGroup(
        label=row.group.label,
        seeds=", ".join(map(str, row.seeds)),
        figures=[row.figures[key].text() for key in FIGURES],
        differences=[row.differences[key].text(signed=True) for key in FIGURES]
        if row.differences and row.n_pairs  # the page says that they are over equal seeds
        else None,
        parameters=row.parameters,
        seconds=row.seconds,
        runs={run.output: run.results for run in row.group.runs},
        note="; ".join(map(str, notes)),
    )


if __name__ == "__main__":
    sys.exit(main())
