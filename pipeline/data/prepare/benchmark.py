"""A source as a benchmark of the catalogue: its classes, the split that is meant, its counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.catalogue.entry import Benchmark, Split, read_benchmark
from pipeline.data.membership import Membership, hash_membership
from pipeline.data.prepare.archive_sources import TarSource, ZipSource
from pipeline.data.prepare.file_tree import NoImageError
from pipeline.data.prepare.folder_source import FolderSource
from pipeline.data.prepare.list_layout import open_tree, read_lists
from pipeline.data.prepare.parquet_source import ParquetSource
from pipeline.data.prepare.source_images import ImageSource, Listing, printable
from pipeline.data.prepare.split_file import pin_images, read_split_file
from pipeline.data.prepare.splits import SPLITS, SplitChoice
from pipeline.errors import ConfigError, DataError


@dataclass(frozen=True)
class BenchmarkChoice:
    """The options about a benchmark; ``split`` is a name of the catalogue or a JSON file."""

    name: str
    split: str | None = None
    other_counts: bool = False  # images or classes may be more or fewer than expected


def list_images(
    source: ImageSource | ParquetSource,
    choice: BenchmarkChoice | None,
    splits: SplitChoice,
    url: str,
) -> Listing:
    """The images of ``source`` at ``url``; of a benchmark, with its classes and in its split.

    Raises:
        PipelineError: the source has another class or other counts, or the split is not clear.
    """
    if choice is None:
        return source.list_images(splits)
    entry, place = read_benchmark(choice.name), storage.redact(url)
    listing, name = _in_splits(source, choice, entry, splits, place)
    listing = _with_classes(listing, choice.name, entry, place)
    digest = hash_membership((i.split, i.folder, i.path) for i in listing.images)
    problems = list(_problems(listing, entry, entry.splits.get(name), digest))
    if problems and not choice.other_counts:
        raise DataError(
            f"{place}: is not {choice.name}, split {name!r}: {'; '.join(problems)}; get it from "
            f"{entry.url}, choose another split, or continue with --allow-other-counts"
        )
    if problems and name in entry.splits:  # published results are on other images
        name = f"{name}, other counts"
    found = f"{choice.name}, split {name!r}: membership sha256 {digest}"
    notes = (*listing.notes, found, *(f"not as in the catalogue: {text}" for text in problems))
    return replace(listing, notes=notes, membership=Membership(choice.name, name, digest))


def _in_splits(
    source: ImageSource | ParquetSource,
    choice: BenchmarkChoice,
    entry: Benchmark,
    splits: SplitChoice,
    place: str,
) -> tuple[Listing, str]:
    """The images in the split that is meant, with the class folders of the source; its name."""
    tree_source = source if isinstance(source, FolderSource | TarSource | ZipSource) else None
    if choice.split is not None and choice.split not in entry.splits:
        pinned = read_split_file(choice.split, entry)
        if tree_source is None:
            raise DataError(f"{place}: --split FILE needs a folder, .tar or .zip of image files")
        return pin_images(open_tree(tree_source), entry, pinned), _name_of_file(choice.split, entry)
    forms = [form for form in entry.lists if form.split and choice.split in (None, form.split)]
    is_drawn = splits.chosen is not None or splits.test_fraction > 0
    if tree_source is not None and forms and not is_drawn:
        found = read_lists(forms, open_tree(tree_source))
        if found is not None:
            return found[0], str(found[1])
    name = _split_name(choice, entry, splits)
    try:
        return source.list_images(splits), name
    except NoImageError as error:
        raise DataError(f"{error}; {choice.name} is read from {entry.layout}") from None


def _name_of_file(url: str, entry: Benchmark) -> str:
    """The split whose list is published under the name of this file, or else that name."""
    file = PurePosixPath(url)
    known = (name for name, split in entry.splits.items() if split.file == file.name)
    return next(known, file.stem)


def _split_name(choice: BenchmarkChoice, entry: Benchmark, splits: SplitChoice) -> str:
    """The name of the split that a source without lists holds.

    Raises:
        ConfigError: the benchmark has several, and none is chosen.
    """
    if choice.split is not None:
        return choice.split
    if splits.test_fraction:
        return f"drawn: {splits.test_fraction} with seed {splits.seed}"
    if len(entry.splits) == 1:
        return next(iter(entry.splits))
    raise ConfigError(
        f"{choice.name} has several splits: {', '.join(entry.splits)}; choose with --split NAME, "
        f"or give its list with --split FILE. `tppt benchmarks {choice.name}` describes them"
    )


def _with_classes(listing: Listing, name: str, entry: Benchmark, place: str) -> Listing:
    """The images with the class folders of the catalogue.

    Raises:
        DataError: a folder is not a class.
    """
    images = []
    for image in listing.images:
        folder = entry.find_class(image.folder)
        if folder is not None:
            images.append(replace(image, folder=folder))
        elif image.folder in entry.ignored:
            listing.left_out.add("its folder is not a class of the benchmark", str(image))
        else:
            raise DataError(
                f"{place}: class {printable(image.folder)!r} is not one of the "
                f"{entry.class_count} of {entry.title}; `tppt benchmarks {name} --classes` lists "
                "them; take the folder out, or rename it"
            )
    present = {image.folder for image in images}
    order = tuple(folder for folder in entry.classes if folder in present)
    return replace(listing, images=images, class_order=order, class_names=entry.classes)


def _problems(
    listing: Listing, entry: Benchmark, split: Split | None, digest: str
) -> Iterator[str]:
    """A text for each count that is not that of the split; of a split of one's own: its classes."""
    n_classes = len(listing.class_order or ())
    expected = entry.class_count if split is None else entry.classes_of(split)
    if n_classes != expected:
        yield f"found {n_classes:,} classes, expected {expected:,}"
    if split is None:
        return
    found = Counter(image.split for image in listing.images)
    for name, count in zip(SPLITS, (split.train, split.test), strict=True):
        if count is not None and found[name] != count:
            yield f"found {found[name]:,} {name} images, expected {count:,}"
    if split.sha256 is not None and split.sha256 != digest:
        yield f"found the membership {digest}, expected {split.sha256}"
