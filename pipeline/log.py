"""The log for people: one line format, on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TextIO


def setup_logging(rank: int) -> None:
    """Write the log of this package to stderr: on rank 0 from INFO, on the others from WARNING."""
    handler = _StderrHandler()
    handler.setFormatter(
        logging.Formatter(
            f"%(asctime)s r{rank} %(module)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
        )
    )
    package = logging.getLogger("pipeline")
    package.handlers[:] = [handler]
    package.propagate = False
    package.setLevel(logging.INFO if rank == 0 else logging.WARNING)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # not in Python 3.10
    """Writes to the present ``sys.stderr``: above a live display, while one is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The file to write to."""
        return sys.stderr
