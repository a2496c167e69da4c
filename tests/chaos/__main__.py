"""Inject random faults into a training run; its result must not change.

The training runs once undisturbed. Each round then starts the same command, injects one to three
faults, restarts the run until it has finished, and compares its learned tensors, results and
metrics with those of the undisturbed run, bit by bit. A round depends on its number and on --seed
only, so --round repeats any of them.

Faults: SIGKILL, SIGTERM or SIGUSR2 to one rank, to all ranks, to a launcher or to everything; at
the start, in a training step, during a snapshot, during evaluation or at a task boundary; a frozen
rank; an object store that refuses connections. The last one needs data or output at s3:// and an
http:// address in AWS_ENDPOINT_URL.

Other defaults than in training: snapshot.every_steps=3, log_every=1, engine.timeout_s=30.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import storage
from pipeline.cli import build_parser, run_command
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError
from pipeline.text import shows_live_display
from pipeline.training.checked_run import check_run
from tests.chaos import report
from tests.chaos.faults import KINDS, STORAGE, draw_faults
from tests.chaos.outcome import Outcome
from tests.chaos.rounds import Round, run_undisturbed
from tests.chaos.setup import Setup
from tests.chaos.tcp_relay import TcpRelay

_DEFAULTS = ("snapshot.every_steps=3", "log_every=1", "engine.timeout_s=30")
_EPILOG = """\
Example:
  python -m tests.chaos --config configs/demo.yaml --rounds 50 --output runs/chaos

Exit status: 0 every round gave the result of the undisturbed run, without a hang, an orphaned
process or a failed restart; 1 a round did not; 2 an error that you can correct.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    # These signals must pass through the `finally` blocks that end the runs.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, _exit) for number in numbers}
    try:
        return run_command(lambda: _run(options))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _: Any) -> None:
    sys.exit(128 + number)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser("python -m tests.chaos", __doc__ or "", _EPILOG)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optim.epochs=1")
    parser.add_argument(
        "--rounds", type=_count, default=50, metavar="N", help="number of rounds; default 50"
    )
    parser.add_argument(
        "--ranks", type=_count, default=2, metavar="N", help="ranks of the training; default 2"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the faults of all rounds; default 1"
    )
    parser.add_argument(
        "--output", default="runs/chaos", metavar="PLACE",
        help="empty folder or URL for all runs; default runs/chaos",
    )  # fmt: skip
    parser.add_argument(
        "--round", type=_count, action="append", default=[], metavar="NUMBER",
        help="run only this round (from 1); may be repeated",
    )  # fmt: skip
    kinds = ", ".join(map(repr, KINDS))
    parser.add_argument(
        "--fault", choices=KINDS, action="append", default=[], metavar="KIND",
        help=f"inject only faults of this kind; may be repeated. Kinds: {kinds}",
    )  # fmt: skip
    return parser.parse_intermixed_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {number}")
    return number


def _run(options: argparse.Namespace) -> int:
    overrides = (*_DEFAULTS, *options.overrides)
    config = load_config(options.config, overrides)
    check_run(config, options.ranks)
    if storage.list_files(options.output):
        output = storage.redact(options.output)
        raise ConfigError(f"--output: {output} is not empty; choose another, or remove it")
    console = Console(stderr=True)
    with _relay(config, options.output) as relay:
        kinds = _kinds(options.fault, relay)
        if relay is None and not options.fault:
            console.print(f"left out: {STORAGE!r}, since no data or output is at s3:// by http")
        logs = _log_folder(options.output)
        console.print(f"logs in {logs}")
        setup = Setup(options.config, overrides, config, options.output, logs, options.ranks, relay)
        numbers = options.round or range(1, options.rounds + 1)
        outcomes = _run_rounds(setup, numbers, options.seed, kinds, console)
    # A file has no width, and the default of 80 columns would break every heading.
    Console(width=None if sys.stdout.isatty() else 110).print(report.build_table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _run_rounds(
    setup: Setup, numbers: Sequence[int], seed: int, kinds: Sequence[str], console: Console
) -> list[Outcome]:
    """Run every round in turn; ``chaos.json`` is complete after each of them."""
    outcomes: list[Outcome] = []
    with _progress(console) as progress:
        bar = progress.add_task("undisturbed", total=len(numbers))
        reference = run_undisturbed(setup)
        seconds = reference.timeline.seconds
        console.print(f"undisturbed: {seconds:.0f} s")
        about = {
            "config": setup.file,
            "overrides": [storage.scrub(override) for override in setup.overrides],
            "ranks": setup.ranks,
            "seed": seed,
            "faults": list(kinds),
            "undisturbed_seconds": seconds,
        }
        for number in numbers:
            faults = draw_faults(seed, number, kinds)
            progress.update(bar, description=", ".join(fault.kind for fault in faults))
            outcomes.append(Round(setup, reference, number, faults).run())
            line = report.format_outcome(outcomes[-1], max(numbers))
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)
            text = json.dumps(report.build_content(outcomes, about), indent=2)
            url = storage.join(setup.output, "chaos.json")
            storage.write_atomically(url, f"{text}\n".encode())
    return outcomes


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not shows_live_display(console),
    )


def _kinds(wanted: Sequence[str], relay: TcpRelay | None) -> list[str]:
    if relay is None and STORAGE in wanted:
        raise ConfigError(
            f"--fault {STORAGE!r}: needs data or output at s3:// and AWS_ENDPOINT_URL with http://"
        )
    return list(wanted or [kind for kind in KINDS if relay or kind != STORAGE])


@contextmanager
def _relay(config: Config, output: str) -> Iterator[TcpRelay | None]:
    """A relay in front of the object store, if the runs use one by http."""
    index = config.data.index
    urls = [output, *([index] if isinstance(index, str) else index)]
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    if endpoint.scheme != "http" or not any(url.startswith("s3://") for url in urls):
        yield None
        return
    with TcpRelay(endpoint.hostname or "", endpoint.port or 80) as relay:
        yield relay


def _log_folder(output: str) -> Path:
    """The output itself if it is local; otherwise a new folder on this host."""
    if storage.is_local(output):
        return Path(storage.local_path(output))
    return Path(tempfile.mkdtemp(prefix="chaos-"))


if __name__ == "__main__":
    sys.exit(main())
