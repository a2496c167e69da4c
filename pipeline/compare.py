"""Compare finished runs: mean ± standard deviation over seeds, in per cent.

Runs share a table only if they follow the same protocol: data, class order, tasks, class names,
templates, transforms, weights and evaluation. Otherwise the command refuses and names the setting
that differs. Runs that differ in the method or its settings are separate rows, named by exactly
these settings. --published adds public results of the same protocol. See docs/COMPARE.md.
Exit status: 0; 2 if an output is missing or unfinished, or if the runs are not comparable; 75 if
stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.text import Text

from pipeline import storage
from pipeline.catalogue.published import PublishedResult, read_published
from pipeline.cli import add_deadline, build_parser, run_command, stopped_by_signals
from pipeline.errors import ConfigError
from pipeline.output.results import NAME
from pipeline.reporting.published import PublishedRows, find_published
from pipeline.reporting.published_tables import published_notes, published_tables
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
  python -m pipeline.compare runs/cifar100/* --published
"""
_FORMATS = ("csv", "json", "latex")


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
    add("--published", action="store_true", help="also show public results on the benchmark(s)")
    add(
        "--published-file",
        metavar="FILE",
        action="append",
        default=[],
        help="as --published, with the results in this YAML file too; may be repeated",
    )
    add_deadline(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    with stopped_by_signals(), storage.patience(options.deadline), storage.giving_up_early():
        return _compare(options)


def _compare(options: argparse.Namespace) -> int:
    files = {name: file for name in _FORMATS if (file := getattr(options, name)) is not None}
    _check_files(files)
    published = _read_published(options)
    tables = group_runs(
        options.outputs,
        by_protocol=options.group_by == "protocol",
        over_order=options.over == "order",
        single=options.runs,
    )
    if options.baseline:
        check_baseline(tables, options.baseline)
    with_rows = [(table, build_rows(table, options.baseline)) for table in tables]
    found = [] if published is None else [find_published(table, published) for table in tables]
    if _STDOUT in files.values():
        notes = [line for table in tables for line in table_notes(table)]
        notes += [line for each in found for line in published_notes(each)]
        sys.stderr.writelines(f"{line}\n" for line in notes)
    else:
        _show(with_rows, found, options)
    for name, file in files.items():
        text = _format(name, with_rows, found)
        if file == _STDOUT:
            sys.stdout.write(text)
        else:
            storage.write_atomically(file, text.encode())
    return 0


def _read_published(options: argparse.Namespace) -> Sequence[PublishedResult] | None:
    """The published results that are wanted; None: none.

    Raises:
        ConfigError: a file of results has another form, or LaTeX is wanted, which has none.
    """
    if not (options.published or options.published_file):
        return None
    if options.latex is not None:
        raise ConfigError("--latex has no published results; write them with --csv or --json")
    return read_published(options.published_file)


def _format(name: str, tables: Tables, published: Sequence[PublishedRows]) -> str:
    if name == "latex":
        return to_latex(tables)
    return {"csv": to_csv, "json": to_json}[name](tables, published)


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


def _show(
    with_rows: Tables, published: Sequence[PublishedRows], options: argparse.Namespace
) -> None:
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
        if published:
            print_wide(published_tables(published[number - 1], rows))


if __name__ == "__main__":
    sys.exit(main())
