"""List public benchmarks and write their configurations: ``python -m pipeline.benchmarks``.

Class names, templates, splits with their counts, class orders and protocols come from a catalogue
in the package, with the source of every fact.

Examples:
  python -m pipeline.benchmarks                                     # all of them
  python -m pipeline.benchmarks imagenet_r                          # what is known of one
  python -m pipeline.benchmarks imagenet_r --classes                # names and folders
  python -m pipeline.benchmarks cub200 --config B/16 > cub200.yaml
  python -m pipeline.benchmarks cub200 --config L/14 --protocol B100-20 --weights laion400m_e32
  python -m pipeline.benchmarks mtil --config B/16                  # a sequence of benchmarks
  python -m pipeline.benchmarks aircraft pets dtd --config B/16     # a sequence of your own

Exit status: 0 printed, 2 an unknown name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from pipeline.catalogue.configuration import (
    ARCHITECTURES,
    WEIGHTS,
    configuration_text,
    sequence_text,
    split_line,
)
from pipeline.catalogue.entry import Benchmark, benchmark_names, read_benchmark
from pipeline.catalogue.published import read_published
from pipeline.catalogue.sequences import SEQUENCES, SPLIT, BenchmarkSequence, own_sequence
from pipeline.cli import build_parser, run_command
from pipeline.text import print_wide


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    if not options.names and (options.config or options.classes):
        parser.error("--config and --classes need the name of a benchmark")
    if not options.config and (options.protocol or options.weights):
        parser.error("--protocol and --weights need --config")
    if len(options.names) > 1 and not options.config:
        parser.error("several benchmarks are a sequence, which needs --config")
    if _sequence_of(options.names) and (options.protocol or options.classes):
        parser.error("--protocol and --classes are of one benchmark")
    return run_command(lambda: _run(options))


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.benchmarks", __doc__ or "")
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a benchmark or a sequence; default: all of them")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--config", choices=ARCHITECTURES, help="print a configuration as YAML")
    shown.add_argument("--classes", action="store_true", help="print folder and name of each class")
    add("--protocol", metavar="NAME", help="of --config, such as B50-10 (default: the first)")
    add("--weights", choices=WEIGHTS, help="of --config (default: openai)")
    return parser


def _run(options: argparse.Namespace) -> int:
    sequence, weights = _sequence_of(options.names), options.weights or "openai"
    if not options.names:
        _print_table()
    elif sequence and options.config:
        name = "_".join(options.names)
        print(sequence_text(name, sequence, options.config, weights=weights), end="")
    elif sequence:
        _print_lines(_sequence_details(options.names[0], sequence))
    elif options.config:
        (name,) = options.names
        text = configuration_text(name, options.config, weights=weights, protocol=options.protocol)
        print(text, end="")
    else:
        entry = read_benchmark(options.names[0])
        classes = (f"{folder}\t{name}" for folder, name in entry.classes.items())
        _print_lines(classes if options.classes else _details(entry))
    return 0


def _sequence_of(names: Sequence[str]) -> BenchmarkSequence | None:
    """The sequence of this name, or of several benchmarks; None for one benchmark."""
    if len(names) > 1:
        return own_sequence(tuple(names))
    return SEQUENCES.get(names[0]) if names else None


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _print_table() -> None:
    from rich.table import Table  # not above: it takes a moment to import

    headings = ("name", "benchmark", "classes", "templates", "splits", "protocols")
    table = Table(*headings, box=None, padding=(0, 2, 0, 0))
    for column in (2, 3):
        table.columns[column].justify = "right"
    for name in benchmark_names():
        entry = read_benchmark(name)
        counts = (str(entry.class_count), str(len(entry.templates)))
        table.add_row(name, entry.title, *counts, " ".join(entry.splits), " ".join(entry.protocols))
    print_wide(table)
    print()
    for name, sequence in SEQUENCES.items():
        print(f"{name}: {sequence.title}, {len(sequence.benchmarks)} benchmarks in sequence")


def _sequence_details(name: str, sequence: BenchmarkSequence) -> Iterator[str]:
    own = {sequence.templates.get(benchmark, ()) for benchmark in sequence.benchmarks}
    shared = own.pop() if len(own) == 1 else ()
    yield f"{sequence.title}: {sequence.source}"
    yield f"  label space  {sequence.label_space} (evaluation.label_space)"
    yield f"  templates    {' '.join(shared) or 'those of each benchmark, or else as below'}"
    if sequence.note:
        yield f"  note         {sequence.note}"
    for benchmark in sequence.benchmarks:
        entry = read_benchmark(benchmark)
        yield f"{benchmark}: {entry.title}, {entry.class_count} classes"
        if split := sequence.splits.get(benchmark):
            yield f"  split {SPLIT}: {split_line(entry, split)}; {split.about}"
        if not shared:
            yield from (f"  template {text}" for text in sequence.templates.get(benchmark, ()))
    yield "published results: transfer, average and last in per cent"
    results = [each for each in read_published() if each.sequence == name]
    for source, of_source in groupby(results, key=lambda each: each.source):
        first, *more = of_source
        splits = zip(first.benchmarks, first.split_names, strict=True)
        known = ", ".join(f"{benchmark} {split}" for benchmark, split in splits if split)
        yield f"  {source}; splits: {known or 'not stated'}"
        for each in (first, *more):
            yield f"    {each.method:<12} {each.transfer}  {each.average}  {each.last}"


def _details(entry: Benchmark) -> Iterator[str]:
    yield f"{entry.title}: {entry.class_count} classes"
    yield f"  from     {entry.url}"
    yield f"  licence  {entry.licence}"
    yield f"  layout   {entry.layout}"
    yield "splits"
    for name, split in entry.splits.items():
        yield f"  {name}: {split_line(entry, split)}; {split.about}"
        if split.sha256:
            yield f"    sha256 {split.sha256}"
    yield "protocols"
    for name, protocol in entry.protocols.items():
        tasks = f"{protocol.initial} classes first, then {protocol.increment} a task"
        yield f"  {name}: {tasks}; {protocol.users}"
    orders = dict.fromkeys((entry.class_order, *entry.published_orders))
    yield f"class orders: {', '.join(orders)} (tasks.class_order)"
    yield "templates; training uses the first, tests the mean of all"
    yield from (f"  {template}" for template in entry.templates)
    yield "sources"
    yield from (f"  {fact}: {source}" for fact, source in entry.sources.items())


if __name__ == "__main__":
    sys.exit(main())
