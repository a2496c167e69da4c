"""Imports in less time: they are most of the start of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Import within the block without garbage collection.

    Half a million objects that stay would be searched again and again. What exists at the end of
    the block is never searched again, so use this for first imports only.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
