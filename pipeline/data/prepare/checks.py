"""Checks of a data set while it is prepared: before the work, and of its result."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.data.index import ShardIndex
from pipeline.data.prepare.audit import gather_statistics
from pipeline.data.prepare.source_images import Listing, SourceImage, printable
from pipeline.data.prepare.splits import SPLITS
from pipeline.errors import DataError
from pipeline.text import first_few


def refuse_left_out(listing: Listing, place: str) -> None:
    """Return if every file of the source is read.

    Raises:
        DataError: a file is left out, or a class folder has no image.
    """
    if len(listing.left_out):
        raise DataError(
            f"{place}: {len(listing.left_out):,} files would be left out: {listing.left_out}; "
            "move them out of the source, or leave out --strict"
        )


def refuse_disjoint(images: Iterable[SourceImage], place: str) -> None:
    """Return if the splits have a class in common, or there is only one split.

    Raises:
        DataError: no test image has a class of the training images.
    """
    classes: dict[str, set[str]] = {split: set() for split in SPLITS}
    for image in images:
        classes[image.split].add(image.folder)
    if all(classes.values()) and not classes["train"] & classes["test"]:
        examples = [printable(min(classes[split])) for split in SPLITS]
        raise DataError(
            f"{place}: train and test have no class in common (train has {examples[0]!r}, test has "
            f"{examples[1]!r}); sort the test images into class folders, list them in a CSV with "
            "path, label and split, or draw the test split with --splits train=train "
            "--test-fraction 0.2"
        )


def find_warnings(index: ShardIndex, listing: Listing) -> tuple[str, ...]:
    """A sentence for each peculiarity of the prepared data set: missing classes, copies."""
    warnings = []
    for split in SPLITS:
        without = [index.class_names[c] for c, count in index.count(split).items() if not count]
        if without and len(without) == len(index.class_names):
            warnings.append(f"there is no {split} image; a run needs both splits")
        elif without:
            names = first_few([repr(name) for name in without], 3)
            warnings.append(f"classes without a {split} image: {names}")
    absent = set(listing.class_order or ()) - set(index.class_folders)
    if absent:
        names = first_few(sorted(map(repr, absent)), 3)
        warnings.append(f"classes that the source names, without an image: {names}")
    statistics = gather_statistics(index)
    if statistics.leaks:
        test, train = statistics.leaks[0]
        warnings.append(
            f"{len(statistics.leaks):,} test images have the same bytes as a training image "
            f"(first: {test} = {train}); results on them are not valid"
        )
    for split, copies in statistics.repeats.items():
        if copies:
            warnings.append(f"{copies:,} {split} images are copies of another {split} image")
    return tuple(warnings)


def first_image_notes(count: int) -> tuple[str, ...]:
    """A sentence about files of which only the first image is read, if there are any."""
    if not count:
        return ()
    return (f"{count:,} files hold several images (frames or pages); the first of each is read",)


def orientation_notes(count: int, orientation: str) -> tuple[str, ...]:
    """A sentence about images with an EXIF orientation, if there are any."""
    if not count:
        return ()
    done = "were turned as their EXIF orientation says, and stored as JPEG"
    if orientation == "ignore":
        done = "have an EXIF orientation that was ignored"
    return (f"{count:,} images {done}",)
