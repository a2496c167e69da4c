"""Try to break a training run: random harm, restarts, and the same result at the end, or not.

Example:
  python -m tests.chaos --config configs/demo.yaml --rounds 50 --output runs/chaos

The training is run once undisturbed. Then each round starts the same command, does it one to three
harms (SIGKILL, SIGTERM, SIGUSR2 to one rank, all, a launcher, everything; during a snapshot, during
evaluation, at a task boundary; a rank that stands still; a storage that refuses), starts it again
until it has finished, and compares learned tensors, results and metrics with the undisturbed run,
bit by bit. A round is drawn from its number and --seed alone, so --round repeats any of them.

Unless told otherwise, snapshot.every_steps=3, log_every=1 and engine.timeout_s=30. The storage
refuses where data or output is at s3:// and AWS_ENDPOINT_URL leads there by http.

Exit status: 0 every round ended as the undisturbed run, without hangs, orphans and failed restarts;
1 one did not; 2 something that you can mend, said in one sentence.
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
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import storage
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.training.run import check_run
from tests.chaos import report
from tests.chaos.faults import KINDS, STORAGE, draw_harms
from tests.chaos.rounds import Outcome, Round, Setup, run_undisturbed
from tests.chaos.tcp_relay import Gate

_DEFAULTS = ("snapshot.every_steps=3", "log_every=1", "engine.timeout_s=30")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    # A request to end must pass through the `finally` that ends the runs.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return _run(options)
    except PipelineError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optim.epochs=1")
    parser.add_argument("--rounds", type=_count, default=50, metavar="N", help="default 50")
    parser.add_argument("--ranks", type=_count, default=2, metavar="N", help="default 2")
    parser.add_argument("--seed", type=int, default=1, help="of what is done when; default 1")
    parser.add_argument("--output", default="runs/chaos", help="empty folder or URL for all runs")
    only = {"action": "append", "default": []}
    parser.add_argument(
        "--round", type=_count, metavar="NUMBER", help="only this round; may be repeated", **only
    )
    kinds = ", ".join(KINDS)
    parser.add_argument(
        "--harm", choices=KINDS, metavar="KIND", help=f"only this; may be repeated: {kinds}", **only
    )
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
    output = storage.redact(options.output)
    if storage.list_files(options.output):
        raise ConfigError(f"--output: {output} is not empty; choose another, or remove it")
    console = Console(stderr=True)
    with _gate(config, options.output) as gate:
        kinds = _kinds(options.harm, gate)
        if gate is None and not options.harm:
            console.print(f"left out: {STORAGE!r}, for nothing is read or written at s3:// by http")
        logs = _log_folder(options.output)
        console.print(f"logs in {logs}")
        setup = Setup(options.config, overrides, config, options.output, logs, options.ranks, gate)
        numbers = options.round or range(1, options.rounds + 1)
        outcomes = _do_rounds(setup, numbers, options.seed, kinds, console)
    # A file has no width of its own, and the usual 80 columns would break every heading.
    Console(width=None if sys.stdout.isatty() else 110).print(report.as_table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _do_rounds(
    setup: Setup, numbers: Sequence[int], seed: int, kinds: Sequence[str], console: Console
) -> list[Outcome]:
    """Every round in turn; ``chaos.json`` tells of those that are done, at any time."""
    outcomes: list[Outcome] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    is_shown = console.is_terminal and not console.is_dumb_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not is_shown
    ) as progress:
        bar = progress.add_task("undisturbed", total=len(numbers))
        reference = run_undisturbed(setup)
        console.print(f"undisturbed: {reference.course.seconds:.0f} s")
        about = {
            "config": setup.file,
            "overrides": [storage.scrub(override) for override in setup.overrides],
            "ranks": setup.ranks,
            "seed": seed,
            "harms": list(kinds),
            "undisturbed_seconds": reference.course.seconds,
        }
        for number in numbers:
            harms = draw_harms(seed, number, kinds)
            progress.update(bar, description=", ".join(harm.kind for harm in harms))
            outcomes.append(Round(setup, reference, number, harms).run())
            line = report.describe_outcome(outcomes[-1], max(numbers))
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)
            text = json.dumps(report.as_dict(outcomes, about), indent=2)
            url = storage.join(setup.output, "chaos.json")
            storage.write_atomically(url, f"{text}\n".encode())
    return outcomes


def _kinds(wanted: Sequence[str], gate: Gate | None) -> list[str]:
    if gate is None and STORAGE in wanted:
        raise ConfigError(
            f"--harm {STORAGE!r}: needs data or output at s3:// and AWS_ENDPOINT_URL with http://"
        )
    return list(wanted or [kind for kind in KINDS if gate or kind != STORAGE])


@contextmanager
def _gate(config: Config, output: str) -> Iterator[Gate | None]:
    """A gate before the object store, if the runs use one that can be stood before."""
    index = config.data.index
    urls = [output, *([index] if isinstance(index, str) else index)]
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    if endpoint.scheme != "http" or not any(url.startswith("s3://") for url in urls):
        yield None
        return
    with Gate(endpoint.hostname or "", endpoint.port or 80) as gate:
        yield gate


def _log_folder(output: str) -> Path:
    """Logs lie beside the runs, or where those are remote in a folder of this machine."""
    if storage.is_local(output):
        return Path(storage.local_path(output))
    return Path(tempfile.mkdtemp(prefix="chaos-"))


if __name__ == "__main__":
    sys.exit(main())
