"""Addresses of samples: the place of each sample, as numpy columns and as a file.

S samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from pipeline import storage
from pipeline.data.shard import Shard
from pipeline.errors import DataError

_COLUMNS = (
    "sample_S", "label_S", "shard_S", "segment_S", "row_S", "offset_S", "size_S", "crc32_S"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The address of each sample of one shard, in shard order.

    The bytes of a sample are its tar headers and members: ``size`` bytes from ``offset`` on, with
    the checksum ``crc32``. ``image_sha256_S32`` is the hash of its image file alone, so equal
    images are found under any name.
    """

    keys: tuple[str, ...]
    offset_S: np.ndarray
    size_S: np.ndarray
    crc32_S: np.ndarray
    image_sha256_S32: np.ndarray


@dataclass(frozen=True, eq=False)
class Samples:
    """Addresses of samples, one row each: enough to read them without the index.

    ``sample_S`` numbers the samples of the complete data set, ``shard_S`` is the position of the
    shard in ``index.shards``, ``segment_S`` the position of the segment in ``shard.segments``, and
    ``row_S`` the position of the sample in its segment.
    """

    sample_S: np.ndarray
    label_S: np.ndarray
    shard_S: np.ndarray
    segment_S: np.ndarray
    row_S: np.ndarray
    offset_S: np.ndarray
    size_S: np.ndarray
    crc32_S: np.ndarray
    keys: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.sample_S)

    def take(self, positions: np.ndarray) -> Samples:
        """The rows at ``positions``, in that order; a repeated position repeats its row."""
        columns = {name: getattr(self, name)[positions] for name in _COLUMNS}
        return Samples(**columns, keys=tuple(self.keys[position] for position in positions))


def refuse_closed(split: str, closed_splits: Collection[str], *, place: str) -> None:
    """Return if the stored ``split``, to which the file at ``place`` belongs, may be opened.

    Raises:
        DataError: the split is closed.
    """
    if split in closed_splits:
        raise DataError(
            f"{place}: the {split} split is closed in a run with evaluation.split=validation, "
            "because its result may be used to choose settings; "
            f"report on the {split} split in a run with evaluation.split=test"
        )


def read_table(shard: Shard) -> SampleTable:
    """The table of ``shard``.

    Raises:
        StorageError: the table cannot be read.
        DataError: the table does not match the index, though it was fetched twice.
    """
    url = shard.table_url
    data = storage.read_bytes(url, most=storage.MAX_TEXT_BYTES)
    if hashlib.sha256(data).hexdigest() != shard.table_sha256:
        # a byte may have been damaged on the way
        data = storage.read_bytes(url, most=storage.MAX_TEXT_BYTES)
    if hashlib.sha256(data).hexdigest() != shard.table_sha256:
        raise DataError(
            f"{storage.redact(url)}: its sha256 is not the one in the index, fetched twice; "
            "copy or prepare the data set again"
        )
    try:
        table = _parse_table(data)
    except Exception as error:  # json and numpy raise almost anything on another content
        cause = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{storage.redact(url)}: is not the table of a shard ({cause}); "
            "prepare the data set again"
        ) from None
    columns = (table.keys, table.offset_S, table.size_S, table.crc32_S, table.image_sha256_S32)
    if any(len(column) != shard.samples for column in columns):
        raise DataError(
            f"{storage.redact(url)}: does not list {shard.samples} samples as its index says; "
            "prepare the data set again"
        )
    if (table.size_S > shard.bytes).any() or (table.offset_S > shard.bytes - table.size_S).any():
        raise DataError(
            f"{storage.redact(url)}: lists a sample beyond the {shard.bytes:,} bytes of its shard; "
            "prepare the data set again"
        )
    return table


def _parse_table(data: bytes) -> SampleTable:
    content = json.loads(data)
    digests = b"".join(map(bytes.fromhex, content["image_sha256"]))
    keys, columns = tuple(content["key"]), [content[name] for name in ("offset", "size", "crc32")]
    if not {*map(type, keys)} <= {str}:
        raise ValueError("a key is not text")
    if not all({*map(type, column)} <= {int} and min(column, default=0) >= 0 for column in columns):
        raise ValueError("an address is not a count")
    offset_S, size_S, crc32_S = (np.array(column, dtype=np.int64) for column in columns)
    digest_S32 = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    return SampleTable(keys, offset_S, size_S, crc32_S, digest_S32)


def format_table(table: SampleTable) -> bytes:
    """The bytes of a shard's table; equal tables give equal bytes."""
    content = {
        "key": list(table.keys),
        "offset": table.offset_S.tolist(),
        "size": table.size_S.tolist(),
        "crc32": table.crc32_S.tolist(),
        "image_sha256": [row.tobytes().hex() for row in table.image_sha256_S32],
    }
    return (json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n").encode()
