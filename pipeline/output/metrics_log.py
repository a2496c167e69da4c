"""``metrics.jsonl``: one JSON line per logged step and per stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline import storage
from pipeline.errors import DataError

NAME = "metrics.jsonl"


class MetricsLog:
    """Lines of ``metrics.jsonl``, kept in memory because object stores cannot append."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def lines(self) -> Sequence[str]:
        """The lines so far."""
        return self._lines

    def restore(self, n_lines: int) -> None:
        """Continue after the first ``n_lines`` lines of the file of an interrupted run.

        Raises:
            StorageError: the file cannot be read.
            DataError: the file has fewer lines.
        """
        lines = storage.read_text(self._url, most=None).splitlines() if n_lines else []
        if len(lines) < n_lines:
            raise DataError(
                f"{storage.redact(self._url)}: has {len(lines)} lines, and had {n_lines} when the "
                "snapshot was taken; restore it from a copy, or remove the output to start "
                "again"
            )
        self._lines = lines[:n_lines]

    def add(self, **values: Any) -> None:
        """Add one line."""
        self._lines.append(json.dumps(values))

    def contents(self) -> dict[str, bytes]:
        """The content of the complete file, by its URL."""
        return {self._url: "".join(f"{line}\n" for line in self._lines).encode()}

    def flush(self) -> None:
        """Write the complete file."""
        for url, data in self.contents().items():
            storage.write_atomically(url, data)
