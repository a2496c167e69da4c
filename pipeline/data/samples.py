"""Addresses of samples: the columns that say where each one lies, as numpy arrays and as a file.

S samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from pipeline import storage
from pipeline.errors import DataError

COLUMNS = ("sample_S", "label_S", "shard_S", "segment_S", "offset_S", "size_S", "crc32_S")


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Where each sample of one shard lies, in shard order.

    A sample's bytes are its tar headers and members, from ``offset`` on, ``size`` long, with the
    checksum ``crc32``. ``image_sha256_S32`` is of its image file alone: equal pictures are found
    whatever their names.
    """

    keys: tuple[str, ...]
    offset_S: np.ndarray
    size_S: np.ndarray
    crc32_S: np.ndarray
    image_sha256_S32: np.ndarray


@dataclass(frozen=True, eq=False)
class Samples:
    """Addresses of samples, one row each: enough to read them without the index.

    ``sample_S`` numbers each sample within the whole data set, ``shard_S`` is its shard's position
    in ``index.shards`` and ``segment_S`` its segment's position in ``shard.segments``.
    """

    sample_S: np.ndarray
    label_S: np.ndarray
    shard_S: np.ndarray
    segment_S: np.ndarray
    offset_S: np.ndarray
    size_S: np.ndarray
    crc32_S: np.ndarray
    keys: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.sample_S)

    def take(self, positions: np.ndarray) -> Samples:
        """The rows at ``positions``, in that order, repeated where a position is."""
        columns = {name: getattr(self, name)[positions] for name in COLUMNS}
        return Samples(**columns, keys=tuple(self.keys[position] for position in positions))


def refuse_closed(split: str, closed_splits: Collection[str], *, place: str) -> None:
    """Nothing, if what lies at ``place`` and belongs to the stored ``split`` may be opened.

    Raises:
        DataError: it may not.
    """
    if split in closed_splits:
        raise DataError(
            f"{place}: the {split} split is closed to this run, by whose result settings may be "
            f"chosen (evaluation.split=validation); report them in a run with evaluation.split=test"
        )


def read_table(url: str, samples: int, sha256: str) -> SampleTable:
    """The table at ``url``, which must have that many samples and that hash.

    Raises:
        StorageError: it cannot be read.
        DataError: it is not the table that the index was written with, fetched twice.
    """
    data = storage.read_bytes(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        data = storage.read_bytes(url)  # a byte that went bad on the way comes right now
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{storage.redact(url)}: its sha256 is not the one in the index, fetched twice; "
            "copy or prepare the data set again"
        )
    content = json.loads(data)
    digests = b"".join(bytes.fromhex(digest) for digest in content["image_sha256"])
    table = SampleTable(
        keys=tuple(content["key"]),
        offset_S=np.array(content["offset"], dtype=np.int64),
        size_S=np.array(content["size"], dtype=np.int64),
        crc32_S=np.array(content["crc32"], dtype=np.int64),
        image_sha256_S32=np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
    )
    columns = (table.keys, table.offset_S, table.size_S, table.crc32_S, table.image_sha256_S32)
    if any(len(column) != samples for column in columns):
        raise DataError(f"{storage.redact(url)}: does not list the {samples} samples it should")
    return table


def format_table(table: SampleTable) -> bytes:
    """The bytes of a shard's table: equal content gives equal bytes."""
    content = {
        "key": list(table.keys),
        "offset": table.offset_S.tolist(),
        "size": table.size_S.tolist(),
        "crc32": table.crc32_S.tolist(),
        "image_sha256": [row.tobytes().hex() for row in table.image_sha256_S32],
    }
    return (json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n").encode()
