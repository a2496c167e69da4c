"""A bounded folder keeps its limit, never evicts a file in use, and survives killed writers."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.data import cache_folder
from pipeline.data.cache_folder import BoundedFolder
from pipeline.errors import StorageError


def build(path: Path, limit_bytes: int = 1000, deadline_s: float = 0.3) -> BoundedFolder:
    folder = BoundedFolder(path, limit_bytes=limit_bytes, deadline_s=deadline_s)
    folder.check_room(limit_bytes)
    return folder


def add(folder: BoundedFolder, *files: tuple[str, int]) -> None:
    with folder.reserved(files) as descriptors:
        for (name, size), file in zip(files, descriptors, strict=True):
            os.write(file, b"x" * size)
            folder.complete(name, file)


def age(folder: BoundedFolder, names: Sequence[str]) -> None:
    """Set the times of last use: the first name was used longest ago."""
    for number, name in enumerate(names):
        os.utime(folder.path / f"{name}.segment", (number, number))


def test_longest_unused_file_is_evicted_first(tmp_path):
    folder = build(tmp_path)
    add(folder, ("a", 300), ("b", 300), ("c", 300))
    age(folder, ["b", "a", "c"])
    add(folder, ("d", 200))
    assert [folder.holds(name) for name in "abcd"] == [True, False, True, True]
    age(folder, ["a", "c", "d"])
    assert folder.touch("a")
    add(folder, ("e", 400))
    assert [folder.holds(name) for name in "acde"] == [True, False, True, True]
    assert folder.used_bytes() <= 1000


def test_file_in_use_is_not_evicted(tmp_path):
    folder = build(tmp_path)
    add(folder, ("a", 500), ("b", 400))
    age(folder, ["a", "b"])
    pinned = folder.pin("a")
    add(folder, ("c", 450))
    assert folder.holds("a") and not folder.holds("b")
    with pytest.raises(StorageError, match="no space for 0 MiB .* all in use"):
        other = folder.pin("c")
        add(folder, ("d", 500))
    os.close(pinned)
    os.close(other)
    add(folder, ("d", 500))
    assert folder.used_bytes() <= 1000


def test_failed_write_leaves_no_file(tmp_path):
    folder = build(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.reserved([("a", 100)]):
        assert folder.used_bytes() == 100
        raise ZeroDivisionError
    assert folder.used_bytes() == 0 and not folder.holds("a")
    assert folder.pin("a") is None and not folder.touch("a")


def test_a_name_has_one_claim_at_a_time(tmp_path):
    folder = build(tmp_path)
    first = folder.claim("a")
    assert folder.claim("a") is None
    other = folder.claim("b")
    os.close(first)
    again = folder.claim("a")
    assert again is not None
    os.close(again)
    os.close(other)


def _reserve_and_hang(path: Path, ready: multiprocessing.Event) -> None:
    folder = build(path)
    claim = folder.claim("a")
    with folder.reserved([("a", 700)]):
        ready.set()
        time.sleep(60)
    os.close(claim)


def test_killed_writer_blocks_no_other(tmp_path):
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=_reserve_and_hang, args=(tmp_path, ready))
    process.start()
    assert ready.wait(120)
    folder = build(tmp_path)
    assert folder.claim("a") is None
    with pytest.raises(StorageError, match="no space"):
        add(folder, ("b", 500))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    claim = folder.claim("a")
    add(folder, ("a", 900))
    assert folder.holds("a") and folder.used_bytes() == 900
    os.close(claim)


def test_request_above_the_limit_is_refused_at_once(tmp_path):
    with pytest.raises(StorageError, match="more than the limit"):
        add(build(tmp_path), ("a", 1001))


def test_folder_that_cannot_be_written_is_refused_early(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot hold the cache .*data.cache.folder"):
        build(tmp_path / "file" / "cache")
    with pytest.raises(StorageError, match="cannot hold the cache"):
        build(Path("/proc/cache"))


def test_disk_that_is_too_small_is_refused_early(tmp_path):
    folder = BoundedFolder(tmp_path, limit_bytes=1 << 60, deadline_s=1)
    with pytest.raises(StorageError, match="its disk has space for .*lower data.cache.limit"):
        folder.check_room(1 << 59)
    folder.check_room(1 << 20)  # the data set is smaller than the limit, and fits


def test_path_with_an_unset_variable_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    with pytest.raises(StorageError, match="an environment variable that is not set"):
        build(Path("$NO_SUCH_PLACE/cache"))
    monkeypatch.setenv("NO_SUCH_PLACE", str(tmp_path))
    assert build(Path("$NO_SUCH_PLACE/cache")).path == tmp_path / "cache"


def test_lock_that_another_process_never_releases_is_named(tmp_path, monkeypatch):
    """must end the wait at the limit, with the file and the setting"""
    monkeypatch.setattr(cache_folder, "_SHORTEST_LOCK_WAIT_S", 0.0)
    folder = build(tmp_path)
    with open(tmp_path / "room.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"room\.lock: another process .*data\.cache\.dead"):
            add(folder, ("a", 10))
    add(folder, ("a", 10))


@pytest.mark.parametrize("content", [b"", b"x", bytes(16), b"\xff" * 16, b"y" * 99])
def test_damaged_total_does_not_break_the_limit(tmp_path, content):
    folder = build(tmp_path)
    add(folder, ("a", 600), ("b", 300))
    age(folder, ["a", "b"])
    (tmp_path / "room.lock").write_bytes(content)
    add(folder, ("c", 200))
    assert [folder.holds(name) for name in "abc"] == [False, True, True]


def test_room_of_files_that_are_gone_is_used_again(tmp_path):
    """must not refuse, and must evict no file, though the stored total is too high"""
    folder = build(tmp_path)
    with pytest.raises(ZeroDivisionError), folder.reserved([("a", 700)]):
        raise ZeroDivisionError
    add(folder, ("b", 600))
    folder.remove("b")
    add(folder, ("c", 300), ("d", 700))
    assert folder.holds("c") and folder.holds("d")


def test_folder_is_not_scanned_for_each_reservation(tmp_path, monkeypatch):
    scans = []
    scan = BoundedFolder._entries
    monkeypatch.setattr(
        BoundedFolder, "_entries", lambda self: scans.append(self.path) or scan(self)
    )
    folders = [build(tmp_path), build(tmp_path)]
    scans.clear()
    for number in range(9):
        add(folders[number % 2], (str(number), 100))
    assert len(scans) == 1
    add(folders[0], ("9", 200))
    assert len(scans) == 2 and folders[1].used_bytes() <= 1000
