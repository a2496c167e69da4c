"""Command: prepare, check, count and copy data sets of shards.

python -m pipeline.prepare shard  --source PATH --out URL   pictures into shards and an index
python -m pipeline.prepare verify URL                       read everything again, compare
python -m pipeline.prepare stats  URL                       classes, counts, sizes, duplicates
python -m pipeline.prepare copy   URL URL                   mirror, with verification
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline import storage
from pipeline.data.index import read_index
from pipeline.data.prepare.audit import Statistics, find_faults, gather_statistics
from pipeline.data.prepare.copying import copy_data_set
from pipeline.data.prepare.parallel import usable_cores
from pipeline.data.prepare.sharding import Recipe, write_shards
from pipeline.errors import ConfigError, DataError, PipelineError

_SHARD_EXAMPLES = """\
sources:
  a folder, .tar or .zip   train/<class>/*.jpg and test/<class>/*.jpg (also val/)
  .csv, .jsonl             path, label, split; paths are relative to the file
  Parquet                  a file or a folder of <split>-*.parquet with image and label columns
  CIFAR                    cifar-100-binary, cifar-100-python, cifar-10-batches-bin, -py

examples:
  python -m pipeline.prepare shard --source imagenet-r.tar --out s3://data/imagenet-r --resize 256
  python -m pipeline.prepare shard --source cifar-100-binary --out shards/cifar100
  python -m pipeline.prepare shard --source birds.csv --out shards/cub --names classes.json

The same command goes on where an interrupted one stopped. Keys, endpoints and profiles come from
the environment: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL; FSSPEC_S3_ANON=true for a public
bucket.
"""
_MOST_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 with one sentence on stderr for a fault of the input."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = _build_parser().parse_args(arguments)
    try:
        options.run(options)
    except PipelineError as error:
        print(f"prepare {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"prepare {options.command}: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


def _run_shard(options: argparse.Namespace) -> None:
    recipe = Recipe(_parse_size(options.shard_size), options.resize, options.on_bad)
    if recipe.resize is not None and recipe.resize < 1:
        raise ConfigError(f"--resize {recipe.resize} is no size; give pixels of the short side")
    with _progress_display("pictures") as progress:
        outcome = write_shards(
            options.source,
            options.out,
            recipe,
            names_url=options.names,
            overwrite=options.overwrite,
            jobs=options.jobs,
            progress=progress,
        )
    shards = outcome.index.shards
    pictures, size = sum(s.samples for s in shards), sum(s.bytes for s in shards)
    print(
        f"{storage.redact(options.out)}: {pictures:,} pictures of "
        f"{len(outcome.index.class_names)} classes in {len(shards)} shards, {_size(size)}"
        + (f", {outcome.resumed} of them from an earlier attempt" if outcome.resumed else "")
    )
    if outcome.skipped:
        print(f"left out {len(outcome.skipped)} pictures that cannot be used:")
        _print_some(outcome.skipped)


def _run_verify(options: argparse.Namespace) -> None:
    index = read_index(options.url)
    with _progress_display("shards") as progress:
        faults = list(find_faults(index, jobs=options.jobs, progress=progress))
    place = storage.redact(index.url)
    if faults:
        _print_some(faults)
        raise DataError(f"{place}: {len(faults)} faults; copy or prepare the data set again")
    samples = sum(shard.samples for shard in index.shards)
    print(f"{place}: {samples:,} samples in {len(index.shards)} shards are as the index says")


def _run_stats(options: argparse.Namespace) -> None:
    index = read_index(options.url)
    _print_statistics(index.url, gather_statistics(index))


def _run_copy(options: argparse.Namespace) -> None:
    with _progress_display("files") as progress:
        index = copy_data_set(
            options.source, options.target, overwrite=options.overwrite, progress=progress
        )
    size = sum(shard.bytes for shard in index.shards)
    print(f"{storage.redact(options.target)}: {len(index.shards)} shards, {_size(size)}, verified")


def _print_statistics(url: str, statistics: Statistics) -> None:
    width = max(len("class"), *(len(entry.name) for entry in statistics.classes))
    print(f"{'class':<{width}} {'train':>8} {'test':>8} {'stored':>12}")
    for entry in statistics.classes:
        print(f"{entry.name:<{width}} {entry.train:>8,} {entry.test:>8,} {_size(entry.bytes):>12}")
    train = sum(entry.train for entry in statistics.classes)
    test = sum(entry.test for entry in statistics.classes)
    print(f"{'all':<{width}} {train:>8,} {test:>8,} {_size(statistics.bytes):>12}")
    print(f"{storage.redact(url)}: {len(statistics.classes)} classes in {statistics.shards} shards")
    for split, copies in statistics.repeats.items():
        print(f"copies within {split}: {copies:,}")
    print(f"test pictures that are also in train: {len(statistics.leaks):,}")
    _print_some([f"{test_key} = {train_key}" for test_key, train_key in statistics.leaks])


def _print_some(lines: Sequence[str]) -> None:
    for line in lines[:_MOST_SHOWN]:
        print(f"  {line}")
    if len(lines) > _MOST_SHOWN:
        print(f"  … and {len(lines) - _MOST_SHOWN} more")


@contextmanager
def _progress_display(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing in a log file."""
    console = Console(stderr=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:
        bar = display.add_task(what, total=None)
        yield lambda done, total: display.update(bar, completed=done, total=total)


def _parse_size(text: str) -> int:
    """Bytes from ``64MB``, ``1GiB`` or a plain number."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
    found = re.fullmatch(r"(\d+)\s*([KMG]I?)?B?", text.strip().upper())
    if not found or not int(found[1]):
        raise ConfigError(f"--shard-size {text!r} is not a size; write 64MB or 1GiB")
    return int(found[1]) * units[found[2] or ""]


def _size(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1000:,.1f} kB"


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_shard(commands)
    verify = commands.add_parser("verify", help="read everything again and compare with the index")
    verify.add_argument("url", help="the prepared folder")
    _add_jobs(verify)
    verify.set_defaults(run=_run_verify)
    stats = commands.add_parser("stats", help="classes, counts, sizes, duplicates")
    stats.add_argument("url", help="the prepared folder")
    stats.set_defaults(run=_run_stats)
    copy = commands.add_parser("copy", help="mirror a data set, with verification")
    copy.add_argument("source", help="the prepared folder")
    copy.add_argument("target", help="the folder that becomes its copy")
    copy.add_argument("--overwrite", action="store_true", help="replace another data set there")
    copy.set_defaults(run=_run_copy)
    return parser


def _add_shard(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shard = commands.add_parser(
        "shard",
        help="write shards and their index",
        epilog=_SHARD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shard.add_argument("--source", required=True, help="where the pictures are, see below")
    shard.add_argument("--out", required=True, help="folder or URL that receives the shards")
    shard.add_argument("--names", help='JSON list of {"name", "folder"}: names and class order')
    shard.add_argument("--shard-size", default="64MB", help="most bytes per shard (default: 64MB)")
    shard.add_argument("--resize", type=int, metavar="PIXELS", help="shrink the short side to it")
    shard.add_argument(
        "--on-bad", choices=("fail", "skip"), default="fail", help="pictures that do not decode"
    )
    shard.add_argument(
        "--overwrite", action="store_true", help="replace the data set that is there"
    )
    _add_jobs(shard)
    shard.set_defaults(run=_run_shard)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    cores = usable_cores()
    parser.add_argument("--jobs", type=int, default=cores, help=f"processes (default: {cores})")


if __name__ == "__main__":
    sys.exit(main())
