"""Decoded pixels of a node, kept for later epochs, tests, tasks and runs.

Decisions, with their cost:

- The unit of storage is the segment, as in ``pipeline.data.cache``: one file with a row per sample.
  Every rank and loader worker of the node writes the rows that it has decoded. Two that write the
  same row write the same bytes.
- The name of a file is a hash of the index entry of the segment, of the transform and of the
  versions of the decoder, so no other pixels can be found under it.
- A row is its CRC-32 and its pixels, uint8. The checksum is written last and compared at each read:
  a row that is half written, or that a crash of the machine has lost, is noticed. A file with such
  damage is removed.
- Files are read, not mapped: the system shares them between processes in the same way, and a file
  that is cut off is a short read instead of a signal that ends the process.
- Kept pixels only save time. Without room, or after any error of the disk, images are decoded as
  usual, and one warning says so. A file that was used in the last ten minutes never gives way to
  another: else a selection larger than the limit would evict every file before its second use.

B images, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import __version__ as pillow_version
from PIL import features

from pipeline.data.cache_folder import POLL_S, BoundedFolder
from pipeline.data.reader import ShardReader
from pipeline.data.samples import Samples
from pipeline.data.transforms import Transform
from pipeline.errors import StorageError

log = logging.getLogger(__name__)

_IDLE_S = 600.0  # before a file may give way to another one
_RETRY_S = 30.0  # before a process asks again for room that it was refused
_CREATE_S = 10.0  # the longest wait for another process that creates a file
_CHECKSUM_BYTES = 4
# Change it whenever equal bytes of a sample give other pixels than before.
_PIXELS_VERSION = 1

Row = tuple[int, memoryview]  # number of the row, and its pixels


@dataclass(frozen=True)
class PixelBlock:
    """The pixels of one segment under one transform: ``rows`` samples of ``row_bytes`` bytes.

    ``origin`` names everything that decides the pixels.
    """

    origin: str
    rows: int
    row_bytes: int

    @cached_property
    def name(self) -> str:
        """The name of its file."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:40]

    @property
    def stride(self) -> int:
        """Bytes from one row to the next."""
        return _CHECKSUM_BYTES + self.row_bytes


class PixelCache:
    """Decoded pixels in a local folder of at most ``limit_bytes``; small to pickle."""

    def __init__(self, folder: str | Path, *, limit_bytes: int, idle_s: float = _IDLE_S) -> None:
        self.folder = BoundedFolder(
            folder,
            limit_bytes=limit_bytes,
            deadline_s=0,
            idle_s=idle_s,
            setting="data.cache.pixels_gb",
        )
        self._refused_until = 0.0
        self._has_warned = False

    def read(self, block: PixelBlock, rows: Sequence[Row]) -> list[bool]:
        """Fill the pixels of ``rows``; for each row whether it was kept."""
        try:
            file = self.folder.pin(block.name)
        except OSError:  # write() reports a folder that cannot be used
            file = None
        if file is None:
            return [False] * len(rows)
        try:
            if os.fstat(file).st_size != block.rows * block.stride:
                raise OSError("has another size than it was made with")
            os.utime(file)
            return [_read_row(file, block, number, pixels) for number, pixels in rows]
        except OSError as error:
            log.warning("%s: %s; decoding its images again", self.folder.file(block.name), error)
            self.folder.remove(block.name)
            return [False] * len(rows)
        finally:
            os.close(file)

    def write(self, block: PixelBlock, rows: Sequence[Row]) -> None:
        """Keep the pixels of ``rows`` if there is room."""
        if time.monotonic() < self._refused_until:
            return
        try:
            file = self._open_or_create(block)
            try:
                for number, pixels in rows:
                    start = number * block.stride
                    os.pwrite(file, pixels, start + _CHECKSUM_BYTES)
                    os.pwrite(file, _checksum(pixels), start)
            finally:
                os.close(file)
        except (StorageError, OSError) as error:
            self._refused_until = time.monotonic() + _RETRY_S
            if not self._has_warned:
                log.warning("no more decoded pixels are kept, images are decoded again: %s", error)
            self._has_warned = True

    def _open_or_create(self, block: PixelBlock) -> int:
        """A descriptor of the block's file, which is not evicted until it is closed."""
        give_up = time.monotonic() + _CREATE_S
        while (file := self.folder.pin(block.name, os.O_RDWR)) is None:
            claim = self.folder.claim(block.name)
            if claim is not None:
                try:
                    self._create(block)
                finally:
                    os.close(claim)
            elif time.monotonic() > give_up:
                raise StorageError(f"{self.folder.path}: another process blocks a file")
            else:
                time.sleep(POLL_S / 10)
        return file

    def _create(self, block: PixelBlock) -> None:
        if not self.folder.holds(block.name):
            with self.folder.reserved([(block.name, block.rows * block.stride)]) as (file,):
                self.folder.complete(block.name, file)


def _read_row(file: int, block: PixelBlock, number: int, pixels: memoryview) -> bool:
    checksum = bytearray(_CHECKSUM_BYTES)
    os.preadv(file, [checksum, pixels], number * block.stride)
    if not any(checksum):
        return False
    if checksum != _checksum(pixels):
        raise OSError(f"row {number} does not match its checksum")
    return True


def _checksum(pixels: memoryview) -> bytes:
    return zlib.crc32(pixels).to_bytes(_CHECKSUM_BYTES, "little")


class KeptPixels:
    """The pixels of requests in a :class:`PixelCache`; small to pickle."""

    def __init__(self, cache: PixelCache, reader: ShardReader) -> None:
        self._cache = cache
        self._reader = reader
        self._blocks: dict[tuple[int, int, Transform], PixelBlock] = {}

    def load(self, samples: Samples, transform: Transform, image_BCHW: torch.Tensor) -> list[int]:
        """Fill the images that are kept; the rows of ``samples`` that are left to decode.

        Raises:
            DataError: the split of a sample is closed.
        """
        for shard in set(samples.shard_S.tolist()):
            self._reader.refuse_closed(shard)
        left: list[int] = []
        for block, rows in self._by_block(samples, transform, range(len(samples))).items():
            found = self._cache.read(block, _pixels_of(samples, image_BCHW, rows))
            left += [row for row, is_found in zip(rows, found, strict=True) if not is_found]
        return sorted(left)

    def save(
        self, samples: Samples, transform: Transform, image_BCHW: torch.Tensor, rows: Sequence[int]
    ) -> None:
        """Keep the images of these rows."""
        for block, members in self._by_block(samples, transform, rows).items():
            self._cache.write(block, _pixels_of(samples, image_BCHW, members))

    def _by_block(
        self, samples: Samples, transform: Transform, rows: Sequence[int]
    ) -> dict[PixelBlock, list[int]]:
        shards, segments = samples.shard_S.tolist(), samples.segment_S.tolist()
        by_segment: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            by_segment.setdefault((shards[row], segments[row]), []).append(row)
        return {
            self._block(samples, transform, members[0]): members for members in by_segment.values()
        }

    def _block(self, samples: Samples, transform: Transform, row: int) -> PixelBlock:
        key = int(samples.shard_S[row]), int(samples.segment_S[row]), transform
        if key not in self._blocks:
            segment = self._reader.segment_of(samples, row)
            versions = _PIXELS_VERSION, pillow_version, features.version("libjpeg_turbo")
            origin = repr((segment, self._reader.stored_label(samples, row), transform, versions))
            self._blocks[key] = PixelBlock(origin, segment.samples, 3 * transform.image_size**2)
        return self._blocks[key]


def _pixels_of(samples: Samples, image_BCHW: torch.Tensor, rows: Sequence[int]) -> list[Row]:
    images = image_BCHW.numpy()
    return [(int(samples.row_S[row]), images[row].data) for row in rows]
