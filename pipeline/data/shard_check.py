"""Whether the shards that a run reads are there, with the sizes that the index gives.

One listing per folder answers for thousands of shards. Where a listing is not allowed or not
possible, each shard is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import storage
from pipeline.data.shard import Shard
from pipeline.errors import DataError, StorageError
from pipeline.text import first_few

_THREADS = 16
_REMEDY = "copy the data set again (`python -m pipeline.prepare copy`), or prepare it again"


def check_shards(shards: Iterable[Shard]) -> None:
    """Check that every shard exists and has its size; no byte of an image is read.

    Where the folder can be listed, each shard must have its table too.

    Raises:
        DataError: a shard or its table is missing, or the shard has another size.
        StorageError: the storage cannot be asked.
    """
    by_folder: dict[str, list[Shard]] = {}
    for shard in shards:
        by_folder.setdefault(shard.folder, []).append(shard)
    for folder, members in by_folder.items():
        _check_folder(folder, members)


def sizes_by_name(folder: str, shards: Sequence[Shard]) -> dict[str, int | None]:
    """The bytes of each shard and its table in ``folder``, by name; None for a missing file.

    The tables are left out where the folder cannot be listed.

    Raises:
        StorageError: the storage cannot be asked.
    """
    try:
        listed = {url.rpartition("/")[2]: size for url, size in storage.list_sizes(folder).items()}
    except StorageError:
        listed = {}
    # A shard that is not in the list may be there: some servers list nothing.
    unlisted = [shard for shard in shards if shard.name not in listed]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="look") as threads:
        sizes = dict(zip((s.name for s in unlisted), threads.map(_size, unlisted), strict=True))
    tables = {shard.table_name: listed.get(shard.table_name) for shard in shards if listed}
    return {**{s.name: listed.get(s.name) for s in shards}, **sizes, **tables}


def _check_folder(folder: str, shards: Sequence[Shard]) -> None:
    found = sizes_by_name(folder, shards)
    missing = [shard.name for shard in shards if found[shard.name] is None]
    place = storage.redact(folder)
    if missing:
        raise DataError(
            f"{place}: {len(missing)} of the {len(shards)} shards that the run reads are missing: "
            f"{first_few(missing, 3)}; {_REMEDY}"
        )
    tables = [shard.table_name for shard in shards]
    no_table = [name for name in tables if found.get(name, 0) is None]
    if no_table:
        raise DataError(
            f"{place}: {len(no_table)} of the {len(shards)} tables of shards that the run reads "
            f"are missing: {first_few(no_table, 3)}; {_REMEDY}"
        )
    wrong = [shard for shard in shards if found[shard.name] != shard.bytes]
    if wrong:
        first = wrong[0]
        raise DataError(
            f"{place}: {len(wrong)} of the {len(shards)} shards that the run reads have another "
            f"size than in the index: {first.name} has {found[first.name]:,} bytes instead of "
            f"{first.bytes:,}; {_REMEDY}"
        )


def _size(shard: Shard) -> int | None:
    """The bytes of a shard; None if it does not exist."""
    try:
        return storage.size(shard.url)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
