"""One shard as the index describes it: its files, and the segments in which it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from pipeline import storage

_SHARD_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.tar")
_SHA256 = re.compile("[0-9a-f]{0,64}")  # the cache names its files so


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive samples of one class: bytes ``offset`` to ``offset + bytes`` of the shard."""

    label: int
    samples: int
    offset: int
    bytes: int
    sha256: str


class Segments(Sequence[Segment]):
    """The segments of a shard as columns, which take a sixth of the memory of objects.

    A data set of ten million images has a hundred thousand of them, in every process.
    """

    def __init__(self, columns_4G: np.ndarray, sha256_G: np.ndarray) -> None:
        """``columns_4G`` are label, samples, offset and bytes."""
        self.columns_4G = columns_4G
        self._sha256_G = sha256_G

    @classmethod
    def parse(cls, rows: Sequence[Any]) -> Segments:
        """The segments whose rows in ``index.json`` are ``rows``.

        Raises:
            ValueError, TypeError: ``rows`` are not of the form that ``format_shard`` writes.
        """
        *columns, hashes = zip(*rows, strict=True) if rows else [()] * 5
        counts = [[_count(value) for value in column] for column in columns]
        return cls._of_columns(counts, [_sha256(value) for value in hashes])

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Segments:
        """``segments`` as columns."""
        if isinstance(segments, Segments):
            return segments
        rows = [(s.label, s.samples, s.offset, s.bytes) for s in segments]
        return cls._of_columns([*zip(*rows, strict=True)], [s.sha256 for s in segments])

    @classmethod
    def _of_columns(cls, columns: Sequence[Sequence[int]], hashes: Sequence[str]) -> Segments:
        columns_4G = np.array(columns, dtype=np.int64).reshape(4, len(hashes))
        return cls(columns_4G, np.array(hashes, dtype="S64"))

    def with_labels(self, labels: Sequence[int]) -> Segments:
        """The same segments, with ``labels[label]`` in place of each label."""
        columns_4G = self.columns_4G.copy()
        columns_4G[0] = np.array(labels, dtype=np.int64)[columns_4G[0]]
        return Segments(columns_4G, self._sha256_G)

    def sha256(self, number: int) -> str:
        """The hash of one segment."""
        return str(self._sha256_G[number], "ascii")

    def __len__(self) -> int:
        return self.columns_4G.shape[1]

    @overload
    def __getitem__(self, place: int) -> Segment: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Segment, ...]: ...

    def __getitem__(self, place: int | slice) -> Segment | tuple[Segment, ...]:
        numbers = range(len(self))[place]
        if isinstance(numbers, range):
            return tuple(map(self.__getitem__, numbers))
        label, samples, offset, size = self.columns_4G[:, numbers].tolist()
        return Segment(label, samples, offset, size, self.sha256(numbers))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True)
class Shard:
    """One tar in ``folder``; ``split`` is ``train`` or ``test``."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    table_sha256: str
    segments: Sequence[Segment]
    folder: str = ""
    group: int = 0  # position of the shard's own index among those that are joined

    @property
    def url(self) -> str:
        """The place of the tar."""
        return storage.join(self.folder, self.name)

    @cached_property
    def class_counts(self) -> dict[int, int]:
        """Samples per label."""
        counts: dict[int, int] = {}
        labels, samples, _, _ = Segments.of(self.segments).columns_4G.tolist()
        for label, count in zip(labels, samples, strict=True):
            counts[label] = counts.get(label, 0) + count
        return counts

    @property
    def table_name(self) -> str:
        """The file name of the table that addresses each sample of the shard."""
        return self.name.removesuffix(".tar") + ".json"

    @property
    def table_url(self) -> str:
        """The place of the table."""
        return storage.join(self.folder, self.table_name)


def in_columns(entry: dict[str, Any]) -> dict[str, Any]:
    """``entry`` with its segments as columns, if it is that of a shard: a hook for json.

    Called while the rest is being read, it lets the memory of the rows be used again at once.
    """
    if isinstance(entry.get("segments"), list):
        entry["segments"] = Segments.parse(entry["segments"])
    return entry


def parse_shard(entry: dict[str, Any]) -> Shard:
    """The shard whose entry in ``index.json`` is ``entry``, before or after :func:`in_columns`.

    Raises:
        ValueError, KeyError, TypeError: ``entry`` is not of the form that ``format_shard`` writes.
    """
    name, split, size = entry["name"], entry["split"], _count(entry["bytes"])
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        shown = str(name)[:80]
        raise ValueError(f"shard name {shown!r} leaves the folder, or does not end in .tar")
    if split not in ("train", "test"):
        raise ValueError(f"split {str(split)[:40]!r} of shard {name}")
    segments = in_columns(entry)["segments"]
    _, _, offsets, lengths = segments.columns_4G.tolist()  # numbers that cannot overflow
    if any(offset + length > size for offset, length in zip(offsets, lengths, strict=True)):
        raise ValueError(f"a segment of shard {name} ends after its {size} bytes")
    return Shard(
        name=name,
        split=split,
        samples=_count(entry["samples"]),
        bytes=size,
        sha256=_sha256(entry["sha256"]),
        table_sha256=_sha256(entry["table_sha256"]),
        segments=segments,
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{str(value)[:40]!r} is not a count")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{str(value)[:40]!r} is not a sha256")
    return value


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
