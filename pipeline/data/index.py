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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np

from pipeline import storage
from pipeline.data.samples import COLUMNS, Samples, SampleTable, read_table, refuse_closed
from pipeline.data.shard import Shard, format_shard, parse_shard
from pipeline.errors import DataError
from pipeline.rng import derive_seed
from pipeline.text import first_few

SCHEMA = 1
INDEX_NAME = "index.json"

Split = Literal["train", "test", "validation", "fit"]


@dataclass(frozen=True, eq=False)
class Selection(Samples):
    """The samples of some classes of one split, in canonical order: by shard, then by position."""

    index: ShardIndex = field(repr=False)
    split: Split

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """The distinct (shard, segment) pairs of these samples, in canonical order."""
        pairs = np.stack([self.shard_S, self.segment_S], axis=1)
        return [(int(shard), int(segment)) for shard, segment in np.unique(pairs, axis=0)]

    @property
    def bytes(self) -> int:
        """Bytes to fetch in order to read every sample once."""
        shards = self.index.shards
        return sum(shards[shard].segments[segment].bytes for shard, segment in self.segments)

    @property
    def shards(self) -> list[str]:
        """The names of the shards of these samples."""
        return [self.index.shards[shard].name for shard in sorted({s for s, _ in self.segments})]


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
    closed_splits: frozenset[str] = frozenset()  # splits that must not be opened
    _tables: dict[int, SampleTable] = field(default_factory=dict, repr=False, compare=False)

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
        return replace(self, closed_splits=self.closed_splits.union(splits), _tables={})

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
        wanted = frozenset(labels)
        stored_split = "test" if split == "test" else "train"
        refuse_closed(stored_split, self.closed_splits, place=self._place)
        parts: list[dict[str, Any]] = []
        first_sample = 0
        for number, shard in enumerate(self.shards):
            is_shown = shard.split == stored_split and (groups is None or shard.group in groups)
            if is_shown and not wanted.isdisjoint(shard.class_counts):
                parts.append(self._select_from(number, wanted, first_sample))
            first_sample += shard.samples
        if split in ("validation", "fit"):
            parts = [_hold_out(part, split == "validation", validation_fraction) for part in parts]
        if not sum(len(part["keys"]) for part in parts):
            remedy = "prepare the data set with that split"
            if split in ("validation", "fit"):
                remedy = f"change data.validation_fraction, which is {validation_fraction}"
            raise DataError(
                f"{self._place}: no {split} sample of classes {first_few(sorted(wanted), 5)}; "
                f"{remedy}, or choose other classes"
            )
        columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        keys = tuple(key for part in parts for key in part["keys"])
        return Selection(index=self, split=split, keys=keys, **columns)

    def table(self, shard_number: int) -> SampleTable:
        """The addresses of the samples of one shard; read once, then kept.

        Raises:
            DataError: the table does not match the index, or its split is closed.
        """
        shard = self.shards[shard_number]
        refuse_closed(shard.split, self.closed_splits, place=storage.redact(shard.table_url))
        if shard_number not in self._tables:
            self._tables[shard_number] = read_table(
                shard.table_url, shard.samples, shard.table_sha256
            )
        return self._tables[shard_number]

    def digest(self, labels: Sequence[int], *, group: int | None = None) -> str:
        """A hash of all samples of ``labels`` in both splits: their bytes and their numbers.

        ``group`` is the joined index to read; None: all.
        """
        digest = hashlib.sha256()
        first_sample = 0
        for shard in self.shards:
            for segment in shard.segments:
                if segment.label in labels and group in (None, shard.group):
                    digest.update(repr((shard.split, first_sample, segment.sha256)).encode())
                first_sample += segment.samples
        return digest.hexdigest()

    def count(self, split: str, *, group: int | None = None) -> dict[int, int]:
        """Samples per label of ``train`` or ``test``, without reading any table.

        ``group`` is the joined index to count in; None: all.
        """
        counts = dict.fromkeys(range(len(self.class_names)), 0)
        for shard in self.shards:
            if shard.split == split and group in (None, shard.group):
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
                f"{self._place}: classes {first_few(unknown, 5)} are not in the index, "
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
        StorageError: the file cannot be read.
        DataError: the file is not an index, or has another schema.
    """
    folder = url.removesuffix("/" + INDEX_NAME)
    place = storage.join(folder, INDEX_NAME)
    data = storage.read_bytes(place)
    return parse_index(folder, data)


def parse_index(folder: str, data: bytes) -> ShardIndex:
    """The index whose bytes are ``data`` and whose shards lie in ``folder``.

    Raises:
        DataError: ``data`` is not an index, or has another schema.
    """
    place = storage.redact(storage.join(folder, INDEX_NAME))
    try:
        content = json.loads(data)
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
) -> bytes:
    """The bytes of ``index.json``: equal content gives equal bytes."""
    content = {
        "schema": SCHEMA,
        **({"orientation": orientation} if orientation else {}),
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


def _hold_out(part: dict[str, Any], validation: bool, fraction: float) -> dict[str, Any]:
    """The rows of ``part`` that belong to ``validation``, or else those of ``fit``."""
    limit = int(fraction * 2**63)
    kept = [
        row
        for row, key in enumerate(part["keys"])
        if (derive_seed("validation", key) < limit) == validation
    ]
    columns = {name: part[name][kept] for name in COLUMNS}
    return {**columns, "keys": [part["keys"][row] for row in kept]}
