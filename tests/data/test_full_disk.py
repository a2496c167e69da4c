"""A cache on a full disk reports the place, the space it needs and the space that is free.

The disk is a memory file system of a few pages, so the tests need the right to mount one.
"""

from __future__ import annotations

import errno
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.data.cache import SegmentCache
from pipeline.data.index import ShardIndex
from pipeline.data.stream import ShardSource, eval_stream
from pipeline.data.transforms import build_transform
from pipeline.errors import StorageError
from tests.shards import draw_samples, store

DISK_BYTES = 512 << 10


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk, with further mount options, until the end of the test."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str = "") -> Path:
        options = f"size={DISK_BYTES}{options}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {getattr(error, 'stderr', error)}")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # threads may still read


@pytest.fixture(scope="module")
def index() -> ShardIndex:
    """Shards that fit on the disk, twice."""
    index = store(f"memory://{uuid.uuid4().hex}", draw_samples())
    assert DISK_BYTES // 3 < sum(shard.bytes for shard in index.shards) < DISK_BYTES // 2
    return index


def open_source(index: ShardIndex, folder: Path) -> ShardSource:
    return ShardSource(index, cache=SegmentCache(folder, limit_bytes=1 << 30, deadline_s=5))


def read_all(source: ShardSource) -> int:
    transform = build_transform("clip", 13)
    selection = source.index.select("train", range(5))
    stream = eval_stream(source, selection, batch_size=8, transform=transform)
    return sum(len(batch.label_B) for batch in stream)


def fill(folder: Path) -> None:
    """Fill the rest of the disk, as another user would."""
    with pytest.raises(OSError) as caught, open(folder / "others", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert caught.value.errno == errno.ENOSPC


def test_disk_too_small_for_the_data_is_refused_before_training(index, mount):
    disk = mount()
    assert read_all(open_source(index, disk / "cache")) == 45
    (disk / "others").write_bytes(bytes(DISK_BYTES // 2))
    with pytest.raises(StorageError) as caught:
        open_source(index, disk / "another cache")
    assert str(caught.value).startswith(f"{disk}/another cache: the cache needs ")
    assert "and its disk has space for " in str(caught.value)


def test_disk_that_fills_up_ends_the_stream_with_needed_and_free_space(index, mount):
    disk = mount()
    source = open_source(index, disk)
    fill(disk)
    wanted = rf"^{disk}: cannot store [\d,]+ more bytes \(No space left on device; [\d,]+ bytes and"
    with pytest.raises(StorageError, match=wanted):
        read_all(source)
    os.unlink(disk / "others")
    assert read_all(source) == 45, "the source is usable again"
    source.close()


def test_cache_evicts_its_own_files_on_a_full_disk(index, mount):
    """must evict old segments before it fails the run"""
    disk = mount()
    source = open_source(index, disk)
    assert read_all(source) == 45
    next(disk.glob("*.segment")).unlink()
    fill(disk)
    assert read_all(source) == 45
    source.close()


@pytest.mark.parametrize("n_files", [2, 3])
def test_disk_without_a_free_inode_is_explained(index, mount, n_files):
    disk = mount(f",nr_inodes={n_files}")  # one of them is its root
    source = open_source(index, disk)
    with pytest.raises(StorageError, match=f"^{disk}: cannot store .* and 0 files are free"):
        read_all(source)
    source.close()


def test_disk_that_becomes_read_only_is_explained(index, mount):
    disk = mount()
    source = open_source(index, disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StorageError, match=f"^{disk}: cannot store .*Read-only file system"):
        read_all(source)
    source.close()
