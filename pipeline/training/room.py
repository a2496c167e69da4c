"""Whether this machine has room for a run: shared memory, the cache, the outputs."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import storage
from pipeline.data.cache import SegmentCache
from pipeline.data.shared_memory import check_shared_memory
from pipeline.distributed.world import ranks_on_this_node
from pipeline.errors import StorageError
from pipeline.output.ownership import NAME
from pipeline.text import format_bytes
from pipeline.training.checked_run import Run

_SMALLEST_BYTES = 10_000_000  # results, metrics and pages of any run
_COPIES = 12  # of a scalar in float32: two snapshots with two moments each, and the task's file


def check_room_for_batches(run: Run, image_size: int) -> None:
    """Check that the batches of the loader workers fit into shared memory.

    Raises:
        ConfigError: they do not.
    """
    data = run.config.data
    check_shared_memory(
        workers=data.workers,
        batch_images=max(data.global_batch // run.world_size, data.eval_batch),
        image_size=image_size,
        ranks=ranks_on_this_node(os.environ, run.world_size),
    )


def check_room_on_disk(run: Run, trainable: int = 0) -> None:
    """Check that the cache and the outputs can be written and have room; writes to no output.

    ``trainable`` is the number of trainable parameters of all tasks together, if it is known.

    Raises:
        StorageError: a folder cannot be written, or its disk is too full.
    """
    config = run.config
    remote = [shard for shard in run.index.shards if not storage.is_local(shard.url)]
    if remote:
        folder, closed = SegmentCache.of(config.data.cache).folder, run.index.closed_splits
        folder.check_room(sum(shard.bytes for shard in remote if shard.split not in closed))
    needed = _SMALLEST_BYTES + 4 * _COPIES * trainable
    outputs = {"output": config.output, "snapshot.folder": config.snapshot.folder}
    for setting, url in {**outputs, "data.feature_cache": config.data.feature_cache}.items():
        if url:
            _check_output(setting, url, needed)


def _check_output(setting: str, url: str, needed: int) -> None:
    if not storage.is_local(url):
        storage.list_files(storage.join(url, NAME))  # a wrong key or bucket is an error
        return
    folder = Path(storage.local_path(url))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise StorageError(
            f"{setting}: {url} cannot be a folder: {there} is a file; choose another folder"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(
            f"{setting}: {there} cannot be written by this user; change its permissions, or "
            f"choose another {setting}"
        )
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    if free < needed or disk.f_files and not disk.f_favail:
        raise StorageError(
            f"{setting}: the disk of {there} has {format_bytes(free)} and {disk.f_favail:,} files "
            f"free, and the run needs about {format_bytes(needed)}; free some of the disk, or "
            f"choose another {setting}"
        )
