"""All rounds of the chaos command, their progress and their report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from pipeline import storage
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError
from pipeline.progress_bar import ProgressLine
from pipeline.training.checked_run import check_run
from tests.chaos import report
from tests.chaos.faults import KINDS, STORAGE, draw_faults
from tests.chaos.outcome import Outcome
from tests.chaos.rounds import Round, run_undisturbed
from tests.chaos.setup import Setup
from tests.services.fault_proxy import FaultProxy

_DEFAULTS = ("snapshot.every_steps=3", "log_every=1", "engine.timeout_s=30")


def run_all(options: argparse.Namespace) -> int:
    """Run the rounds that the options of the command ask for; returns the exit status.

    Raises:
        PipelineError: a run cannot be started, or an option is impossible.
    """
    overrides = (*_DEFAULTS, *options.overrides)
    config = load_config(options.config, overrides)
    check_run(config, options.ranks)
    if storage.list_files(options.output):
        output = storage.redact(options.output)
        raise ConfigError(f"--output: {output} is not empty; choose another, or remove it")
    console = Console(stderr=True)
    with _proxy(config, options.output) as proxy:
        kinds = _kinds(options.fault, proxy)
        if proxy is None and not options.fault:
            console.print(f"left out: {STORAGE!r}, since no data or output is at s3:// by http")
        logs = _log_folder(options.output)
        console.print(f"logs in {logs}")
        setup = Setup(options.config, overrides, config, options.output, logs, options.ranks, proxy)
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
    with ProgressLine(console=console, transient=True) as progress:
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


def _kinds(wanted: Sequence[str], proxy: FaultProxy | None) -> list[str]:
    if proxy is None and STORAGE in wanted:
        raise ConfigError(
            f"--fault {STORAGE!r}: needs data or output at s3:// and AWS_ENDPOINT_URL with http://"
        )
    return list(wanted or [kind for kind in KINDS if proxy or kind != STORAGE])


@contextmanager
def _proxy(config: Config, output: str) -> Iterator[FaultProxy | None]:
    """A proxy in front of the object store, if the runs use one by http."""
    index = config.data.index
    urls = [output, *([index] if isinstance(index, str) else index)]
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    if endpoint.scheme != "http" or not any(url.startswith("s3://") for url in urls):
        yield None
        return
    with FaultProxy(endpoint.port or 80, host=endpoint.hostname or "") as proxy:
        yield proxy


def _log_folder(output: str) -> Path:
    """The output itself if it is local; otherwise a new folder on this host."""
    if storage.is_local(output):
        return Path(storage.local_path(output))
    return Path(tempfile.mkdtemp(prefix="chaos-"))
