"""The bytes of samples: from local shards directly, from remote ones through the node's cache.

Every read of a sample passes ``ShardReader.read``, which refuses a split that is closed in the
index; fetching ahead asks ``ShardReader.refuse_closed`` first.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline import storage
from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.index import ShardIndex
from pipeline.data.samples import Samples, refuse_closed
from pipeline.data.shard import Segment
from pipeline.errors import DataError, StorageError


@dataclass(frozen=True)
class SegmentOrigin:
    """Rows of a shard, which is named by the hash of its table, with the hash of each image."""

    table_sha256: str
    first_row: int
    samples: int


class ShardReader:
    """Reads samples by address. Small to pickle; opens no file before the first read.

    Without a ``cache``, every batch fetches its samples from remote shards again.
    """

    def __init__(self, index: ShardIndex, *, cache: SegmentCache | None = None) -> None:
        # Nothing of a local shard is fetched by segment.
        self.shards = tuple(
            RemoteShard(shard.url, () if storage.is_local(shard.url) else shard.segments)
            for shard in index.shards
        )
        self._tables = tuple(shard.table_sha256 for shard in index.shards)
        segments = index.segments
        extent_G2 = np.stack([segments.first_row_G, segments.samples_G], axis=1)
        ends = np.cumsum([len(shard.segments) for shard in index.shards], dtype=np.int64)
        self._segments = np.split(extent_G2, ends[:-1])
        self._splits = tuple(shard.split for shard in index.shards)
        self._groups = tuple(shard.group for shard in index.shards)
        self._stored_labels = tuple(
            {label: stored for stored, label in enumerate(labels)} for labels in index.group_labels
        )
        self._cache = cache
        self._closed_splits = index.closed_splits

    def read(self, samples: Samples) -> list[bytes]:
        """The bytes of each sample, in the order of ``samples``, checked against the index.

        Raises:
            DataError: the bytes differ from those that were prepared, or the split is closed.
            StorageError: a shard cannot be read.
        """
        records: list[bytes] = [b""] * len(samples)
        by_shard = [*_grouped(samples.shard_S)]
        for number, _ in by_shard:
            self.refuse_closed(number)
        if self._cache is not None:
            self._cache.fetch_all(self._remote_segments(samples, by_shard))
        for number, rows in by_shard:
            for row, record in self._read_shard(self.shards[number], samples, rows):
                if zlib.crc32(record) != samples.crc32_S[row]:
                    raise DataError(
                        f"{self.place(number)}: the bytes of sample {samples.keys[row]} do not "
                        "match the index; copy or prepare the data set again"
                    )
                records[row] = record
        return records

    def refuse_closed(self, shard: int) -> None:
        """Return if the split of shard number ``shard`` may be opened.

        Raises:
            DataError: the split is closed.
        """
        refuse_closed(self._splits[shard], self._closed_splits, place=self.place(shard))

    def stored_label(self, samples: Samples, row: int) -> int:
        """The label of a sample in its own shard, which does not know of joined indexes."""
        return self._stored_labels[self._groups[int(samples.shard_S[row])]][
            int(samples.label_S[row])
        ]

    def segment_of(self, samples: Samples, row: int) -> SegmentOrigin:
        """The segment of a sample, named by its content."""
        shard = int(samples.shard_S[row])
        first_row, n_samples = self._segments[shard][int(samples.segment_S[row])].tolist()
        return SegmentOrigin(self._tables[shard], first_row, n_samples)

    def place(self, shard: int) -> str:
        """The place of shard number ``shard``, for a message."""
        return storage.redact(self.shards[shard].url)

    def _remote_segments(
        self, samples: Samples, by_shard: Sequence[tuple[int, np.ndarray]]
    ) -> dict[RemoteShard, list[Segment]]:
        """The segments of samples in remote shards; ``by_shard`` are their rows in each shard."""
        return {
            self.shards[number]: [
                self.shards[number].segments[segment]
                for segment in np.unique(samples.segment_S[rows]).tolist()
            ]
            for number, rows in by_shard
            if not storage.is_local(self.shards[number].url)
        }

    def _read_shard(
        self, shard: RemoteShard, samples: Samples, rows: np.ndarray
    ) -> Iterator[tuple[int, bytes]]:
        if storage.is_local(shard.url):
            yield from _read_local(shard.url, samples, rows)
        elif self._cache is None:
            for row in rows:
                start = int(samples.offset_S[row])
                yield row, storage.read_range(shard.url, start, start + int(samples.size_S[row]))
        else:
            for number, places in _grouped(samples.segment_S[rows]):
                segment_of, members = (shard, shard.segments[number]), rows[places]
                records = _read_cached(self._cache, segment_of, samples, members)
                yield from zip(members, records, strict=True)


def _read_cached(
    cache: SegmentCache, segment_of: tuple[RemoteShard, Segment], samples: Samples, rows: np.ndarray
) -> list[bytes]:
    """Records from the cache; a copy that was damaged on the disk is fetched once more."""
    shard, segment = segment_of
    with cache.opened(shard, segment) as file:
        records = _read_rows(file, samples, rows, segment.offset)
    if [zlib.crc32(record) for record in records] == samples.crc32_S[rows].tolist():
        return records
    cache.discard(shard, segment)
    with cache.opened(shard, segment) as file:
        return _read_rows(file, samples, rows, segment.offset)


def _read_local(url: str, samples: Samples, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
    try:
        file = os.open(storage.local_path(url), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"cannot read {url}: {error.strerror}") from error
    try:
        yield from zip(rows, _read_rows(file, samples, rows, 0), strict=True)
    finally:
        os.close(file)


def _read_rows(file: int, samples: Samples, rows: np.ndarray, origin: int) -> list[bytes]:
    sizes, offsets = samples.size_S[rows].tolist(), samples.offset_S[rows].tolist()
    return [os.pread(file, n, o - origin) for n, o in zip(sizes, offsets, strict=True)]


def _grouped(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each distinct value with its positions."""
    order = np.argsort(values, kind="stable")
    for value, positions in groupby(order, key=lambda position: int(values[position])):
        yield value, np.fromiter(positions, dtype=np.int64)
