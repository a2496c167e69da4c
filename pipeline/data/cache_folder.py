"""A folder of complete files with a size limit, shared by every process of a node.

The mechanics below ``pipeline.data.cache``; this module knows nothing about the content of files.

- A file is written as ``.part``, reserved at its full size and locked by its writer, and renamed
  when complete. A ``.part`` whose lock is free was left by a killed writer, and counts as unused.
- A file in use has a shared lock. Only files whose exclusive lock is free, and that were not used
  in the last ``idle_s`` seconds, are evicted, the longest unused first.
- The total of all files is stored in the file of the lock, and raised before a file is created: a
  crash leaves it too high, never too low. The folder is scanned if the total reaches the limit or
  is a minute old, so that a reservation costs the same in a cache of many files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import StorageError

POLL_S = 0.05
_LOCK_POLL_S = 0.002
_SHORTEST_LOCK_WAIT_S = 10.0
_SCAN_S = 60.0  # the longest time between two scans
_SPARE = 64  # a full folder evicts this part of its limit in addition, so that it scans rarely
_TOTAL = struct.Struct("<qd")  # in the file of the lock: bytes of all files, time of the last scan

_SUFFIX = ".segment"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class BoundedFolder:
    """Files by name, at most ``limit_bytes`` in total; small to pickle, opens no file by itself.

    ``setting`` is the name of the limit in a configuration, for messages.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        limit_bytes: int,
        deadline_s: float,
        idle_s: float = 0.0,
        setting: str = "data.cache.limit_gb",
    ) -> None:
        self.path = Path(os.path.expandvars(os.path.expanduser(path)))
        self.limit_bytes = limit_bytes
        self._deadline_s = deadline_s
        self._idle_s = idle_s
        self._setting = setting

    def check_room(self, needed_bytes: int) -> None:
        """Check, before any work, that the disk has space for ``needed_bytes`` or for the limit.

        Raises:
            StorageError: the folder cannot be written, or its disk is too full.
        """
        if "$" in str(self.path):
            raise StorageError(f"{self.path}: has an environment variable that is not set; set it")
        probe = self.path / f".probe-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()
            disk = os.statvfs(self.path)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot hold the cache ({error.strerror}); "
                "set data.cache.folder to a writable local folder"
            ) from error
        wanted = min(self.limit_bytes, needed_bytes)
        space = disk.f_bavail * disk.f_frsize + self.used_bytes()
        if wanted > space:
            raise StorageError(
                f"{self.path}: the cache needs {_mib(wanted)} and its disk has space for "
                f"{_mib(space)}; lower data.cache.limit_gb or choose another data.cache.folder"
            )

    def used_bytes(self) -> int:
        """Bytes of all files, including those being written."""
        return _total(self._entries())

    def holds(self, name: str) -> bool:
        """Whether a complete file of that name exists now."""
        return self.file(name).exists()

    def touch(self, name: str) -> bool:
        """Mark a complete file of that name as just used; whether it exists."""
        try:
            os.utime(self.file(name))
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Delete a file even if a process reads it; a missing file is no error."""
        self.file(name).unlink(missing_ok=True)

    def pin(self, name: str, flags: int = os.O_RDONLY) -> int | None:
        """An open descriptor of a complete file, which is not evicted until it is closed."""
        return _lock(self.file(name), fcntl.LOCK_SH, flags)

    def claim(self, name: str) -> int | None:
        """A descriptor that gives the sole right to write ``name``; ``None`` if it is taken.

        Raises:
            StorageError: the folder cannot be written.
        """
        lock = self.file(name).with_suffix(".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return _lock(lock, fcntl.LOCK_EX, os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise self._disk_error("1 more file", error) from error

    @contextmanager
    def reserved(self, sizes: Sequence[tuple[str, int]]) -> Iterator[list[int]]:
        """Open files of the given (name, bytes), to be filled and then passed to ``complete``.

        Raises:
            StorageError: the files do not fit within the limit, or on the disk.
        """
        needed = sum(size for _, size in sizes)
        if needed > self.limit_bytes:
            raise StorageError(
                f"{self.path}: one request of {_mib(needed)} is more than the limit of "
                f"{_mib(self.limit_bytes)}; raise {self._setting}"
            )
        with self._space_for(sizes, needed) as files:
            yield files

    def complete(self, name: str, file: int) -> None:
        """Give a filled file its name; from now on it can be pinned and evicted."""
        os.replace(self.file(name).with_suffix(".part"), self.file(name))
        fcntl.flock(file, fcntl.LOCK_UN)

    @contextmanager
    def _space_for(self, sizes: Sequence[tuple[str, int]], needed: int) -> Iterator[list[int]]:
        give_up = time.monotonic() + self._deadline_s
        while (parts := self._try_to_reserve(sizes, needed)) is None:
            if time.monotonic() > give_up:
                raise StorageError(
                    f"{self.path}: no space for {_mib(needed)} within the limit of "
                    f"{_mib(self.limit_bytes)}, which is all in use; raise {self._setting}"
                )
            time.sleep(POLL_S)
        stack, files = parts
        with stack:
            yield files

    def _try_to_reserve(
        self, sizes: Sequence[tuple[str, int]], needed: int
    ) -> tuple[ExitStack, list[int]] | None:
        with ExitStack() as stack, self._alone() as lock:
            try:
                if not self._make_room(lock, needed):
                    return None
                files = [self._create(stack, name, size) for name, size in sizes]
            except OSError as error:
                # others may have filled the disk: evict files of the cache, then try again
                if error.errno in _FULL_DISK and self._evict(self._entries(), needed) >= needed:
                    return None
                raise self._disk_error(f"{needed:,} more bytes", error) from error
            return stack.pop_all(), files

    def _make_room(self, lock: int, needed: int) -> bool:
        """Add ``needed`` to the total in the file ``lock``, if it stays within the limit."""
        used, scanned = _read_total(lock)
        if used + needed > self.limit_bytes or not 0 <= time.time() - scanned < _SCAN_S:
            entries, scanned = self._entries(), time.time()
            used = _total(entries)
            if used + needed > self.limit_bytes:
                spare = self.limit_bytes // _SPARE
                used -= self._evict(entries, used + needed - self.limit_bytes + spare)
        if used + needed > self.limit_bytes:
            return False
        os.pwrite(lock, _TOTAL.pack(used + needed, scanned), 0)
        return True

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Keep other processes from reserving; each holds it for moments only.

        The value is a descriptor of the file of the lock.

        Raises:
            StorageError: another process holds it for longer than the limit of a wait.
        """
        try:
            flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
            file = os.open(self.path / "room.lock", flags, 0o666)
        except OSError as error:
            raise self._disk_error("1 more file", error) from error
        try:
            self._wait_for_lock(file)
            yield file
        finally:
            os.close(file)

    def _wait_for_lock(self, file: int) -> None:
        limit_s = max(self._deadline_s, _SHORTEST_LOCK_WAIT_S)
        give_up = time.monotonic() + limit_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            except OSError as error:  # a network file system without locks
                raise self._disk_error("a lock", error) from error
            if time.monotonic() > give_up:
                raise StorageError(
                    f"{self.path}/room.lock: another process has held this lock for "
                    f"{limit_s:g} s (data.cache.deadline_s); end that process, or choose "
                    "another data.cache.folder"
                )
            time.sleep(_LOCK_POLL_S)

    def _evict(self, entries: Sequence[tuple[str, int, float]], wanted: int) -> int:
        """Remove unused files, longest unused first, until ``wanted`` bytes are free; bytes freed.

        A ``.part`` that nobody locks is unused at once.
        """
        freed, latest = 0, time.time() - self._idle_s
        for path, size, last_use in sorted(entries, key=lambda entry: entry[2]):
            if freed >= wanted:
                break
            is_idle = not self._idle_s or last_use < latest or path.endswith(".part")
            if is_idle and _remove_unused(Path(path)):
                freed += size
        return freed

    def _disk_error(self, wanted: str, error: OSError) -> StorageError:
        disk = os.statvfs(next(p for p in (self.path, *self.path.parents) if p.exists()))
        return StorageError(
            f"{self.path}: cannot store {wanted} ({error.strerror}; "
            f"{disk.f_bavail * disk.f_frsize:,} bytes and {disk.f_favail:,} files are free); "
            "free some of its disk or lower data.cache.limit_gb"
        )

    def _create(self, stack: ExitStack, name: str, size: int) -> int:
        part = self.file(name).with_suffix(".part")
        file = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o666)
        stack.callback(os.close, file)
        stack.callback(part.unlink, missing_ok=True)
        fcntl.flock(file, fcntl.LOCK_EX)
        os.posix_fallocate(file, 0, size)
        return file

    def _entries(self) -> list[tuple[str, int, float]]:
        """(path, bytes, last use) of every file, including those being written."""
        found = []
        with os.scandir(self.path) as files:
            for file in files:
                if not file.name.endswith((_SUFFIX, ".part")):
                    continue
                try:
                    status = file.stat()
                except FileNotFoundError:  # evicted since the scan
                    continue
                found.append((file.path, status.st_size, status.st_mtime))
        return found

    def file(self, name: str) -> Path:
        """The path of the file of that name."""
        return self.path / (name + _SUFFIX)


def _total(entries: Sequence[tuple[str, int, float]]) -> int:
    return sum(size for _, size, _ in entries)


def _read_total(lock: int) -> tuple[int, float]:
    """Bytes of all files and time of the last scan, as written by ``_make_room``; 0 without."""
    data = os.pread(lock, _TOTAL.size, 0)
    return _TOTAL.unpack(data) if len(data) == _TOTAL.size else (0, 0.0)


def _remove_unused(path: Path) -> bool:
    """Remove the file and the lock of its writers, unless a process reads or writes it."""
    for place in (path, path.with_suffix(".lock")):
        file = _lock(place, fcntl.LOCK_EX, os.O_RDWR)
        if file is None:
            return place != path
        place.unlink(missing_ok=True)
        os.close(file)
    return True


def _lock(path: Path, kind: int, flags: int) -> int | None:
    """A descriptor with the lock on the file now at ``path``; ``None`` if it cannot be had."""
    try:
        file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:  # else it was removed between open and lock
            return file
    except BlockingIOError:
        pass
    os.close(file)
    return None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
