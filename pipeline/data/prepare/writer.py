"""Packs samples into shards: WebDataset tars, each with the table that addresses its samples.

Equal input gives equal bytes: fixed owner and time in every header, samples in the given order.
A shard is built in memory and stored by two complete writes, tar then table, so a reader never sees
a part of one. The caller writes the index last, which makes the shards a data set.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from webdataset import TarWriter

from pipeline.data.samples import SampleTable, format_table
from pipeline.data.shard import Segment, Shard

SEGMENT_BYTES = 8 << 20

_BLOCK = 512
_TAR_END = 10240  # a tar is padded to a multiple of this


@dataclass(frozen=True)
class Sample:
    """One image in its stored form: the bytes of an image file, with its ``key`` and ``suffix``."""

    split: str
    label: int
    key: str
    suffix: str
    data: bytes = field(repr=False)
    has_orientation: bool = False  # its file had an EXIF orientation
    has_further_images: bool = False  # its file had frames or pages after the first image

    @property
    def members(self) -> dict[str, bytes]:
        """The files of this sample, by suffix."""
        return {"cls": str(self.label).encode(), self.suffix: self.data}

    @property
    def stored_bytes(self) -> int:
        """Bytes of the sample in a tar, including headers."""
        return sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in self.members.values())


@dataclass(frozen=True)
class BuiltShard:
    """A shard that is ready to be stored."""

    shard: Shard
    tar: bytes = field(repr=False)
    table: bytes = field(repr=False)
    last_key: str
    orientations: int = 0  # samples whose files had an EXIF orientation
    first_images: int = 0  # samples whose files had further images


def build_shards(
    samples: Iterable[Sample], *, shard_bytes: int, numbers: Mapping[str, int] | None = None
) -> Iterator[BuiltShard]:
    """Shards of at most ``shard_bytes``, in order, each within one split.

    A sample longer than ``shard_bytes`` gets a separate shard. The samples must be sorted by split
    and label. ``numbers`` is the number of shards that each split already has.
    """
    counters = Counter(numbers)
    pending: list[Sample] = []
    pending_bytes = _TAR_END
    for sample in samples:
        full = pending_bytes + sample.stored_bytes > shard_bytes
        if pending and (full or sample.split != pending[0].split):
            yield _build(pending, counters)
            pending, pending_bytes = [], _TAR_END
        pending.append(sample)
        pending_bytes += sample.stored_bytes
    if pending:
        yield _build(pending, counters)


def _build(samples: list[Sample], counters: Counter[str]) -> BuiltShard:
    split = samples[0].split
    number = counters[split]
    counters[split] += 1
    tar, offset_S = _write_tar(samples)
    size_S = np.array([sample.stored_bytes for sample in samples], dtype=np.int64)
    spans = [tar[o : o + n] for o, n in zip(offset_S, size_S, strict=True)]
    digests = b"".join(hashlib.sha256(sample.data).digest() for sample in samples)
    table = format_table(
        SampleTable(
            keys=tuple(sample.key for sample in samples),
            offset_S=offset_S,
            size_S=size_S,
            crc32_S=np.array([zlib.crc32(span) for span in spans], dtype=np.int64),
            image_sha256_S32=np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        )
    )
    shard = Shard(
        name=f"{split}-{number:06d}.tar",
        split=split,
        samples=len(samples),
        bytes=len(tar),
        sha256=hashlib.sha256(tar).hexdigest(),
        table_sha256=hashlib.sha256(table).hexdigest(),
        segments=tuple(_segments(samples, offset_S, size_S, tar)),
    )
    orientations = sum(sample.has_orientation for sample in samples)
    first_images = sum(sample.has_further_images for sample in samples)
    return BuiltShard(shard, tar, table, samples[-1].key, orientations, first_images)


def _write_tar(samples: list[Sample]) -> tuple[bytes, np.ndarray]:
    """The tar, and the offset of each sample in it."""
    buffer = io.BytesIO()
    offsets = []
    with TarWriter(buffer, encoder=False, user="", group="", mtime=0) as writer:
        for sample in samples:
            offsets.append(writer.tarstream.offset)
            writer.write({"__key__": sample.key, **sample.members})
    return buffer.getvalue(), np.array(offsets, dtype=np.int64)


def _segments(
    samples: list[Sample], offset_S: np.ndarray, size_S: np.ndarray, tar: bytes
) -> Iterator[Segment]:
    """Consecutive samples of one class, cut at ``SEGMENT_BYTES``."""
    open_: Segment | None = None
    for sample, offset, size in zip(samples, offset_S.tolist(), size_S.tolist(), strict=True):
        if open_ and (open_.label != sample.label or open_.bytes + size > SEGMENT_BYTES):
            yield _sealed(open_, tar)
            open_ = None
        open_ = open_ or Segment(sample.label, 0, offset, 0, "")
        open_ = replace(open_, samples=open_.samples + 1, bytes=open_.bytes + size)
    if open_:
        yield _sealed(open_, tar)


def _sealed(segment: Segment, tar: bytes) -> Segment:
    span = tar[segment.offset : segment.offset + segment.bytes]
    return replace(segment, sha256=hashlib.sha256(span).hexdigest())
