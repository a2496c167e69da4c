"""Compare finished runs: mean ± standard deviation over seeds, in per cent.

Runs share a table only if they follow the same protocol: data, class order, tasks, class names,
templates, transforms, weights and evaluation. Otherwise the command refuses and names the setting
that differs. Runs that differ in the method or its settings are separate rows, named by exactly
these settings. See docs/COMPARE.md.
Exit status: 0; 2 if an output is missing or unfinished, or if the runs are not comparable; 75 if
stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Group
from rich.text import Text

from pipeline import storage
from pipeline.cli import add_deadline, build_parser, run_command, stopped_by_signals
from pipeline.errors import ConfigError
from pipeline.output.results import NAME
from pipeline.reporting.run_files import Tables, to_csv, to_json, to_latex
from pipeline.reporting.run_groups import group_runs
from pipeline.reporting.run_rows import build_rows, check_baseline
from pipeline.reporting.run_tables import (
    describe_protocol,
    stage_table,
    summary_table,
    table_notes,
)
from pipeline.text import print_wide

_STDOUT = "-"
MOST_COLUMNS = 4  # of groups beside each other; more groups are rows
_EXAMPLE = """\
Examples:
  python -m pipeline.compare runs/tinar/*
  python -m pipeline.compare runs/tinar/* --baseline zeroshot --csv runs/tinar.csv
  python -m pipeline.compare runs/* --group-by protocol --summary
  python -m pipeline.compare runs/* --baseline runs/tinar/zeroshot-1 --latex > table.tex
"""
_FORMATS: dict[str, Callable[[Tables], str]] = {
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _build_parser().parse_args(arguments)
    return run_command(lambda: _run(options))


def comparison(outputs: Sequence[str]) -> Group:
    """A table of the runs in ``outputs``: a row per task and figure, a column per group of runs.

    Raises:
        DataError: an output holds no finished run, or the runs are not comparable.
    """
    (table,) = group_runs(outputs)
    return stage_table(table)


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.compare", __doc__ or "", _EXAMPLE)
    add = parser.add_argument
    add("outputs", nargs="+", metavar="OUTPUT", help="folder or URL of a finished run")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--stages",
        action="store_true",
        help=f"a row per task, a column per method; the default up to {MOST_COLUMNS} of them",
    )
    shape.add_argument("--summary", action="store_true", help="a row per method and its settings")
    shape.add_argument(
        "--runs", "--per-run", action="store_true", help="a row per run, without means"
    )
    add("--group-by", choices=["protocol"], help="a table per protocol instead of a refusal")
    add("--over", choices=["order"], help="average runs of different class orders too")
    add(
        "--baseline",
        metavar="NAME",
        help="show differences to this row, method or output, over equal seeds if there are any",
    )
    for name, title in (("csv", "CSV"), ("json", "JSON"), ("latex", "LaTeX")):
        add(
            f"--{name}",
            metavar="FILE",
            nargs="?",
            const=_STDOUT,
            help=f"also write the rows as {title}; without FILE print them instead of the table",
        )
    add_deadline(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    with stopped_by_signals(), storage.patience(options.deadline), storage.giving_up_early():
        return _compare(options)


def _compare(options: argparse.Namespace) -> int:
    files = {name: file for name in _FORMATS if (file := getattr(options, name)) is not None}
    _check_files(files)
    tables = group_runs(
        options.outputs,
        by_protocol=options.group_by == "protocol",
        over_order=options.over == "order",
        single=options.runs,
    )
    if options.baseline:
        check_baseline(tables, options.baseline)
    with_rows = [(table, build_rows(table, options.baseline)) for table in tables]
    if _STDOUT in files.values():
        sys.stderr.writelines(f"{line}\n" for table in tables for line in table_notes(table))
    else:
        _show(with_rows, options)
    for name, file in files.items():
        text = _FORMATS[name](with_rows)
        if file == _STDOUT:
            sys.stdout.write(text)
        else:
            storage.write_atomically(file, text.encode())
    return 0


def _check_files(files: Mapping[str, str]) -> None:
    """Raise ConfigError if two formats are printed, or if a run stands in the place of a file."""
    printed = [name for name, file in files.items() if file == _STDOUT]
    if len(printed) > 1:
        names = " and ".join(f"--{name}" for name in printed)
        raise ConfigError(f"{names} cannot both be printed; give a FILE to one of them")
    for name, file in files.items():
        if file != _STDOUT and storage.exists(storage.join(file, NAME)):
            raise ConfigError(
                f"--{name}: {storage.redact(file)} is the output of a run, which no file may "
                f"replace; write --{name} behind the outputs, or --{name} {_STDOUT}"
            )


def _show(with_rows: Tables, options: argparse.Namespace) -> None:
    for number, (table, rows) in enumerate(with_rows, start=1):
        if len(with_rows) > 1:
            print_wide(Text(describe_protocol(number, table.differences)))
        wants_rows = options.summary or options.runs or options.baseline
        if options.stages or not (wants_rows or len(rows) > MOST_COLUMNS):
            print_wide(stage_table(table))
        else:
            print_wide(
                summary_table(
                    table,
                    rows,
                    baseline=options.baseline,
                    over_order=options.over == "order",
                    single=options.runs,
                )
            )


if __name__ == "__main__":
    sys.exit(main())
