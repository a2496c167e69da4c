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
import signal
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.cli import add_settings, build_parser, run_command
from tests.chaos.faults import KINDS

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
        from tests.chaos.all_rounds import run_all  # not above: torch takes seconds to import

        return run_command(lambda: run_all(options))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, _: Any) -> None:
    sys.exit(128 + number)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser("python -m tests.chaos", __doc__ or "", _EPILOG)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of settings")
    add_settings(parser, "optim.epochs=1", "pipeline.config:Config")
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


if __name__ == "__main__":
    sys.exit(main())
