"""``metrics.jsonl``: one JSON line per logged step and per stage."""

from __future__ import annotations

import json
from typing import Any

from pipeline import storage
from pipeline.errors import DataError


class MetricsLog:
    """Lines of ``metrics.jsonl``, kept together because object stores cannot append."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def restore(self, n_lines: int) -> None:
        """Go on behind the first ``n_lines`` that an interrupted run has written.

        Raises:
            StorageError: they cannot be read.
            DataError: there are not so many.
        """
        lines = storage.read_text(self._url).splitlines() if n_lines else []
        if len(lines) < n_lines:
            raise DataError(
                f"{storage.redact(self._url)}: holds {len(lines)} lines, not the {n_lines} that it "
                "held when the snapshot was taken; restore it from a copy, or remove the whole "
                "output to begin again"
            )
        self._lines = lines[:n_lines]

    def add(self, **values: Any) -> None:
        """Remember one line."""
        self._lines.append(json.dumps(values))

    def contents(self) -> dict[str, bytes]:
        """The whole file as it is now: its URL and its content."""
        return {self._url: "".join(f"{line}\n" for line in self._lines).encode()}

    def flush(self) -> None:
        """Write every line so far."""
        for url, data in self.contents().items():
            storage.write_atomically(url, data)
