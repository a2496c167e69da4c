"""Images of each class as the model sees them: from the shards, with the transform of the run.

The images of a class are spaced evenly over its samples in their order, so that a sheet shows its
variety, and two sheets of equal content are equal. A random transform draws as it does in the first
epoch of the run.

N images of one class, C channels, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline import storage
from pipeline.config import Config
from pipeline.data.batch import BatchMaker, Request
from pipeline.data.index import ShardIndex, Split
from pipeline.data.opening import open_index
from pipeline.data.reader import ShardReader
from pipeline.data.transforms import Transform, build_transform
from pipeline.errors import ConfigError, DataError
from pipeline.inspection.findings import Progress
from pipeline.inspection.kinds import recognise
from pipeline.inspection.sheet import SheetRow, draw_sheet, sheet_size
from pipeline.output.results import CONFIG_NAME, read_results
from pipeline.settings_file import parse_section
from pipeline.text import did_you_mean, first_few, printable
from pipeline.yaml_text import parse_yaml

MOST_CLASSES = 50  # of a sheet, unless classes are named
_MOST_PER_CLASS = 100
_IMAGE_SIZE = 224  # of a data set without --arch and --image-size


@dataclass(frozen=True)
class GridOptions:
    """What a sheet shows; None: as the run does, or a default."""

    split: Literal["train", "test"] = "train"
    per_class: int = 8
    classes: Sequence[str] | None = None
    arch: str | None = None
    transform: str | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class _Class:
    """A class in the order of the sheet; ``task`` is counted from 0."""

    label: int
    name: str
    task: int | None


@dataclass(frozen=True, eq=False)
class _Source:
    """Where the images come from, and how they are transformed."""

    index: ShardIndex
    classes: Sequence[_Class]
    split: Split
    validation_fraction: float
    transform: Transform
    seed: int
    notes: tuple[str, ...] = ()


def draw_grid(url: str, file: str, options: GridOptions, progress: Progress) -> list[str]:
    """Draw the sheet of a data set or a run into ``file``, a PNG; returns what to report.

    Raises:
        ConfigError: an option does not fit, or the sheet would be too large.
        DataError: ``url`` is neither a data set nor a run, or a shard is damaged.
        StorageError: a file cannot be read or written.
    """
    if not 1 <= options.per_class <= _MOST_PER_CLASS:
        raise ConfigError(
            f"--per-class {options.per_class} is not possible; choose 1 to {_MOST_PER_CLASS}"
        )
    kind, folder = recognise(url)
    if kind not in ("data set", "run"):
        raise DataError(
            f"{storage.redact(url)}: is a {kind}, and --grid draws images of a data set or a run; "
            "give one of these"
        )
    source = _of_run(folder, options) if kind == "run" else _of_data_set(folder, options)
    classes = _chosen(source, options.classes)
    sheet_size(len(classes), options.per_class, source.transform.image_size)  # refuse it at once
    maker = BatchMaker(ShardReader(source.index))
    rows, notes = [], list(source.notes)
    for each in classes:
        row, problems = _row(source, maker, each, options.per_class)
        rows.append(row)
        notes += problems
        progress(len(rows), len(classes))
    data = io.BytesIO()
    sheet = draw_sheet(rows, source.transform.image_size)
    sheet.save(data, "PNG")
    storage.write_atomically(file, data.getvalue())
    left = len(source.classes) - len(classes)
    if left and options.classes is None:
        notes.append(f"the first {len(classes)} of {len(source.classes)} classes; see --classes")
    size = source.transform.image_size
    return [
        f"{storage.redact(file)}: {len(rows)} classes, {source.split} images, transform "
        f"{source.transform.name} at {size} × {size} pixels",
        *notes,
    ]


def _of_data_set(folder: str, options: GridOptions) -> _Source:
    index = open_index(folder)
    classes = [_Class(label, name, None) for label, name in enumerate(index.class_names)]
    transform = _transform(options, name="clip", arch=None)
    return _Source(index, classes, options.split, 0.0, transform, seed=1)


def _of_run(output: str, options: GridOptions) -> _Source:
    place = storage.redact(output)
    results = read_results(output)
    tree: Any = results.manifest.config if results else _settings(output)
    config = parse_section(Config, tree, place=place)
    data, evaluation = config.data, config.evaluation
    index = open_index(data.index, known_classes=config.tasks.known_classes)
    if evaluation.split == "validation":
        index = index.with_closed("test")
    split: Split = evaluation.split if options.split == "test" else "train"
    if split == "train" and data.validation_fraction:
        split = "fit"
    name = data.eval_transform if options.split == "test" else data.train_transform
    transform = _transform(options, name=name, arch=config.model.arch)
    notes: tuple[str, ...] = ()
    classes = [_Class(label, name, None) for label, name in enumerate(index.class_names)]
    if results:
        if index.sha256 != results.manifest.index_sha256:
            notes = ("the data set is not the one that the run has learned: its index was changed",)
        labels = iter(results.manifest.class_order)
        named = [(name, task) for task, names in enumerate(results.tasks) for name in names]
        classes = [_Class(next(labels), name, task) for name, task in named]
    return _Source(index, classes, split, data.validation_fraction, transform, config.seed, notes)


def _settings(output: str) -> Any:
    url = storage.join(output, CONFIG_NAME)
    return parse_yaml(storage.read_text(url), place=storage.redact(url))


def _transform(options: GridOptions, *, name: str, arch: str | None) -> Transform:
    """The transform that the options name, or else the run."""
    size, arch = options.image_size, options.arch or arch
    if size is not None and not 1 <= size <= 1 << 13:
        raise ConfigError(f"--image-size {size} is not possible; choose 1 to {1 << 13} pixels")
    if size is None and arch:
        from pipeline.model.weights import image_size_of  # imports open_clip: seconds

        size = image_size_of(arch)
    return build_transform(options.transform or name, size or _IMAGE_SIZE)


def _chosen(source: _Source, names: Sequence[str] | None) -> list[_Class]:
    if names is None:
        return list(source.classes[:MOST_CLASSES])
    known = {each.name: each for each in source.classes}
    unknown = [name for name in names if name not in known]
    if unknown:
        few = first_few(unknown, 5)
        raise ConfigError(f"--classes: there is no class {few}; {did_you_mean(unknown[0], known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _row(
    source: _Source, maker: BatchMaker, each: _Class, per_class: int
) -> tuple[SheetRow, list[str]]:
    """The images of one class, and a sentence for each that cannot be decoded."""
    title = each.name if each.task is None else f"{each.name}, task {each.task + 1}"
    size = source.transform.image_size
    stored = "test" if source.split == "test" else "train"
    if not source.index.count(stored)[each.label]:
        blank = np.empty((0, size, size, 3), dtype=np.uint8)
        return SheetRow(f"{title}: no {source.split} image", blank), []
    selection = source.index.select(
        source.split, [each.label], validation_fraction=source.validation_fraction
    )
    last = len(selection) - 1
    chosen_N = np.unique(np.linspace(0, last, min(per_class, last + 1)).round().astype(np.int64))
    samples = selection.take(chosen_N)
    seed_path = ("augment", source.seed, each.task or 0, 0) if source.transform.is_random else ()
    answer = maker[Request(samples, source.transform, seed_path)]
    image_NCHW = answer.batch().image_BCHW
    assert image_NCHW is not None
    problems = [
        printable(f"{samples.keys[row]} of {each.name}: {text}") for row, text in answer.bad.items()
    ]
    images = image_NCHW.permute(0, 2, 3, 1).numpy()
    return SheetRow(title, images, frozenset(answer.bad)), problems
