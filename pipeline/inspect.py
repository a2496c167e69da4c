"""Show what a folder or URL holds and whether it is complete: ``python -m pipeline.inspect URL``.

It recognises a data set of shards, a run, a snapshot, a sweep or an export by its files, and
compares them with the recorded hashes. Nothing in them is executed.

Exit status: 0 complete; 2 unfinished, damaged or unreadable; 75 stopped by Ctrl-C or SIGTERM. With
--grid or --watch: 0 the sheet is written or the run has finished; 2 an error.
"""

from __future__ import annotations

import sys

if __name__ == "inspect":  # pipeline/ is on sys.path and hides Python's own module of this name
    raise ImportError("start this command as `python -m pipeline.NAME`, not by its file")

import argparse
import json
from collections.abc import Sequence

from pipeline.cli import add_deadline, build_parser, run_command, stopped_by_signals
from pipeline.errors import ConfigError, DataError
from pipeline.text import print_wide, printable

_EXAMPLES = """\
Examples:
  python -m pipeline.inspect runs/demo/tppt_vt
  python -m pipeline.inspect s3://data/imagenet-r --full --json
  python -m pipeline.inspect runs/demo/tppt_vt --grid sheet.png --split test --classes oak,lamp
  python -m pipeline.inspect shards/birds --grid sheet.png --arch ViT-L-14
  python -m pipeline.inspect s3://runs/vitl_inr --watch
"""
_GRID = ("split", "per_class", "classes", "arch", "transform", "image_size")  # need --grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    if options.grid is None and any(getattr(options, name) is not None for name in _GRID):
        names = (f"--{name.replace('_', '-')}" for name in _GRID)
        parser.error(f"{', '.join(names)} need --grid FILE")
    if options.json and (options.watch or options.grid is not None):
        parser.error("--json prints findings, which --grid and --watch do not make")
    return run_command(lambda: _run(options))


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.inspect", __doc__ or "", _EXAMPLES)
    add = parser.add_argument
    add("url", metavar="URL", help="a folder, a file in it, or a URL of any supported storage")
    add("--json", action="store_true", help="print the findings as JSON")
    add("--full", action="store_true", help="read every shard, and every run of a sweep")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--grid", metavar="FILE", help="draw images of each class into a PNG file")
    action.add_argument("--watch", action="store_true", help="follow a run until it has finished")
    grid = parser.add_argument_group("with --grid, of a data set or a run")
    grid.add_argument("--split", choices=["train", "test"], help="default: train")
    grid.add_argument("--per-class", type=int, metavar="N", help="images of a class; default: 8")
    grid.add_argument("--classes", metavar="A,B", help="names of classes; default: the first 50")
    grid.add_argument("--arch", help="images of its size; default: that of the run")
    grid.add_argument("--transform", help="clip, squash or random_crop; default: that of the run")
    grid.add_argument("--image-size", type=int, metavar="PIXELS", help="instead of --arch")
    watch = parser.add_argument_group("with --watch")
    watch.add_argument(
        "--stalled-after",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="without an update the run is reported as stalled (default: 30)",
    )
    add_deadline(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    from pipeline import storage  # not above: imported after the arguments are right
    from pipeline.paths import expand_path

    try:
        url = expand_path(options.url)
    except ValueError as error:
        raise ConfigError(f"URL: {error}") from None
    with stopped_by_signals(), storage.patience(options.deadline):
        if options.watch:  # for hours: an outage of the network must not end it at once
            return _watch(url, options)
        with storage.giving_up_early():
            return _inspect(url, options) if options.grid is None else _draw(url, options)


def _inspect(url: str, options: argparse.Namespace) -> int:
    from pipeline.inspection.kinds import inspect_url
    from pipeline.progress_bar import progress_of

    with progress_of("files") as progress:
        findings = inspect_url(url, full=options.full, progress=progress)
    if options.json:
        sys.stdout.write(json.dumps(findings.content(), indent=2, ensure_ascii=False) + "\n")
    else:
        from pipeline.inspection.tables import findings_table

        print_wide(findings_table(findings))
    if findings.state == "complete":
        return 0
    problem = findings.faults[0] if findings.faults else findings.stage
    more = f" (and {len(findings.faults) - 1} more)" if len(findings.faults) > 1 else ""
    text = f"{findings.place}: this {findings.kind} is {findings.state}: {problem}{more}"
    raise DataError(printable(text))


def _draw(url: str, options: argparse.Namespace) -> int:
    from pipeline.inspection.grid import GridOptions, draw_grid
    from pipeline.progress_bar import progress_of

    chosen = GridOptions(
        split=options.split or "train",
        per_class=8 if options.per_class is None else options.per_class,
        classes=options.classes and [name.strip() for name in options.classes.split(",")],
        arch=options.arch,
        transform=options.transform,
        image_size=options.image_size,
    )
    with progress_of("classes") as progress:
        for line in draw_grid(url, options.grid, chosen, progress):
            print(line)
    return 0


def _watch(url: str, options: argparse.Namespace) -> int:
    from pipeline.inspection.watch import watch_run

    watch_run(url, stalled_s=60 * options.stalled_after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
