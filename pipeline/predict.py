"""Classify image files with a finished run or an export; the training data are not needed.

PATH is a file, a folder, a tar or zip, a pattern such as 'photos/**/*.jpg', a URL of these, or -
for a list on standard input: one path per line, or separated by zero bytes. A file that is named
twice is classified once. Rows have the order of the paths. See docs/PREDICT.md.
Exit status: 0; 2 if no image could be classified, or with --strict if one could not; 75 if stopped
by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, TextIO

from pipeline import storage
from pipeline.cli import add_deadline, build_parser, number_from, run_command, stopped_by_signals
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.log import setup_logging
from pipeline.run_source import RUN_OR_EXPORT, check_source
from pipeline.text import first_few, format_percent
from pipeline.threads import spin_briefly

if TYPE_CHECKING:
    from pipeline.inference import Classifier
    from pipeline.inference.images import FoundImages
    from pipeline.inference.labels import Labels, Score

_EXAMPLE = """\
Examples:
  python -m pipeline.predict --run runs/demo/tppt_vt photos/ more.tar 'scans/*.png'
  find . -name '*.jpg' -print0 | python -m pipeline.predict --run runs/demo/tppt_vt -
  python -m pipeline.predict --run runs/demo/tppt_vt --labels folders --out rows.csv photos/
"""
_PATIENCE_S = 2.0  # before progress is shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    if not options.paths and options.labels in (None, "folders"):
        parser.error("give the images: files, folders, archives, patterns, URLs, or - for a list")
    return run_command(lambda: _run(options))


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.predict", __doc__ or "", _EXAMPLE)
    add, count = parser.add_argument, number_from(1, 1 << 16)
    add("paths", nargs="*", metavar="PATH", help="images; default: those of the --labels CSV")
    add("--run", required=True, metavar="RUN", help="folder or URL of a run or of an export")
    add("--stage", type=int, metavar="T", help="after T tasks (default: all)")
    add("--task", type=count, metavar="N", help="only the classes of task N (default: all)")
    add("--weights", metavar="PATH", help="the backbone's weights, if they have moved")
    add("--top", type=count, default=5, metavar="K", help="best classes of an image (default: 5)")
    add("--format", choices=["csv", "jsonl"], default="csv", help="default: csv")
    add("--out", metavar="FILE", help="file or URL for the rows, written at the end")
    add("--labels", metavar="folders|CSV", help="true classes, for the accuracy: the folder of "
        "each image, or a CSV with the columns path and class")  # fmt: skip
    add("--per-class", action="store_true", help="with --labels: the accuracy of each class")
    add("--strict", action="store_true", help="exit status 2 if an image cannot be classified")
    add("--batch", type=count, default=64, metavar="N", help="images at once (default: 64)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    add_deadline(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    setup_logging(0)
    spin_briefly(os.environ)  # before torch is imported
    if options.per_class and not options.labels:
        raise ConfigError("--per-class needs the true classes; give --labels too")
    with stopped_by_signals(), storage.patience(options.deadline), storage.giving_up_early():
        return _predict(options)


def _predict(options: argparse.Namespace) -> int:
    check_source(options.run, RUN_OR_EXPORT)
    from pipeline.inference import load_classifier
    from pipeline.inference.images import find_images
    from pipeline.inference.labels import Score, read_labels
    from pipeline.inference.prediction import choose_device

    labels = read_labels(options.labels) if options.labels else None
    paths = _with_stdin(options.paths) or list((labels and labels.class_of) or ())
    found = find_images(paths)
    for problem in found.problems:
        _say(problem)
    if options.out is not None:
        _check_out(options.out)
    if not found.images:
        raise DataError("no image was found; give files, folders, archives or patterns of images")
    device = choose_device(options.device)
    classifier = load_classifier(options.run, options.stage, device=device, weights=options.weights)
    if options.task:
        classifier = classifier.of_task(options.task)
    score = Score(classifier.classes)
    with _rows_to(options.out) as file:
        n_failed = _classify_all(options, classifier, found, labels, score, file)
        _summarise(found, n_failed)
        if labels is not None:
            _show_score(score, classifier, per_class=options.per_class)
        if n_failed == len(found.images):  # --out keeps the file that it has
            raise DataError("no image could be classified; see the lines above")
    n_problems = n_failed + len(found.problems)
    if options.strict and n_problems:
        raise DataError(f"{n_problems:,} images or paths could not be classified, and --strict "
                        "was given; see the lines above")  # fmt: skip
    return 0


def _with_stdin(paths: Sequence[str]) -> list[str]:
    """``paths`` with the list on standard input in the place of ``-``."""
    complete: list[str] = []
    for path in paths:
        if path != "-":
            complete.append(path)
            continue
        data = sys.stdin.buffer.read()
        separator = b"\0" if b"\0" in data else b"\n"
        lines = (line.removesuffix(b"\r") for line in data.split(separator))
        complete += [os.fsdecode(line) for line in lines if line]
    return complete


def _check_out(url: str) -> None:
    """Refuse a place for the rows where no file can be written, before images are classified.

    Raises:
        StorageError: it is a folder, or cannot be reached.
    """
    if not storage.is_local(url):
        storage.exists(url)
        return
    path = os.path.abspath(storage.local_path(url)) if url else ""
    try:
        if not path or os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "it names a folder")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.TemporaryFile(dir=os.path.dirname(path)):
            pass
    except OSError as error:
        raise StorageError(
            f"--out {url!r} cannot be written: {error.strerror}; give another file"
        ) from None


@contextmanager
def _rows_to(url: str | None) -> Iterator[TextIO]:
    """Standard output, or a text that is written to ``url`` if no error is raised."""
    if url is None:
        yield sys.stdout
        return
    text = io.StringIO(newline="")
    yield text
    storage.write_atomically(url, text.getvalue().encode("utf-8", "backslashreplace"))


def _classify_all(
    options: argparse.Namespace,
    classifier: Classifier,
    found: FoundImages,
    labels: Labels | None,
    score: Score,
    file: TextIO,
) -> int:
    """Write a row per image; returns how many images could not be classified."""
    from pipeline.inference.prediction import classify
    from pipeline.inference.rows import Rows

    n_failed = 0
    rows = Rows(
        file,
        options.format,
        classes=classifier.classes,
        task_of_class=classifier.task_of_class,
        top=options.top,
        labelled=labels is not None,
    )
    batches = classify(classifier, found.images, batch=options.batch, top=options.top)
    with closing(batches), _progress(len(found.images), hidden=file.isatty()) as advance:
        for batch in batches:
            for prediction in batch:
                if prediction.problem:
                    n_failed += 1
                    _say(f"{prediction.image.name} {prediction.problem}")
                    continue
                label = None if labels is None else labels.of(prediction.image)
                if labels is not None:
                    score.add(label, prediction.classes[0])
                rows.write(prediction, label)
            file.flush()
            advance(len(batch))
    return n_failed


@contextmanager
def _progress(total: int, *, hidden: bool) -> Iterator[Callable[[int], None]]:
    """A function that counts images; after two seconds it shows their number on a terminal.

    ``hidden`` where the rows themselves are shown there.
    """
    from rich.console import Console

    from pipeline.progress_bar import ProgressLine

    started = time.monotonic()
    line = ProgressLine(console=Console(stderr=True), transient=True)
    task = line.add_task("images", total=total)

    def advance(n: int) -> None:
        line.advance(task, n)
        if not hidden and not line.live.is_started and time.monotonic() > started + _PATIENCE_S:
            line.start()

    try:
        yield advance
    finally:
        line.stop()


def _summarise(found: FoundImages, n_failed: int) -> None:
    """One line about all images, on stderr."""
    parts = [f"{_count(len(found.images) - n_failed, 'image')} classified"]
    if n_failed:
        parts.append(f"{n_failed:,} not")
    if found.problems:
        parts.append(f"{_count(len(found.problems), 'path')} without an image")
    if found.n_repeated:
        parts.append(f"{found.n_repeated:,} named twice")
    if found.left_out:
        parts.append(f"{_count(len(found.left_out), 'other file')} left out ({found.left_out})")
    _say(", ".join(parts))


def _show_score(score: Score, classifier: Classifier, *, per_class: bool) -> None:
    """The accuracy beside the labels, on stderr."""
    n_tested = score.images.total()
    if n_tested:
        _say(
            f"accuracy {format_percent([score.micro])} % of {_count(n_tested, 'image')}, "
            f"{format_percent([score.macro])} % as the mean of "
            f"{_count(len(score.images), 'class', 'classes')}"
        )
    if per_class:
        for number, name in enumerate(score.classes):
            if n := score.images[number]:
                right = score.correct[number]
                task = classifier.task_of_class[number]
                _say(f"  {name} (task {task}): {right:,} of {n:,}, {100 * right / n:.1f} %")
    if score.unknown:
        _say(
            f"not in the accuracy: {_count(score.unknown.total(), 'image')}; at stage "
            f"{classifier.stage} the run does not know {first_few(sorted(score.unknown))}"
        )
    if score.n_unlabelled:
        _say(f"without a label: {_count(score.n_unlabelled, 'image')}")


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _say(line: str) -> None:
    """Write a line to stderr, above a progress display."""
    from pipeline.data.prepare.source_images import printable

    sys.stderr.write(printable(line) + "\n")


if __name__ == "__main__":
    sys.exit(main())
