"""One shard as the index describes it: its files, and the segments in which it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline import storage


@dataclass(frozen=True)
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
    first_label: int = 0  # label, in a joined index, of class 0 of the shard's own index

    @property
    def url(self) -> str:
        """The place of the tar."""
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
