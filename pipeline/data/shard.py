"""One shard as the index describes it: its files, and the segments in which it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline import storage

_SHARD_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.tar")
_HEXADECIMAL = "0123456789abcdef"  # the cache names its files so


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive samples of one class: bytes ``offset`` to ``offset + bytes`` of the shard."""

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
    group: int = 0  # position of the shard's own index among those that are joined

    @property
    def url(self) -> str:
        """The place of the tar."""
        return storage.join(self.folder, self.name)

    @cached_property
    def class_counts(self) -> dict[int, int]:
        """Samples per label."""
        counts: dict[int, int] = {}
        for segment in self.segments:
            counts[segment.label] = counts.get(segment.label, 0) + segment.samples
        return counts

    @property
    def table_name(self) -> str:
        """The file name of the table that addresses each sample of the shard."""
        return self.name.removesuffix(".tar") + ".json"

    @property
    def table_url(self) -> str:
        """The place of the table."""
        return storage.join(self.folder, self.table_name)


def parse_shard(entry: dict[str, Any]) -> Shard:
    """The shard whose entry in ``index.json`` is ``entry``.

    Raises:
        ValueError, KeyError, TypeError: ``entry`` is not of the form that ``format_shard`` writes.
    """
    name, split, size = entry["name"], entry["split"], _count(entry["bytes"])
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        shown = str(name)[:80]
        raise ValueError(f"shard name {shown!r} leaves the folder, or does not end in .tar")
    if split not in ("train", "test"):
        raise ValueError(f"split {str(split)[:40]!r} of shard {name}")
    segments = tuple(
        Segment(_count(label), _count(samples), _count(offset), _count(length), _sha256(sha256))
        for label, samples, offset, length, sha256 in entry["segments"]
    )
    if any(segment.offset + segment.bytes > size for segment in segments):
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
    if not isinstance(value, str) or value.strip(_HEXADECIMAL):
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
