"""The content of a prepared data set: its classes, its shards, and the place of each sample.

``<url>/index.json``          classes, and per shard: split, samples, bytes, sha256, segments
``<url>/<shard>.tar``         a WebDataset tar: ``<key>.cls`` and ``<key>.<suffix>`` per sample
``<url>/<shard>.json``        one table per shard: key, offset, size and checksums of each sample

Samples are sorted by split, class and key. A *segment* is a series of samples of one class within
one shard, at most a few MiB long. Bytes are fetched, checked and cached by segment, so a task reads
only its own classes, in any order of classes. The index is written last: if it exists, the data set
is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from mmap import mmap
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.data.addresses import AddressTable, NodeFiles, pack_draws, pack_table
from pipeline.data.membership import Membership, parse_membership
from pipeline.data.samples import SampleTable, read_table, refuse_closed
from pipeline.data.selection import SegmentColumns
from pipeline.data.selection import Selection as Selection
from pipeline.data.selection import Split as Split
from pipeline.data.shard import Segments, Shard, format_shard, in_columns, parse_shard
from pipeline.errors import DataError
from pipeline.text import first_few

SCHEMA = 1
INDEX_NAME = "index.json"
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_MANY_SAMPLES = 100_000  # from which on the tables of shards are shared by the node


@dataclass(frozen=True)
class ShardIndex:
    """A prepared data set, or several joined; ``sha256`` identifies its content."""

    url: str
    class_names: tuple[str, ...]
    class_folders: tuple[str, ...]
    shards: tuple[Shard, ...]
    sha256: str
    # For each joined index, in order: the label here of each of its classes.
    group_labels: tuple[tuple[int, ...], ...]
    orientation: str | None = None  # of images with an EXIF tag: "applied", "ignored"; None: no tag
    membership: Membership | None = None  # the benchmark and split, if it was prepared as one
    memberships: tuple[Membership | None, ...] = ()  # the same of each joined index
    closed_splits: frozenset[str] = frozenset()  # splits that must not be opened
    files: NodeFiles | None = field(default=None, repr=False, compare=False)
    _tables: dict[int, SampleTable] = field(default_factory=dict, repr=False, compare=False)
    _addresses: dict[int, AddressTable] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def segments(self) -> SegmentColumns:
        """All segments, as columns."""
        return SegmentColumns.of(self.shards)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """The number of classes that each joined index adds to those before it."""
        ends = (max(labels, default=-1) + 1 for labels in self.group_labels)
        totals = list(accumulate(ends, max, initial=0))
        return tuple(after - before for before, after in pairwise(totals))

    @property
    def known_labels(self) -> tuple[tuple[int, ...], ...]:
        """For each joined index: the classes of earlier ones that it has images of."""
        shown: list[set[int]] = [set() for _ in self.group_labels]
        for shard in self.shards:
            shown[shard.group].update(shard.class_counts)
        firsts = accumulate(self.group_sizes, initial=0)
        return tuple(
            tuple(label for label in labels if label < first and label in shown[group])
            for group, (labels, first) in enumerate(zip(self.group_labels, firsts, strict=False))
        )

    def with_closed(self, *splits: str) -> ShardIndex:
        """The same index, which refuses to open any table or sample of ``splits``.

        The counts and hashes of those splits remain readable, since the index contains them.
        """
        closed = self.closed_splits.union(splits)
        return replace(self, closed_splits=closed, _tables={}, _addresses={})

    def with_node_files(self, files: NodeFiles) -> ShardIndex:
        """The same index; if it is large, the processes of this node share its tables."""
        return replace(self, files=files, _addresses={}) if self.is_large else self

    @property
    def is_large(self) -> bool:
        """Whether reading a row per sample takes so long that no start should do it."""
        return sum(shard.samples for shard in self.shards) >= _MANY_SAMPLES

    def select(
        self,
        split: Split,
        labels: Sequence[int],
        *,
        validation_fraction: float = 0.0,
        groups: Collection[int] | None = None,
    ) -> Selection:
        """The samples of ``split`` whose class is one of ``labels``.

        ``groups`` are the positions of the joined indexes to read; None: all.

        ``validation`` and ``fit`` divide ``train`` by a hash of each sample's key: about
        ``validation_fraction`` of the images belong to ``validation``, always the same ones.

        Raises:
            DataError: a label is not in the index, no sample matches, or the split is closed.
        """
        self._check_labels(labels)
        stored_split = "test" if split == "test" else "train"
        refuse_closed(stored_split, self.closed_splits, place=self._place)
        shown = self._segments_of(stored_split, labels, groups)
        selection = Selection(self, split, shown)
        if split in ("validation", "fit"):
            is_held_S = self._draws(selection) < int(validation_fraction * 2**63)
            selection = replace(
                selection, kept=np.flatnonzero(is_held_S == (split == "validation"))
            )
        if not len(selection):
            remedy = "prepare the data set with that split"
            if split in ("validation", "fit"):
                remedy = f"change data.validation_fraction, which is {validation_fraction}"
            raise DataError(
                f"{self._place}: no {split} sample of classes {first_few(sorted({*labels}), 5)}; "
                f"{remedy}, or choose other classes"
            )
        return selection

    def addresses(self, shard_number: int) -> AddressTable:
        """The address of each sample of one shard; read once, then kept.

        Raises:
            StorageError: the table cannot be read.
            DataError: the table does not match the index, or its split is closed.
        """
        if shard_number not in self._addresses:
            shard = self.shards[shard_number]
            refuse_closed(shard.split, self.closed_splits, place=storage.redact(shard.table_url))

            def make() -> bytes:
                return pack_table(read_table(shard))

            data = self._node_file(shard, "", make)
            self._addresses[shard_number] = AddressTable(data, shard.samples)
        return self._addresses[shard_number]

    def table(self, shard_number: int) -> SampleTable:
        """The addresses of the samples of one shard; read once, then kept.

        Raises:
            DataError: the table does not match the index, or its split is closed.
        """
        shard = self.shards[shard_number]
        refuse_closed(shard.split, self.closed_splits, place=storage.redact(shard.table_url))
        if shard_number not in self._tables:
            self._tables[shard_number] = read_table(shard)
        return self._tables[shard_number]

    def digest(self, labels: Sequence[int], *, group: int | None = None) -> str:
        """A hash of all samples of ``labels`` in both splits: their bytes and their numbers.

        ``group`` is the joined index to read; None: all.
        """
        digest, segments = hashlib.sha256(), self.segments
        for place in self._segments_of(None, labels, None if group is None else [group]):
            shard = self.shards[segments.shard_G[place]]
            first_sample = int(segments.first_sample_G[place])
            sha256 = Segments.of(shard.segments).sha256(segments.number_G[place])
            digest.update(repr((shard.split, first_sample, sha256)).encode())
        return digest.hexdigest()

    def count(self, split: str, *, group: int | None = None) -> dict[int, int]:
        """Samples per label of ``train`` or ``test``, without reading any table.

        ``group`` is the joined index to count in; None: all.
        """
        segments, n_classes = self.segments, len(self.class_names)
        shown = self._segments_of(split, range(n_classes), None if group is None else [group])
        counts_C = np.zeros(n_classes, dtype=np.int64)
        np.add.at(counts_C, segments.label_G[shown], segments.samples_G[shown])
        return dict(enumerate(counts_C.tolist()))

    @property
    def _place(self) -> str:
        return storage.redact(storage.join(self.url, INDEX_NAME))

    def _check_labels(self, labels: Sequence[int]) -> None:
        unknown = sorted(label for label in labels if not 0 <= label < len(self.class_names))
        if unknown:
            raise DataError(
                f"{self._place}: classes {first_few(unknown, 5)} are not in the index, "
                f"which has {len(self.class_names)}"
            )

    def _segments_of(
        self, split: str | None, labels: Collection[int], groups: Collection[int] | None
    ) -> np.ndarray:
        """Positions of the segments of these classes in a stored split and in joined indexes."""
        is_shown = [
            split in (None, shard.split) and (groups is None or shard.group in groups)
            for shard in self.shards
        ]
        segments = self.segments
        is_wanted_C = np.zeros(len(self.class_names), dtype=bool)
        is_wanted_C[list(labels)] = True
        is_shown_G = np.array(is_shown, dtype=bool)[segments.shard_G]
        return np.flatnonzero(is_shown_G & is_wanted_C[segments.label_G])

    def _draws(self, selection: Selection) -> np.ndarray:
        """The number of each sample that decides whether validation holds it out."""
        segments, place_S = self.segments, selection.place_S
        row_S = selection.sample_S - segments.first_sample_G[place_S]
        row_S += segments.first_row_G[place_S]
        shard_S = segments.shard_G[place_S]
        draw_S = np.empty(len(selection), dtype=np.int64)
        numbers = selection.shard_numbers
        # Each process starts at another shard, so that those of a node share the work.
        first = int(os.getpid() * _GOLDEN_RATIO % 1 * len(numbers))
        for number in numbers[first:] + numbers[:first]:
            of_shard = slice(*np.searchsorted(shard_S, [number, number + 1]))
            draw_S[of_shard] = self._draws_of_shard(number)[row_S[of_shard]]
        return draw_S

    def _draws_of_shard(self, number: int) -> np.ndarray:
        shard = self.shards[number]
        data = self._node_file(
            shard, "-validation", lambda: pack_draws(self.addresses(number).keys)
        )
        return np.frombuffer(data, dtype=np.int64, count=shard.samples)

    def _node_file(self, shard: Shard, suffix: str, make: Callable[[], bytes]) -> bytes | mmap:
        """What ``make`` makes of the table of a shard, from the files of the node if it has any."""
        name = f"{shard.table_sha256}-{shard.samples}{suffix}"
        return self.files.get(name, make) if self.files else make()


def read_index(url: str) -> ShardIndex:
    """The index at ``url``: a prepared folder, or its ``index.json``.

    Raises:
        StorageError: the file cannot be read.
        DataError: the file is not an index, or has another schema.
    """
    folder = "." if url == INDEX_NAME else url.removesuffix("/" + INDEX_NAME)
    place = storage.join(folder, INDEX_NAME)
    data = storage.read_bytes(place, most=storage.MAX_TEXT_BYTES)
    return parse_index(folder, data)


def parse_index(folder: str, data: bytes) -> ShardIndex:
    """The index whose bytes are ``data`` and whose shards lie in ``folder``.

    Raises:
        DataError: ``data`` is not an index, or has another schema.
    """
    place = storage.redact(storage.join(folder, INDEX_NAME))
    try:
        content = json.loads(data, object_hook=in_columns)
        if content["schema"] != SCHEMA:
            raise DataError(
                f"{place}: has schema {repr(content['schema'])[:40]}, this version reads {SCHEMA}; "
                "prepare the data set again"
            )
        index = ShardIndex(
            url=folder,
            class_names=tuple(_text(entry["name"]) for entry in content["classes"]),
            class_folders=tuple(_text(entry["folder"]) for entry in content["classes"]),
            shards=tuple(replace(parse_shard(e), folder=folder) for e in content["shards"]),
            sha256=hashlib.sha256(data).hexdigest(),
            group_labels=(tuple(range(len(content["classes"]))),),
            orientation=content.get("orientation"),
            membership=parse_membership(content.get("membership")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{place}: is not an index of shards ({type(error).__name__}: {error}); "
            "make one with `python -m pipeline.prepare shard`"
        ) from None
    _check_index(index, place)
    return index


def format_index(
    class_names: Sequence[str],
    class_folders: Sequence[str],
    shards: Sequence[Shard],
    orientation: str | None = None,
    membership: Membership | None = None,
) -> bytes:
    """The bytes of ``index.json``: equal content gives equal bytes."""
    content = {
        "schema": SCHEMA,
        **({"orientation": orientation} if orientation else {}),
        **({"membership": asdict(membership)} if membership else {}),
        "classes": [
            {"name": name, "folder": folder}
            for name, folder in zip(class_names, class_folders, strict=True)
        ],
        "shards": [format_shard(shard) for shard in shards],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is not text")
    return value


def _check_index(index: ShardIndex, place: str) -> None:
    names = [shard.name for shard in index.shards]
    if len(set(names)) != len(names):
        raise DataError(f"{place}: lists a shard twice; prepare the data set again")
    if index.orientation not in (None, "applied", "ignored"):
        raise DataError(
            f"{place}: orientation is {index.orientation!r}, not 'applied' or 'ignored'; "
            "prepare the data set again"
        )
    for shard in index.shards:
        labels = shard.class_counts
        unknown = sorted(label for label in labels if not 0 <= label < len(index.class_names))
        if unknown:
            raise DataError(
                f"{place}: shard {shard.name} contains classes {first_few(unknown, 5)}, "
                f"but the index names {len(index.class_names)}"
            )
        if sum(labels.values()) != shard.samples:
            raise DataError(f"{place}: the segments of {shard.name} do not add up to its samples")
