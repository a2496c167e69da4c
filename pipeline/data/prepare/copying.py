"""Copies a prepared data set from one place to another, and proves that the copy is one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipeline import storage
from pipeline.data.index import INDEX_NAME, ShardIndex, read_index
from pipeline.errors import ConfigError, DataError

_THREADS = 4

Progress = Callable[[int, int], None]  # files done, files in all


def copy_data_set(
    source_url: str,
    target_url: str,
    *,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> ShardIndex:
    """Copy every file of the index at ``source_url``; the index comes last.

    What is there already and equal is not copied again, so an interrupted copy goes on. Each file
    is compared with the index before it is written and read back afterwards.

    Raises:
        StorageError: a file cannot be read or written.
        DataError: a file is not what the index says, at either end.
        ConfigError: there is another data set at ``target_url``.
    """
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
            f"{storage.redact(url)} is of another data set; give another target, or --overwrite"
        )


def _copy_file(source: str, target: str, name: str, sha256: str) -> None:
    there = storage.join(target, name)
    if storage.exists(there) and _sha256(storage.read_bytes(there)) == sha256:
        return
    here = storage.join(source, name)
    data = storage.read_bytes(here)
    if _sha256(data) != sha256:
        raise DataError(f"{storage.redact(here)}: has not the sha256 in the index; not copied")
    storage.write_atomically(there, data)
    if _sha256(storage.read_bytes(there)) != sha256:
        raise DataError(f"{storage.redact(there)}: was written but reads back differently")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
