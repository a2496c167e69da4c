"""Serve a run's classifier over HTTP: predictions as JSON, a page to drop an image on, metrics.

Only programs on this machine reach the service unless --host is given. See docs/SERVE.md.
Exit status: 0 stopped by Ctrl-C or SIGTERM, after the requests in flight were answered; 2 if the
run cannot be loaded or the port cannot be used; 75 if stopped while the run was being loaded.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.cli import add_deadline, build_parser, number_from, run_command, stopped_by_signals
from pipeline.errors import ConfigError
from pipeline.log import setup_logging
from pipeline.run_source import RUN_OR_EXPORT, check_source
from pipeline.threads import spin_briefly

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from pipeline.inference import Classifier
    from pipeline.serving.service import Limits, Service

_EXAMPLE = """\
Examples:
  python -m pipeline.serve --run runs/demo/tppt_vt
  python -m pipeline.serve --run s3://runs/inr --follow --host 0.0.0.0
  curl --form image=@photo.jpg 'http://127.0.0.1:8080/predict?top=3'
"""
_DRAIN_S = 10.0  # after the last upload may have ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    if options.follow is not None and options.stage is not None:
        parser.error("--stage serves one stage, and --follow the newest; give one of them")
    return run_command(lambda: _run(options))


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.serve", __doc__ or "", _EXAMPLE)
    add = parser.add_argument
    add("--run", required=True, metavar="RUN", help="folder or URL of a run or of an export")
    add(
        "--stage",
        type=number_from(1, 10**6),
        metavar="T",
        help="after T tasks (default: all)",
    )
    add("--name", metavar="TEXT", help="name of the run in answers (default: RUN as given)")
    add("--weights", metavar="PATH", help="the backbone's weights, if they have moved")
    add("--device", default="cpu", help="cpu, cuda:0, or auto (default: cpu)")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all networks")
    add(
        "--port", type=number_from(0, 65535), default=8080, help="default: 8080; 0 for any free one"
    )
    add(
        "--follow",
        type=_positive,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="serve later stages of the run too; look for one every SECONDS (default: 10)",
    )
    add(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="answer to this host name; repeat it for more. IP addresses and localhost are always "
        "allowed, and with another --host every name unless this option is given",
    )
    limits = parser.add_argument_group("limits", "each is the most that is allowed")
    add = limits.add_argument
    add("--batch", type=number_from(1, 4096), default=32, help="images of a batch (default: 32)")
    add(
        "--batch-wait",
        type=_positive,
        default=5.0,
        metavar="MS",
        help="milliseconds that a batch waits for images that arrive (default: 5)",
    )
    add("--queue", type=number_from(1, 10**6), default=128, help="images in work (default: 128)")
    add("--max-upload-mb", type=_positive, default=16.0, metavar="MB", help="default: 16")
    add("--max-megapixels", type=_positive, default=50.0, metavar="MP", help="default: 50")
    add("--upload-timeout", type=_positive, default=30.0, metavar="SECONDS", help="default: 30")
    add_deadline(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    setup_logging(0)
    spin_briefly(os.environ)  # before torch is imported
    with ExitStack() as stack:
        stack.enter_context(storage.patience(options.deadline))
        with stopped_by_signals(), storage.giving_up_early():
            check_source(options.run, RUN_OR_EXPORT)
            from pipeline.serving import server

            # First the port: loading the model takes seconds.
            bound = stack.enter_context(server.bind(options.host, options.port))
            app, service = _build(options, stack)
        server.run(
            app,
            bound,
            on_start=lambda: _announce(service, server.url_of(bound)),
            drain_s=options.upload_timeout + _DRAIN_S,
        )
    return 0


def _build(options: argparse.Namespace, stack: ExitStack) -> tuple[ASGIApp, Service]:
    """The application and its service, whose threads end with ``stack``."""
    from pipeline.serving.app import build_app
    from pipeline.serving.batching import Batching
    from pipeline.serving.follow import fingerprint, following
    from pipeline.serving.server import LOOPBACK
    from pipeline.serving.service import Service

    limits = _limits(options)
    load = _loader(options)
    seen = fingerprint(options.run) if options.follow else ""
    service = stack.enter_context(
        Service(
            load(),
            options.name or storage.redact(options.run),
            limits,
            Batching(options.batch, options.batch_wait / 1000),
        )
    )
    if options.follow:
        stack.enter_context(following(service, options.run, seen, load, every_s=options.follow))
    is_open = options.host not in LOOPBACK and not options.allow_host
    return build_app(service, hosts=None if is_open else options.allow_host or ()), service


def _limits(options: argparse.Namespace) -> Limits:
    from pipeline.data.decoding import MAX_PIXELS
    from pipeline.serving.service import Limits

    pixels = int(options.max_megapixels * 1e6)
    if pixels > MAX_PIXELS:
        raise ConfigError(
            f"--max-megapixels {options.max_megapixels:g}: no image of more than "
            f"{MAX_PIXELS / 1e6:.0f} is decoded; give less"
        )
    return Limits(
        queue=options.queue,
        upload_bytes=int(options.max_upload_mb * 1e6),
        upload_s=options.upload_timeout,
        pixels=pixels,
    )


def _loader(options: argparse.Namespace) -> Callable[[], Classifier]:
    """Loads the classifier and lets it classify one image, as the first one is slow."""
    import torch

    from pipeline.inference import load_classifier
    from pipeline.inference.prediction import choose_device

    device = choose_device(options.device)

    def load() -> Classifier:
        classifier = load_classifier(
            options.run, options.stage, device=device, weights=options.weights
        )
        side = classifier.image_size
        classifier(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        return classifier

    return load


def _announce(service: Service, url: str) -> None:
    classifier = service.classifier
    print(
        f"serving {service.source}, stage {classifier.stage} with {len(classifier.classes)} "
        f"classes, at {url}",
        flush=True,
    )


def _positive(text: str) -> float:
    """A type of options: a finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return number


if __name__ == "__main__":
    sys.exit(main())
