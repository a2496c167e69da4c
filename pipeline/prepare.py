"""Prepare, check, count and copy data sets of shards: ``python -m pipeline.prepare``.

python -m pipeline.prepare shard  --source PATH --out URL   images into shards and an index
python -m pipeline.prepare verify URL                       read the data set again and compare
python -m pipeline.prepare stats  URL                       classes, counts, sizes, duplicates
python -m pipeline.prepare copy   URL URL                   copy and verify

Examples:
  python -m pipeline.prepare shard --source photos/ --out data/photos --test-fraction 0.2
  python -m pipeline.prepare verify data/photos
  python -m pipeline.prepare copy data/photos s3://data/photos

Exit status: 0 done, 2 an error that you can correct, 75 stopped by Ctrl-C or SIGTERM (the same
command continues).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from pipeline.cli import add_deadline, build_parser, run_command, stopped_by_signals
from pipeline.errors import ConfigError, DataError
from pipeline.log import setup_logging
from pipeline.paths import expand_path
from pipeline.text import format_bytes

if TYPE_CHECKING:
    from pipeline.data.prepare.audit import Statistics
    from pipeline.data.prepare.benchmark import BenchmarkChoice
    from pipeline.data.prepare.parallel import Progress

_SHARD_EXAMPLES = """\
sources:
  a folder, .tar or .zip   train/<class>/* and test/<class>/*; or <class>/* with --test-fraction
  .csv, .jsonl             path, label, split; paths are relative to the file
  Parquet                  a file or a folder of <split>-*.parquet or <split>/*.parquet with image
                           and label columns
  CIFAR, MNIST             cifar-100-binary, cifar-100-python, cifar-10-batches-bin, -py; MNIST/raw

benchmarks:
  --benchmark NAME reads the layout of its owner, gives the class names of the catalogue and checks
  the counts: `tppt benchmarks`. --split NAME says which of its splits the source holds; --split
  FILE, a JSON object {"train": [paths], "test": [paths]}, makes the split. The index records a hash
  of the membership.

splits:
  A data set has two splits, train and test. A source with val/ and no test/ is tested on val/. If
  two splits of the source would become one, choose:
  --splits train,test              train and test; every other split is left out
  --splits train=train,test=val    test on val
  --splits train=train+val,test=test
  --splits train=a,test=b          splits of any other name
  --test-fraction 0.2              draw the test split from the training images (or from a source
                                   without splits), by a hash of class and path: an image keeps
                                   its split when others are added. --split-seed draws another one

Every file is read, left out or refused; the table at the end has the number of each, with reasons.
--strict makes any file that is left out an error, before anything is written.

examples:
  python -m pipeline.prepare shard --source imagenet-r.tar --out s3://data/imagenet-r --resize 256
  python -m pipeline.prepare shard --source cifar-100-binary --out shards/cifar100
  python -m pipeline.prepare shard --benchmark cub200 --source CUB_200_2011 --out shards/cub200
  python -m pipeline.prepare shard --source birds.csv --out shards/cub --names classes.json
  python -m pipeline.prepare shard --source photos/ --out shards/photos --test-fraction 0.2

After an interruption the same command resumes. Keys, endpoints and profiles come from the
environment: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL; FSSPEC_S3_ANON=true for a public
bucket.
"""
_MOST_SHOWN = 20
_LARGEST_SHARD = 8 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _build_parser().parse_args(arguments)
    setup_logging(0)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from pipeline.storage import patience  # not above: it takes a moment to import

    with stopped_by_signals(), patience(_checked(options).deadline):
        return options.run(options)


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their paths expanded.

    Raises:
        ConfigError: a path is blank, or a number is too small.
    """
    for name in ("source", "out", "names", "url", "target"):
        value = getattr(options, name, None)
        if value is None:
            continue
        try:
            setattr(options, name, expand_path(value))
        except ValueError as error:
            option = f"--{name}" if hasattr(options, "out") else name
            raise ConfigError(f"{option} {error}") from None
    if not options.deadline >= 0:
        raise ConfigError(f"--deadline {options.deadline} is not a time; give seconds, 0 or more")
    if getattr(options, "jobs", 1) < 1:
        raise ConfigError(f"--jobs {options.jobs} is not a number of processes; give 1 or more")
    return options


def _run_shard(options: argparse.Namespace) -> int:
    # Here and below: imported after the arguments are parsed, since these take seconds.
    from pipeline import storage
    from pipeline.data.prepare.account import account_lines
    from pipeline.data.prepare.sharding import Recipe, write_shards
    from pipeline.data.prepare.splits import parse_choice

    recipe = Recipe(
        _parse_size(options.shard_size),
        options.resize,
        options.on_bad,
        options.orientation,
        parse_choice(options.splits, options.test_fraction, options.split_seed),
        options.strict,
    )
    if recipe.strict and recipe.on_bad_image == "skip":
        raise ConfigError("--strict and --on-bad skip contradict each other; give one of them")
    if recipe.resize is not None and recipe.resize < 1:
        raise ConfigError(f"--resize {recipe.resize} is not a size; give pixels of the short side")
    benchmark = _benchmark_of(options)
    with _progress_display("images") as progress:
        outcome = write_shards(
            options.source,
            options.out,
            recipe,
            names_url=options.names,
            benchmark=benchmark,
            overwrite=options.overwrite,
            jobs=options.jobs,
            progress=progress,
        )
    shards = outcome.index.shards
    images, size = sum(s.samples for s in shards), sum(s.bytes for s in shards)
    print(
        f"{storage.redact(options.out)}: {images:,} images of "
        f"{len(outcome.index.class_names)} classes in {len(shards)} shards, {format_bytes(size)}"
        + (f", {outcome.resumed} of them from an earlier attempt" if outcome.resumed else "")
    )
    if outcome.skipped:
        print(f"refused {len(outcome.skipped):,} unusable images:")
        _print_lines(outcome.skipped)
    for line in account_lines(outcome):
        print(line)
    return 0


def _benchmark_of(options: argparse.Namespace) -> BenchmarkChoice | None:
    """The options about a benchmark.

    Raises:
        ConfigError: they contradict others.
    """
    from pipeline.data.prepare.benchmark import BenchmarkChoice

    if options.benchmark is None:
        if options.split is not None or options.allow_other_counts:
            raise ConfigError("--split and --allow-other-counts need --benchmark; give it too")
        return None
    if options.names is not None:
        raise ConfigError("--benchmark has the names of its classes; leave out --names")
    if options.split is not None and (options.splits or options.test_fraction):
        raise ConfigError("--split decides the split; leave out --splits and --test-fraction")
    return BenchmarkChoice(options.benchmark, options.split, options.allow_other_counts)


def _run_verify(options: argparse.Namespace) -> int:
    from pipeline import storage
    from pipeline.data.index import read_index
    from pipeline.data.prepare.audit import find_faults

    with storage.giving_up_early():
        index = read_index(options.url)
    with _progress_display("shards") as progress:
        faults = list(find_faults(index, jobs=options.jobs, progress=progress))
    place = storage.redact(index.url)
    if faults:
        _print_lines(faults)
        raise DataError(f"{place}: {len(faults)} faults; copy or prepare the data set again")
    samples = sum(shard.samples for shard in index.shards)
    print(f"{place}: {samples:,} samples in {len(index.shards)} shards match the index")
    return 0


def _run_stats(options: argparse.Namespace) -> int:
    from pipeline import storage
    from pipeline.data.index import read_index
    from pipeline.data.prepare.audit import gather_statistics

    with storage.giving_up_early():
        index = read_index(options.url)
    _print_statistics(storage.redact(index.url), gather_statistics(index))
    return 0


def _run_copy(options: argparse.Namespace) -> int:
    from pipeline import storage
    from pipeline.data.index import read_index
    from pipeline.data.prepare.audit import unknown_files
    from pipeline.data.prepare.copying import copy_data_set

    with _progress_display("files") as progress:
        index = copy_data_set(
            options.source, options.target, overwrite=options.overwrite, progress=progress
        )
    size = sum(shard.bytes for shard in index.shards)
    place = storage.redact(options.target)
    print(f"{place}: {len(index.shards)} shards, {format_bytes(size)}, verified")
    if strays := unknown_files(read_index(options.source)):
        print(f"left out {len(strays):,} files that the index does not name:")
        _print_lines(strays)
    return 0


def _print_statistics(place: str, statistics: Statistics) -> None:
    width = max(len("class"), *(len(entry.name) for entry in statistics.classes))
    print(f"{'class':<{width}} {'train':>8} {'test':>8} {'stored':>12}")
    for entry in statistics.classes:
        stored = format_bytes(entry.bytes)
        print(f"{entry.name:<{width}} {entry.train:>8,} {entry.test:>8,} {stored:>12}")
    train = sum(entry.train for entry in statistics.classes)
    test = sum(entry.test for entry in statistics.classes)
    print(f"{'all':<{width}} {train:>8,} {test:>8,} {format_bytes(statistics.bytes):>12}")
    print(f"{place}: {len(statistics.classes)} classes in {statistics.shards} shards")
    for split, copies in statistics.repeats.items():
        print(f"copies within {split}: {copies:,}")
    print(f"test images that are also in train: {len(statistics.leaks):,}")
    _print_lines([f"{test_key} = {train_key}" for test_key, train_key in statistics.leaks])


def _print_lines(lines: Sequence[str]) -> None:
    """Print the first lines and the number of the others."""
    for line in lines[:_MOST_SHOWN]:
        print(f"  {line}")
    if len(lines) > _MOST_SHOWN:
        print(f"  … and {len(lines) - _MOST_SHOWN} more")


def _progress_display(what: str) -> AbstractContextManager[Progress]:
    from rich.progress import TimeElapsedColumn

    from pipeline.progress_bar import progress_of

    return progress_of(what, TimeElapsedColumn(), transient=False)


def _parse_size(text: str) -> int:
    """Bytes from ``64MB``, ``1GiB`` or a plain number."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
    found = re.fullmatch(r"(\d{1,18})\s*([KMG]I?)?B?", text.strip().upper())
    if not found or not int(found[1]):
        raise ConfigError(f"--shard-size {text!r} is not a size; write 64MB or 1GiB")
    size = int(found[1]) * units[found[2] or ""]
    if size > _LARGEST_SHARD:
        raise ConfigError(f"--shard-size {text} is more than 8GiB; a shard is built in memory")
    return size


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.prepare", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_shard(commands)
    verify = commands.add_parser("verify", help="read everything again, compare with the index")
    verify.add_argument("url", help="the prepared folder")
    _add_jobs(verify)
    verify.set_defaults(run=_run_verify)
    stats = commands.add_parser("stats", help="classes, counts, sizes, duplicates")
    stats.add_argument("url", help="the prepared folder")
    stats.set_defaults(run=_run_stats)
    copy = commands.add_parser("copy", help="copy a data set and verify the copy")
    copy.add_argument("source", help="the prepared folder")
    copy.add_argument("target", help="folder or URL of the copy")
    copy.add_argument("--overwrite", action="store_true", help="replace another data set")
    copy.set_defaults(run=_run_copy)
    for command in commands.choices.values():
        add_deadline(command)
    return parser


def _add_shard(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shard = commands.add_parser(
        "shard",
        help="write shards and their index",
        epilog=_SHARD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shard.add_argument("--source", required=True, help="the images, see below")
    shard.add_argument("--out", required=True, help="folder or URL that receives the shards")
    shard.add_argument("--names", help='JSON list of {"name", "folder"}: names and class order')
    shard.add_argument("--benchmark", metavar="NAME", help="a benchmark of the catalogue")
    shard.add_argument("--split", metavar="NAME|FILE", help="which split of it, see below")
    shard.add_argument(
        "--allow-other-counts", action="store_true", help="go on if its counts are different"
    )
    shard.add_argument("--shard-size", default="64MB", help="most bytes per shard (default: 64MB)")
    shard.add_argument("--resize", type=int, metavar="PIXELS", help="shrink the short side")
    shard.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="images that cannot be decoded (default: fail)",
    )
    shard.add_argument(
        "--orientation",
        choices=("apply", "ignore"),
        default="apply",
        help="turn images as their EXIF tag says (default), or not; the index records it",
    )
    shard.add_argument("--splits", metavar="CHOICE", help="which splits of the source, see below")
    shard.add_argument("--test-fraction", type=float, metavar="F", help="draw a test split")
    shard.add_argument(
        "--split-seed", type=int, metavar="N", help="of --test-fraction (default: 1)"
    )
    shard.add_argument("--strict", action="store_true", help="refuse to leave a file out")
    shard.add_argument("--overwrite", action="store_true", help="replace the data set at --out")
    _add_jobs(shard)
    shard.set_defaults(run=_run_shard)


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help=f"processes (default: {cores})")


if __name__ == "__main__":
    sys.exit(main())
