"""Export a run as files that other programs load: safetensors, ONNX, torch.export.

The folder holds the learned tensors, a record of preprocessing and classes, a model card, and a
short loader that needs torch and open_clip alone. predict and serve take it in place of the run.
See docs/EXPORT.md.
Exit status: 0; 2 if the run cannot be exported or a form gives other results; 75 if stopped by
Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.cli import add_deadline, build_parser, run_command, stopped_by_signals
from pipeline.errors import ConfigError
from pipeline.log import setup_logging
from pipeline.run_source import RUN, check_source
from pipeline.text import format_bytes, format_percent
from pipeline.threads import spin_briefly

if TYPE_CHECKING:
    from pipeline.exporting.export import Export

_EXAMPLE = """\
Examples:
  python -m pipeline.export --run runs/demo/tppt_vt --out exports/demo
  python -m pipeline.export --run s3://runs/inr --stage 5 --out exports/inr --onnx --verify
  python -m pipeline.export --out exports/demo --push USER/REPOSITORY --private
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parse(arguments)
    return run_command(lambda: _run(options))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser("python -m pipeline.export", __doc__ or "", _EXAMPLE)
    add = parser.add_argument
    add("--run", metavar="RUN", help="folder or URL of the run; left out: push what --out holds")
    add("--out", required=True, metavar="DIR", help="new or empty folder or URL for the export")
    add("--stage", type=int, metavar="T", help="as it was after T tasks (default: all)")
    add("--weights", metavar="PATH", help="the backbone's weights, if they have moved")
    add("--seeds", nargs="+", default=[], metavar="RUN", help="other seeds, for mean ± sd")
    add("--onnx", action="store_true", help="also write classifier.onnx")
    add("--torch-export", action="store_true", help="also write classifier.pt2")
    add(
        "--verify",
        nargs="*",
        metavar="INDEX",
        help="classify the test images in every form, from INDEX or the run's own index",
    )
    add("--force", action="store_true", help="replace the export that --out holds")
    add("--push", metavar="USER/REPO", help="upload to the Hugging Face Hub")
    add("--private", action="store_true", help="make a new repository private")
    add_deadline(parser)
    options = parser.parse_args(arguments)
    if options.run is None and not options.push:
        parser.error("give --run to export a run, or --push to upload the export in --out")
    if options.run is None and (options.verify is not None or options.onnx or options.torch_export):
        parser.error("--onnx, --torch-export and --verify need --run")
    if options.private and not options.push:
        parser.error("--private is about a new repository; give --push USER/REPO too")
    return options


def _run(options: argparse.Namespace) -> int:
    setup_logging(0)
    spin_briefly(os.environ)  # before torch is imported
    with stopped_by_signals(), storage.patience(options.deadline):
        if options.push:
            from pipeline.exporting.hub import check_push

            check_push(options.out, options.push)
        with storage.giving_up_early():
            if options.run:
                check_source(options.run, RUN)
            _check_out(options)
        if options.run:
            _export(options)
        if options.push:
            from pipeline.exporting.hub import push

            address = push(options.out, options.push, private=options.private)
            sys.stdout.write(f"uploaded to {address}\n")
    return 0


def _check_out(options: argparse.Namespace) -> None:
    from pipeline.exporting.files import check_target
    from pipeline.inference.export_record import is_export

    if options.run:
        check_target(options.out, force=options.force)
    elif not is_export(options.out):
        raise ConfigError(
            f"{storage.redact(options.out)}: holds no export; give --run to make one there"
        )


def _export(options: argparse.Namespace) -> None:
    from rich.console import Console

    from pipeline.exporting.export import Export

    with Console(stderr=True).status("loading the run") as status:  # nothing without a terminal
        export = Export(
            options.run,
            options.stage,
            weights=options.weights,
            seeds=options.seeds,
            may_be_program=options.torch_export,
        )
        if export.why_program_alone:
            sys.stdout.write(f"as the program classifier.pt2 alone: {export.why_program_alone}\n")
        if options.torch_export:
            status.update("making classifier.pt2")
            export.add_torch()
        if options.onnx:
            status.update("making classifier.onnx")
            export.add_onnx()
        status.update("comparing scores")
        export.check_scores()
    if options.verify is not None:
        _verify(export, options.verify)
    record = export.write(options.out)
    names = [*record.files, "README.md", *(["load.py"] if record.heads else []), "export.json"]
    for name in names:
        size = format_bytes(storage.size(storage.join(options.out, name)))
        sys.stdout.write(f"{storage.redact(storage.join(options.out, name))}  {size}\n")


def _verify(export: Export, given: Sequence[str]) -> None:
    """Classify the test images in every form, and print the accuracies."""
    from rich.console import Console

    from pipeline.data.opening import open_index
    from pipeline.progress_bar import ProgressLine

    config = export.config
    urls = list(given) or config.data.index
    with storage.giving_up_early():
        index = open_index(urls, known_classes=config.tasks.known_classes)
    with ProgressLine(console=Console(stderr=True), transient=True) as progress:
        line = progress.add_task("classifying", total=export.n_test_images)
        checks = export.check_images(index, lambda images: progress.advance(line, images))
    accuracy = format_percent([export.accuracy], digits=2)
    sys.stdout.write(f"{export.n_test_images:,} test images; the run had {accuracy} %\n")
    for check in checks:
        sys.stdout.write(
            f"  {check.form:<24}{100 * check.accuracy:.2f} %  {check.correct:,} correct, "
            f"{check.different:,} predicted otherwise than by the run\n"
        )


if __name__ == "__main__":
    sys.exit(main())
