"""Measure how fast the pipeline works: ``python -m pipeline.bench step text --json speed.json``.

Without a NAME everything is measured. The settings are those of a run: --config names its file, by
default a ViT-B/16 with random weights and drawn images; key=value changes a setting, and
bench.KEY=VALUE a size of a measurement. A table shows the median of the repeats, the lowest and the
highest value; the JSON file describes the machine too. Several ranks measure together under
torchrun or srun. See docs/SPEED.md; docs/SETTINGS.md describes every setting.

Exit status: 0 measured, 2 an error that you can correct, 1 a fault of the program.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from pipeline.cli import build_parser, complete_settings, run_command

BENCHMARKS = {
    "step": "a training step, beside one that encodes all classes at full length",
    "text": "class names per second, frozen and with gradient",
    "eval": "test images per second",
    "fit": "features per second of the closed-form classifiers",
    "sequence": "a closed-form method's sequence, beside encoding every image once",
    "data": "images per second of the stream, and the start on 10 million samples",
    "scale": "a step, a snapshot and the start of a task, up to 100 tasks and 10,000 classes",
    "launch": "seconds from the command to the first step",
    "gpu": "everything on a GPU, with a ViT-L/14: below 10 minutes",
}
_WIDTH = 110  # of the tables in a file
_EXAMPLE = """\
Examples:
  python -m pipeline.bench step bench.batches=[8] bench.repeats=3
  python -m pipeline.bench --config configs/vitl_inr.yaml step data.index=data/images
  torchrun --nproc-per-node 2 -m pipeline.bench step
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse_arguments(arguments)
    return run_command(lambda: _bench(options))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; ``names`` are benchmarks, ``overrides`` are settings."""
    names = "\n".join(f"  {name:<10}{line}" for name, line in BENCHMARKS.items())
    parser = build_parser(
        "python -m pipeline.bench", __doc__ or "", f"Benchmarks:\n{names}\n\n{_EXAMPLE}"
    )
    words = parser.add_argument(
        "words", nargs="*", metavar="NAME|key=value", help="a benchmark, or a setting"
    )
    complete_settings(words, "pipeline.bench.settings:BenchConfig", also=BENCHMARKS)
    parser.add_argument("--config", metavar="FILE", help="YAML file of a run")
    parser.add_argument("--json", metavar="FILE", help="write all figures and the machine here")
    options = parser.parse_intermixed_args(arguments)
    options.overrides = [word for word in options.words if "=" in word]
    options.names = [word for word in options.words if "=" not in word] or list(BENCHMARKS)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not a benchmark; there are {', '.join(BENCHMARKS)}")
    return options


def _bench(options: argparse.Namespace) -> int:
    """Measure each benchmark in turn; the file is written after each, so that a part remains."""
    from pipeline.threads import spin_briefly

    spin_briefly(os.environ)

    from rich.console import Console

    from pipeline import storage
    from pipeline.bench.machine import describe_machine
    from pipeline.bench.report import Result, to_json, to_table
    from pipeline.bench.settings import load_bench_config
    from pipeline.bench.timing import NotMeasured
    from pipeline.distributed.world import read_world

    configs = {
        name: load_bench_config(name, options.config, options.overrides) for name in options.names
    }
    world = read_world(os.environ)
    results: list[Result] = []
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for name, config in configs.items():
        benchmark = importlib.import_module(f"pipeline.bench.{name}")
        try:
            results.append(Result(config, name, list(benchmark.measure(config, world))))
        except NotMeasured as error:
            results.append(Result(config, name, not_measured=str(error)))
        if world.is_main:
            console.print(to_table(results[-1]))
        if world.is_main and options.json:
            machine = describe_machine(world.world_size)
            storage.write_atomically(options.json, to_json(results, machine).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
