"""Copies a prepared data set from one place to another, and verifies the copy."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline import storage
from pipeline.data.index import INDEX_NAME, ShardIndex, read_index
from pipeline.data.prepare.parallel import Progress, no_progress
from pipeline.data.prepare.target import find_old_files, remove_leftovers
from pipeline.errors import ConfigError, DataError

_THREADS = 4


def copy_data_set(
    source_url: str,
    target_url: str,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ShardIndex:
    """Copy every file of the index at ``source_url``, the index last; the index of the copy.

    An equal file at the target is not copied again, so an interrupted copy resumes. Each file is
    compared with the index before it is written and again afterwards. ``progress`` counts files.
    ``overwrite`` replaces another data set: its index is removed first, its other files last.

    Raises:
        StorageError: a file cannot be read or written.
        DataError: a file does not match the index, at the source or at the target.
        ConfigError: ``target_url`` has another data set.
    """
    with storage.giving_up_early():
        index = read_index(source_url)
    data = storage.read_bytes(storage.join(index.url, INDEX_NAME), most=storage.MAX_TEXT_BYTES)
    target = target_url.removesuffix("/" + INDEX_NAME)
    old_files = _remove_other_index(target, index, overwrite)
    files = [_File(shard.name, shard.sha256, shard.bytes) for shard in index.shards]
    files += [_File(shard.table_name, shard.table_sha256) for shard in index.shards]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as threads:
        jobs = [threads.submit(_copy_file, index.url, target, file) for file in files]
        try:
            for done, job in enumerate(jobs, start=1):
                job.result()
                progress(done, len(files))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    storage.write_atomically(storage.join(target, INDEX_NAME), data)
    if overwrite:
        remove_leftovers(target, index, old_files)
    return read_index(target)


@dataclass(frozen=True)
class _File:
    """A file of a data set, with the most bytes that it may have."""

    name: str
    sha256: str
    most: int = storage.MAX_TEXT_BYTES

    def is_at(self, url: str) -> bool:
        """Whether the file at ``url`` has its bytes."""
        if not storage.exists(url) or storage.size(url) > self.most:
            return False
        return self.matches(storage.read_bytes(url, most=self.most))

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` are its bytes."""
        return hashlib.sha256(data).hexdigest() == self.sha256


def _remove_other_index(target: str, index: ShardIndex, overwrite: bool) -> set[str]:
    """Remove the index of another data set at the target; the names of the files of that one.

    Raises:
        ConfigError: there is one, and ``overwrite`` is false.
    """
    url = storage.join(target, INDEX_NAME)
    if not storage.exists(url) or _File(INDEX_NAME, index.sha256).is_at(url):
        return set()
    if not overwrite:
        raise ConfigError(
            f"{storage.redact(url)} belongs to another data set; "
            "give another target, or --overwrite"
        )
    old_files = find_old_files(target, overwrite)
    storage.remove(url)
    return old_files


def _copy_file(source: str, target: str, file: _File) -> None:
    copy = storage.join(target, file.name)
    if file.is_at(copy):
        return
    original = storage.join(source, file.name)
    data = storage.read_bytes(original, most=file.most)
    if not file.matches(data):
        raise DataError(
            f"{storage.redact(original)}: does not have the sha256 in the index, so it was not "
            "copied; prepare the data set again"
        )
    storage.write_atomically(copy, data)
    if not file.is_at(copy):
        raise DataError(
            f"{storage.redact(copy)}: reads back other bytes than were written; "
            "check the target's disk and copy again"
        )
