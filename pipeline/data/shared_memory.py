"""The room in /dev/shm, through which loader workers hand over their batches.

A batch that finds no room is never handed over, so the room is compared with the need before a run.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.text import format_bytes

SHARED_MEMORY = Path("/dev/shm")
BATCHES_PER_WORKER = 2  # that a loader worker makes ahead
_PAGE = 4096
_QUEUES = 1 << 16  # bytes for the locks of one worker's queues, with a margin


def check_shared_memory(
    *,
    workers: int,
    batch_images: int,
    image_size: int,
    ranks: int,
    folder: Path = SHARED_MEMORY,
) -> None:
    """Check that the batches of all loader workers of this node fit into ``folder``.

    ``batch_images`` is the size of the largest batch of a rank, ``image_size`` the side of an image
    in pixels, ``ranks`` the number of ranks on this node with ``workers`` workers each.

    Raises:
        ConfigError: they do not fit; the message has the arithmetic.
    """
    room = free_bytes(folder)
    if not workers or room is None:
        return
    batch = -(-batch_images * 3 * image_size**2 // _PAGE) * _PAGE
    batches = ranks * (workers * BATCHES_PER_WORKER + 1)  # and the one that the rank uses
    needed = batches * batch + ranks * workers * _QUEUES
    if needed <= room:
        return
    raise ConfigError(
        f"{folder} has {format_bytes(room)} free, and the loader workers need "
        f"{format_bytes(needed)}: {ranks} ranks × ({workers} workers × "
        f"{BATCHES_PER_WORKER} + 1) batches × {batch_images} images of 3 × {image_size} × "
        f"{image_size} bytes, and {format_bytes(_QUEUES)} per worker; set data.workers=0, lower "
        "data.workers or data.eval_batch, or give the container more, e.g. docker run "
        "--shm-size=8g or --ipc=host"
    )


def free_bytes(folder: Path = SHARED_MEMORY) -> int | None:
    """The free bytes of shared memory; None on a system without it."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize
