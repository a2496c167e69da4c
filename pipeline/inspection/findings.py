"""What an inspection finds, in the same form for every kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline import storage

State = Literal["complete", "unfinished", "damaged"]
Progress = Callable[[int, int], None]  # files done, files in all

_CHUNK = 64 << 20  # bytes in memory at once


@dataclass(frozen=True)
class Part:
    """A file, or a folder of files. ``sha256`` is the recorded hash; None: none is recorded."""

    name: str
    bytes: int | None = None
    sha256: str | None = None
    fault: str | None = None  # what is wrong with it
    note: str | None = None  # what is worth knowing, though nothing is wrong


@dataclass(frozen=True)
class Findings:
    """The result of an inspection."""

    kind: str
    place: str
    stage: str  # how far it has come, in words
    is_finished: bool
    facts: dict[str, Any]  # of plain JSON types; accuracies are fractions
    parts: Sequence[Part]

    @property
    def faults(self) -> list[str]:
        """A sentence for each part with a fault."""
        return [f"{part.name} {part.fault}" for part in self.parts if part.fault]

    @property
    def state(self) -> State:
        """``complete``: finished, and no file is missing or has another content."""
        if self.faults:
            return "damaged"
        return "complete" if self.is_finished else "unfinished"

    def content(self) -> dict[str, Any]:
        """The findings as plain JSON types."""
        return {
            "kind": self.kind,
            "place": self.place,
            "state": self.state,
            "stage": self.stage,
            "faults": self.faults,
            "facts": self.facts,
            "files": [asdict(part) for part in self.parts],
        }


def check_file(folder: str, name: str, sha256: str | None = None) -> Part:
    """The file ``name`` below ``folder``, which must exist and have the recorded hash, if any.

    Raises:
        StorageError: it cannot be read.
    """
    url = storage.join(folder, name)
    if not storage.exists(url):
        return Part(name, sha256=sha256, fault="is missing")
    size = storage.size(url)
    if sha256 is not None and hash_file(url, size) != sha256:
        return Part(name, size, sha256, fault="has another content than was recorded (sha256)")
    return Part(name, size, sha256)


def hash_file(url: str, size: int) -> str:
    """The sha256 of the file of ``size`` bytes at ``url``, read piece by piece.

    Raises:
        StorageError: it cannot be read.
    """
    digest = hashlib.sha256()
    for start in range(0, size, _CHUNK):
        digest.update(storage.read_range(url, start, min(start + _CHUNK, size)))
    return digest.hexdigest()
