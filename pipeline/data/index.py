"""What a prepared data set holds: its classes, its shards, and where each sample lies.

``<url>/index.json``          classes, and per shard: split, samples, bytes, sha256, segments
``<url>/<shard>.tar``         a WebDataset tar: ``<key>.cls`` and ``<key>.<suffix>`` per sample
``<url>/<shard>.json``        one table per shard: key, offset, size and checksums of each sample

Samples are sorted by split, class and key, so the samples of a class are neighbours. A *segment* is
a run of one class within one shard, at most a few MiB long: the unit in which bytes are fetched,
checked and cached, so a task reads only its own classes, whatever the order of the classes.
The index is written last: where it exists, all of the data set does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from pipeline import storage
from pipeline.data.samples import COLUMNS, Samples, SampleTable, read_table, refuse_closed
from pipeline.errors import DataError
from pipeline.rng import derive_seed

SCHEMA = 1
INDEX_NAME = "index.json"

Split = Literal["train", "test", "validation", "fit"]


@dataclass(frozen=True)
class Segment:
    """A run of samples of one class: bytes ``offset`` to ``offset + bytes`` of its shard."""

    label: int
    samples: int
    offset: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One tar in ``folder``; ``split`` is ``train`` or ``test``."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    table_sha256: str
    segments: tuple[Segment, ...]
    folder: str = ""
    first_label: int = 0  # what its own index calls class 0, in the index that it was joined to

    @property
    def url(self) -> str:
        """Where the tar lies."""
        return storage.join(self.folder, self.name)

    @property
    def class_counts(self) -> dict[int, int]:
        """Samples per label."""
        counts: dict[int, int] = {}
        for segment in self.segments:
            counts[segment.label] = counts.get(segment.label, 0) + segment.samples
        return counts

    @property
    def table_name(self) -> str:
        """The name of the file that addresses each sample of this shard."""
        return self.name.removesuffix(".tar") + ".json"

    @property
    def table_url(self) -> str:
        """Where that file lies."""
        return storage.join(self.folder, self.table_name)


@dataclass(frozen=True, eq=False)
class Selection(Samples):
    """The samples of some classes of one split, in canonical order: by shard, then by position."""

    index: ShardIndex = field(repr=False)
    split: Split

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """The distinct (shard, segment) pairs that hold these samples, in canonical order."""
        pairs = np.stack([self.shard_S, self.segment_S], axis=1)
        return [(int(shard), int(segment)) for shard, segment in np.unique(pairs, axis=0)]

    @property
    def bytes(self) -> int:
        """How many bytes must be fetched to read every sample once."""
        shards = self.index.shards
        return sum(shards[shard].segments[segment].bytes for shard, segment in self.segments)

    @property
    def shards(self) -> list[str]:
        """The names of the shards that hold these samples."""
        return [self.index.shards[shard].name for shard in sorted({s for s, _ in self.segments})]


@dataclass(frozen=True)
class ShardIndex:
    """A prepared data set, or several joined; ``sha256`` names its content for ever."""

    url: str
    schema: int
    class_names: tuple[str, ...]
    class_folders: tuple[str, ...]
    shards: tuple[Shard, ...]
    sha256: str
    group_sizes: tuple[int, ...]  # classes of each index that was joined to this one, in order
    closed_splits: frozenset[str] = frozenset()  # of which nothing may be opened
    _tables: dict[int, SampleTable] = field(default_factory=dict, repr=False, compare=False)

    def with_closed(self, *splits: str) -> ShardIndex:
        """The same index, through which no table and no sample of ``splits`` can be opened.

        What the index itself says of them, counts and hashes, it still says.
        """
        return replace(self, closed_splits=self.closed_splits.union(splits), _tables={})

    def select(
        self, split: Split, labels: Sequence[int], *, validation_fraction: float = 0.0
    ) -> Selection:
        """The samples of ``split`` whose class is one of ``labels``.

        ``validation`` and ``fit`` divide ``train`` by a hash of each sample's key: about
        ``validation_fraction`` of the pictures belong to ``validation``, the same ones for ever.

        Raises:
            DataError: a label is not in the index, no sample is left, or the split is closed.
        """
        self._check_labels(labels)
        wanted = frozenset(labels)
        stored_split = "test" if split == "test" else "train"
        refuse_closed(stored_split, self.closed_splits, place=self._place)
        parts: list[dict[str, Any]] = []
        first_sample = 0
        for number, shard in enumerate(self.shards):
            if shard.split == stored_split and not wanted.isdisjoint(shard.class_counts):
                parts.append(self._select_from(number, wanted, first_sample))
            first_sample += shard.samples
        if split in ("validation", "fit"):
            parts = [_hold_out(part, split == "validation", validation_fraction) for part in parts]
        if not sum(len(part["keys"]) for part in parts):
            remedy = "prepare the data set with that split"
            if split in ("validation", "fit"):
                remedy = f"change data.validation_fraction, which is {validation_fraction}"
            raise DataError(
                f"{self._place}: no {split} sample of classes {_some(sorted(wanted))}; "
                f"{remedy}, or choose other classes"
            )
        columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        keys = tuple(key for part in parts for key in part["keys"])
        return Selection(index=self, split=split, keys=keys, **columns)

    def table(self, shard_number: int) -> SampleTable:
        """Where each sample of one shard lies; read once, then kept.

        Raises:
            DataError: it is not the one that the index was written with, or its split is closed.
        """
        shard = self.shards[shard_number]
        refuse_closed(shard.split, self.closed_splits, place=storage.redact(shard.table_url))
        if shard_number not in self._tables:
            self._tables[shard_number] = read_table(
                shard.table_url, shard.samples, shard.table_sha256
            )
        return self._tables[shard_number]

    def digest(self, labels: Sequence[int]) -> str:
        """A hash of all samples of ``labels``, both splits: their bytes and their numbers."""
        digest = hashlib.sha256()
        first_sample = 0
        for shard in self.shards:
            for segment in shard.segments:
                if segment.label in labels:
                    digest.update(repr((shard.split, first_sample, segment.sha256)).encode())
                first_sample += segment.samples
        return digest.hexdigest()

    def count(self, split: str) -> dict[int, int]:
        """Samples per label of ``train`` or ``test``, without reading any table."""
        counts = dict.fromkeys(range(len(self.class_names)), 0)
        for shard in self.shards:
            if shard.split == split:
                for label, samples in shard.class_counts.items():
                    counts[label] += samples
        return counts

    @property
    def _place(self) -> str:
        return storage.redact(storage.join(self.url, INDEX_NAME))

    def _check_labels(self, labels: Sequence[int]) -> None:
        unknown = sorted(label for label in labels if not 0 <= label < len(self.class_names))
        if unknown:
            raise DataError(
                f"{self._place}: classes {_some(unknown)} are not in the index, "
                f"which has {len(self.class_names)}"
            )

    def _select_from(
        self, shard_number: int, wanted: frozenset[int], first_sample: int
    ) -> dict[str, Any]:
        shard, table = self.shards[shard_number], self.table(shard_number)
        lengths = [segment.samples for segment in shard.segments]
        segment_S = np.repeat(np.arange(len(lengths)), lengths)
        label_S = np.repeat([segment.label for segment in shard.segments], lengths)
        rows = np.flatnonzero(np.isin(label_S, list(wanted)))
        return {
            "sample_S": first_sample + rows,
            "label_S": label_S[rows],
            "shard_S": np.full(len(rows), shard_number),
            "segment_S": segment_S[rows],
            "offset_S": table.offset_S[rows],
            "size_S": table.size_S[rows],
            "crc32_S": table.crc32_S[rows],
            "keys": [table.keys[row] for row in rows],
        }


def read_index(url: str) -> ShardIndex:
    """The index at ``url``: a prepared folder, or its ``index.json``.

    Raises:
        StorageError: it cannot be read.
        DataError: it is not an index, or one of another schema.
    """
    folder = url.removesuffix("/" + INDEX_NAME)
    place = storage.join(folder, INDEX_NAME)
    data = storage.read_bytes(place)
    return parse_index(folder, data)


def parse_index(folder: str, data: bytes) -> ShardIndex:
    """The index whose bytes are ``data`` and whose shards lie in ``folder``.

    Raises:
        DataError: ``data`` is not an index, or one of another schema.
    """
    place = storage.redact(storage.join(folder, INDEX_NAME))
    try:
        content = json.loads(data)
        if content["schema"] != SCHEMA:
            raise DataError(
                f"{place}: has schema {content['schema']}, this version reads {SCHEMA}; "
                "prepare the data set again"
            )
        index = ShardIndex(
            url=folder,
            schema=SCHEMA,
            class_names=tuple(str(entry["name"]) for entry in content["classes"]),
            class_folders=tuple(str(entry["folder"]) for entry in content["classes"]),
            shards=tuple(replace(parse_shard(e), folder=folder) for e in content["shards"]),
            sha256=hashlib.sha256(data).hexdigest(),
            group_sizes=(len(content["classes"]),),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place}: is not an index of shards ({type(error).__name__}: {error}); "
            "make one with `python -m pipeline.prepare shard`"
        ) from None
    _check_index(index, place)
    return index


def join_indexes(indexes: Sequence[ShardIndex]) -> ShardIndex:
    """One index of all: classes and samples are numbered on from one index to the next.

    What an index holds keeps its numbers however many are appended later.

    Raises:
        DataError: two of them hold a class of the same name.
    """
    if len(indexes) == 1:
        return indexes[0]
    names = [name for index in indexes for name in index.class_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{' + '.join(storage.redact(index.url) for index in indexes)}: class {twice[0]!r} is "
            "in more than one index; an index that is appended may hold new classes only"
        )
    shards: list[Shard] = []
    first_label = 0
    for index in indexes:
        shards += [_renumbered(shard, first_label) for shard in index.shards]
        first_label += len(index.class_names)
    return ShardIndex(
        url=" + ".join(index.url for index in indexes),
        schema=SCHEMA,
        class_names=tuple(names),
        class_folders=tuple(folder for index in indexes for folder in index.class_folders),
        shards=tuple(shards),
        sha256=hashlib.sha256("".join(index.sha256 for index in indexes).encode()).hexdigest(),
        group_sizes=tuple(count for index in indexes for count in index.group_sizes),
    )


def format_index(
    class_names: Sequence[str], class_folders: Sequence[str], shards: Sequence[Shard]
) -> bytes:
    """The bytes of ``index.json``: equal content gives equal bytes."""
    content = {
        "schema": SCHEMA,
        "classes": [
            {"name": name, "folder": folder}
            for name, folder in zip(class_names, class_folders, strict=True)
        ],
        "shards": [format_shard(shard) for shard in shards],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def parse_shard(entry: dict[str, Any]) -> Shard:
    """The shard that ``format_shard`` wrote.

    Raises:
        ValueError, KeyError, TypeError: it did not.
    """
    if "/" in entry["name"] or "\\" in entry["name"] or entry["name"].startswith("."):
        raise ValueError(f"shard name {entry['name']!r} leaves the folder")
    if entry["split"] not in ("train", "test"):
        raise ValueError(f"split {entry['split']!r} of shard {entry['name']}")
    segments = tuple(
        Segment(int(label), int(samples), int(offset), int(size), str(sha256))
        for label, samples, offset, size, sha256 in entry["segments"]
    )
    return Shard(
        name=str(entry["name"]),
        split=entry["split"],
        samples=int(entry["samples"]),
        bytes=int(entry["bytes"]),
        sha256=str(entry["sha256"]),
        table_sha256=str(entry["table_sha256"]),
        segments=segments,
    )


def format_shard(shard: Shard) -> dict[str, Any]:
    """The entry of one shard in ``index.json``."""
    return {
        "name": shard.name,
        "split": shard.split,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "table_sha256": shard.table_sha256,
        "segments": [[s.label, s.samples, s.offset, s.bytes, s.sha256] for s in shard.segments],
    }


def _renumbered(shard: Shard, first_label: int) -> Shard:
    segments = (replace(s, label=first_label + s.label) for s in shard.segments)
    first_label += shard.first_label
    return replace(shard, segments=tuple(segments), first_label=first_label)


def _check_index(index: ShardIndex, place: str) -> None:
    for shard in index.shards:
        labels = shard.class_counts
        unknown = sorted(label for label in labels if not 0 <= label < len(index.class_names))
        if unknown:
            raise DataError(
                f"{place}: shard {shard.name} holds classes {_some(unknown)}, "
                f"but the index names {len(index.class_names)}"
            )
        if sum(labels.values()) != shard.samples:
            raise DataError(f"{place}: the segments of {shard.name} do not add up to its samples")


def _hold_out(part: dict[str, Any], validation: bool, fraction: float) -> dict[str, Any]:
    """The rows of ``part`` that belong to validation, or the others."""
    limit = int(fraction * 2**63)
    kept = [
        row
        for row, key in enumerate(part["keys"])
        if (derive_seed("validation", key) < limit) == validation
    ]
    columns = {name: part[name][kept] for name in COLUMNS}
    return {**columns, "keys": [part["keys"][row] for row in kept]}


def _some(values: Sequence[int], limit: int = 5) -> str:
    """The first few values, for a message."""
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (f", … ({len(values)} in all)" if len(values) > limit else "")
