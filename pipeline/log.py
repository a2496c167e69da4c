"""One line format for people, JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from pipeline import storage


def setup_logging(rank: int) -> None:
    """Write this package's log to stderr: rank 0 from INFO on, the others from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s r{rank} %(module)s: %(message)s", datefmt="%H:%M:%S")
    )
    package = logging.getLogger("pipeline")
    package.handlers[:] = [handler]
    package.propagate = False
    package.setLevel(logging.INFO if rank == 0 else logging.WARNING)


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
        """
        if n_lines:
            self._lines = storage.read_text(self._url).splitlines()[:n_lines]

    def add(self, **values: Any) -> None:
        """Remember one line."""
        self._lines.append(json.dumps(values))

    def flush(self) -> None:
        """Write every line so far."""
        storage.write_atomically(self._url, "".join(f"{line}\n" for line in self._lines).encode())
