"""The addresses of the samples of one shard, as columns: in memory, or shared by a node.

The table of a shard is JSON; parsing it takes 1.3 µs and 100 bytes of memory per sample, which is
much for tens of millions of samples in every process. A large data set is therefore parsed once per
node: the first process that needs a shard writes its columns into the folder of the cache, and
every process maps that file.

S samples.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.data.cache_folder import BoundedFolder
from pipeline.data.samples import SampleTable
from pipeline.errors import StorageError

log = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4
_POLL_S = 0.002


class AddressTable:
    """Offset, size, checksum and key of each sample of a shard, by its position in the shard."""

    def __init__(self, data: bytes | mmap.mmap, samples: int) -> None:
        """Read the columns that :func:`pack_table` has written."""
        columns = np.frombuffer(data, dtype=np.int64, count=4 * samples).reshape(4, samples)
        self.offset_S, self.size_S, self.crc32_S, self._key_end_S = columns
        self._data = data
        self._keys = columns.nbytes  # where they start in the data

    def key(self, row: int) -> str:
        """The key of one sample."""
        start = self._key_end_S.item(row - 1) if row else 0
        return self._data[self._keys + start : self._keys + self._key_end_S.item(row)].decode()

    @property
    def keys(self) -> list[str]:
        """The key of each sample."""
        end_S = self._key_end_S.tolist()
        text = bytes(self._data[self._keys : self._keys + max(end_S, default=0)])
        return [text[start:end].decode() for start, end in zip([0, *end_S], end_S, strict=False)]


def pack_table(table: SampleTable) -> bytes:
    """The columns of a table as :class:`AddressTable` reads them."""
    keys = [key.encode() for key in table.keys]
    key_end_S = np.cumsum([len(key) for key in keys], dtype=np.int64)
    columns = [table.offset_S, table.size_S, table.crc32_S, key_end_S]
    return np.stack(columns).astype(np.int64).tobytes() + b"".join(keys)


def pack_draws(keys: Sequence[str]) -> bytes:
    """A number in [0, 2⁶³) per key, int64, which decides whether validation holds a sample out.

    It is ``derive_seed("validation", key)``, in less than half of the time.
    """
    names = (f"('validation', {key!r})".encode() for key in keys)
    digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
    return (np.frombuffer(digests, dtype="<u8") >> 1).astype(np.int64).tobytes()


class NodeFiles:
    """Contents by name that are made once per node and then mapped by every process.

    They are files of the cache at ``folder`` and count towards its limit; one that was evicted is
    made again. A process that finds no room keeps the content in its memory.
    """

    def __init__(self, folder: str | Path, *, limit_bytes: int) -> None:
        self._folder = BoundedFolder(folder, limit_bytes=limit_bytes, deadline_s=0)
        self._is_usable = True

    def get(self, name: str, make: Callable[[], bytes]) -> bytes | mmap.mmap:
        """The content of that name; ``make`` is called if this node does not have it yet."""
        while self._is_usable:
            data = self._read(name)
            if data is not None:
                return data
            claim = None
            with self._given_up_without_room():
                claim = self._folder.claim(name)
            if claim is None:  # another process is making it
                time.sleep(_POLL_S)
                continue
            try:
                if not self._folder.holds(name):
                    content = make()
                    with self._given_up_without_room():
                        self._write(name, content)
                    return self._read(name) or content
            finally:
                os.close(claim)
        return make()

    @contextmanager
    def _given_up_without_room(self) -> Iterator[None]:
        """Use the folder no more after an error of the folder in the block."""
        try:
            yield
        except StorageError as error:
            self._is_usable = False
            log.warning("tables of shards are kept in the memory of each process: %s", error)

    def _read(self, name: str) -> mmap.mmap | None:
        file = self._folder.pin(name)
        if file is None:
            return None
        try:
            data = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
            os.utime(file)
        except (OSError, ValueError):  # an empty file cannot be mapped
            data = None
        finally:
            os.close(file)
        if data is not None and len(data) > _CHECKSUM_BYTES:
            content = memoryview(data)[:-_CHECKSUM_BYTES]
            if zlib.crc32(content) == int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
                return data
        log.warning("%s: is damaged; making it again", self._folder.file(name))
        self._folder.remove(name)
        return None

    def _write(self, name: str, content: bytes) -> None:
        data = content + zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")
        with self._folder.reserved([(name, len(data))]) as (file,):
            os.pwrite(file, data, 0)
            self._folder.complete(name, file)
