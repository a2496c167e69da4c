"""Images that two joined indexes have: refused, or reported as copies."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline import storage
from pipeline.data.index import ShardIndex
from pipeline.data.samples import read_table
from pipeline.errors import DataError

log = logging.getLogger(__name__)


class _Image(NamedTuple):
    group: int
    split: str
    key: str
    place: str  # the index


def check_repeats(index: ShardIndex, *, n_groups: int) -> None:
    """Check that the first ``n_groups`` joined indexes do not list one image of a class twice.

    An image is repeated if its key, split and bytes are equal. Equal bytes under another key or in
    the other split give a warning with their number. Only classes of two indexes are read, and no
    closed split.

    Raises:
        DataError: an image is repeated.
    """
    known: dict[bytes, list[_Image]] = {}
    copies: dict[str, list[str]] = {"test": [], "copy": []}
    for digest, image in _images_of_shared_classes(index, n_groups):
        equal = known.setdefault(digest, [])
        others = [other for other in equal if other.group != image.group]
        equal.append(image)
        for other in others:
            if (other.split, other.key) == (image.split, image.key):
                raise DataError(
                    f"{image.place}: the {image.split} image {image.key} is in {other.place} too, "
                    "with the same bytes; an image may be in one index only: prepare the new index "
                    "from the new images alone"
                )
        if others:
            leak = next((other for other in others if other.split != image.split), None)
            other = leak or others[0]
            copies["test" if leak else "copy"].append(
                f"{other.place} {other.key} = {image.place} {image.key}"
            )
    if copies["test"]:
        log.warning(
            "%d images have the same bytes as an image of the other split in another index "
            "(first: %s); results on them are not valid",
            len(copies["test"]),
            copies["test"][0],
        )
    if copies["copy"]:
        log.warning(
            "%d images are copies of an image of another index (first: %s)",
            len(copies["copy"]),
            copies["copy"][0],
        )


def _images_of_shared_classes(index: ShardIndex, n_groups: int) -> Iterator[tuple[bytes, _Image]]:
    """The images of classes that two indexes have, each with the hash of its bytes."""
    shared = {label for labels in index.known_labels[:n_groups] for label in labels}
    for shard in index.shards:
        is_open = shard.group < n_groups and shard.split not in index.closed_splits
        if not is_open or shared.isdisjoint(shard.class_counts):
            continue
        table = read_table(shard)
        place = storage.redact(shard.folder)
        label_S = np.repeat(
            [segment.label for segment in shard.segments],
            [segment.samples for segment in shard.segments],
        )
        for row in np.flatnonzero(np.isin(label_S, [*shared])):
            image = _Image(shard.group, shard.split, table.keys[row], place)
            yield table.image_sha256_S32[row].tobytes(), image
