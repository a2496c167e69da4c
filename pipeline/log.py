"""The log that people read: one line format, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


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
