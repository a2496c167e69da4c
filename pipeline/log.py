"""One line format for people, JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, TextIO

from pipeline import storage
from pipeline.errors import DataError


def setup_logging(rank: int) -> None:
    """Write this package's log to stderr: rank 0 from INFO on, the others from WARNING on."""
    handler = _StderrHandler()
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s r{rank} %(module)s: %(message)s", datefmt="%H:%M:%S")
    )
    package = logging.getLogger("pipeline")
    package.handlers[:] = [handler]
    package.propagate = False
    package.setLevel(logging.INFO if rank == 0 else logging.WARNING)


class _StderrHandler(logging.StreamHandler):
    """Writes to what stderr is at the time: while a live display is shown, above that."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Where lines go now."""
        return sys.stderr


class MetricsWriter:
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

    def file(self) -> dict[str, bytes]:
        """The whole file as it is now: its URL and its content."""
        return {self._url: "".join(f"{line}\n" for line in self._lines).encode()}

    def flush(self) -> None:
        """Write every line so far."""
        for url, data in self.file().items():
            storage.write_atomically(url, data)
