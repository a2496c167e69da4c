"""Copies a prepared data set from one place to another, and verifies the copy."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from pipeline import storage
from pipeline.data.index import INDEX_NAME, ShardIndex, read_index
from pipeline.data.prepare.parallel import Progress, no_progress
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

    Raises:
        StorageError: a file cannot be read or written.
        DataError: a file does not match the index, at the source or at the target.
        ConfigError: ``target_url`` has another data set.
    """
    with storage.giving_up_early():
        index = read_index(source_url)
    data = storage.read_bytes(storage.join(index.url, INDEX_NAME))
    target = target_url.removesuffix("/" + INDEX_NAME)
    _refuse_other(target, index, overwrite)
    files = [(shard.name, shard.sha256) for shard in index.shards]
    files += [(shard.table_name, shard.table_sha256) for shard in index.shards]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as threads:
        jobs = [threads.submit(_copy_file, index.url, target, *file) for file in files]
        try:
            for done, job in enumerate(jobs, start=1):
                job.result()
                progress(done, len(files))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    storage.write_atomically(storage.join(target, INDEX_NAME), data)
    return read_index(target)


def _refuse_other(target: str, index: ShardIndex, overwrite: bool) -> None:
    url = storage.join(target, INDEX_NAME)
    if overwrite or not storage.exists(url):
        return
    if hashlib.sha256(storage.read_bytes(url)).hexdigest() != index.sha256:
        raise ConfigError(
            f"{storage.redact(url)} belongs to another data set; "
            "give another target, or --overwrite"
        )


def _copy_file(source: str, target: str, name: str, sha256: str) -> None:
    copy = storage.join(target, name)
    if storage.exists(copy) and _sha256(storage.read_bytes(copy)) == sha256:
        return
    original = storage.join(source, name)
    data = storage.read_bytes(original)
    if _sha256(data) != sha256:
        raise DataError(
            f"{storage.redact(original)}: does not have the sha256 in the index, so it was not "
            "copied; prepare the data set again"
        )
    storage.write_atomically(copy, data)
    if _sha256(storage.read_bytes(copy)) != sha256:
        raise DataError(
            f"{storage.redact(copy)}: reads back other bytes than were written; "
            "check the target's disk and copy again"
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
