"""The bytes of samples, from local shards directly and from remote ones through the node's cache.

Every sample that is ever read passes ``ShardReader.read``; a split that is closed there cannot be
opened by any other way.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterator
from itertools import groupby

import numpy as np

from pipeline import storage
from pipeline.data.index import Samples, ShardIndex
from pipeline.errors import DataError


class ShardReader:
    """Reads samples by address. Small to pickle; opens nothing before it is asked."""

    def __init__(self, index: ShardIndex, *, closed_splits: Collection[str] = ()) -> None:
        self._url = index.url
        self._shards = index.shards
        self._closed_splits = frozenset(closed_splits)

    def read(self, samples: Samples) -> list[bytes]:
        """The bytes of each sample, in the order of ``samples``, checked against the index.

        Raises:
            DataError: the bytes are not those that were prepared, or the split is closed.
            StorageError: a shard cannot be read.
        """
        records: list[bytes] = [b""] * len(samples)
        for shard, rows in _grouped(samples.shard_S):
            self._refuse_closed(shard)
            for row, record in zip(rows, self._read_rows(shard, samples, rows), strict=True):
                if zlib.crc32(record) != samples.crc32_S[row]:
                    raise DataError(
                        f"{self._place(shard)}: the bytes of sample {samples.keys[row]} are not "
                        "those in the index; copy or prepare the data set again"
                    )
                records[row] = record
        return records

    def shard_name(self, shard: int) -> str:
        """The file name of shard number ``shard``."""
        return self._shards[shard].name

    def _read_rows(self, shard: int, samples: Samples, rows: np.ndarray) -> list[bytes]:
        url = storage.join(self._url, self._shards[shard].name)
        offsets, sizes = samples.offset_S[rows].tolist(), samples.size_S[rows].tolist()
        if not storage.is_local(url):
            return [storage.read_range(url, o, o + n) for o, n in zip(offsets, sizes, strict=True)]
        try:
            file = os.open(storage.local_path(url), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self._place(shard)}: cannot be opened ({error.strerror})") from error
        try:
            return [os.pread(file, n, o) for o, n in zip(offsets, sizes, strict=True)]
        finally:
            os.close(file)

    def _refuse_closed(self, shard: int) -> None:
        split = self._shards[shard].split
        if split in self._closed_splits:
            raise DataError(f"{self._place(shard)}: the {split} split is closed to this run")

    def _place(self, shard: int) -> str:
        return storage.redact(storage.join(self._url, self._shards[shard].name))


def _grouped(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each distinct value with the rows that hold it."""
    order = np.argsort(values, kind="stable")
    for value, rows in groupby(order, key=lambda row: int(values[row])):
        yield value, np.fromiter(rows, dtype=np.int64)
