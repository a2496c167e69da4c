"""The folder that receives a data set, and the remains of an earlier attempt in it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.index import INDEX_NAME, ShardIndex, read_index
from pipeline.errors import ConfigError, DataError
from pipeline.text import first_few

UNFINISHED_NAME = "unfinished.json"

# A shard, its table, or a file that was being written when the process was killed.
_OURS = re.compile(r"\.?(train|test)-\d{6,}\.(tar|json)(\.[^/]+\.part)?|\.index\.json\.[^/]+\.part")


def find_old_files(out_url: str, overwrite: bool) -> set[str]:
    """The names of the files of a data set at the target, which the new one replaces.

    Raises:
        ConfigError: the target has a data set, or shards of unknown origin, and ``overwrite`` is
            false.
    """
    index_url = storage.join(out_url, INDEX_NAME)
    if not storage.exists(index_url):
        strays = _shard_files(out_url)
        if strays and not overwrite and not _is_unfinished(out_url):
            raise ConfigError(
                f"{storage.redact(out_url)} has shards that no index names "
                f"({first_few(sorted(strays), 3)}); give another --out, or --overwrite"
            )
        return set()
    if not overwrite:
        raise ConfigError(
            f"{storage.redact(index_url)} exists already; give another --out, or --overwrite"
        )
    try:
        old = read_index(out_url)
    except DataError:  # not an index of this project: only that file is replaced
        return set()
    return {name for shard in old.shards for name in (shard.name, shard.table_name)}


def remove_leftovers(out_url: str, index: ShardIndex, old_files: set[str]) -> None:
    """Remove the files of earlier attempts and data sets that ``index`` does not name."""
    kept = {name for shard in index.shards for name in (shard.name, shard.table_name)}
    for name in [UNFINISHED_NAME, *sorted((old_files | _shard_files(out_url)) - kept)]:
        storage.remove(storage.join(out_url, name))


def _is_unfinished(out_url: str) -> bool:
    return storage.exists(storage.join(out_url, UNFINISHED_NAME))


def _shard_files(out_url: str) -> set[str]:
    """The names of files directly in the target that are called as ``write_shards`` calls them."""
    files = [url.rpartition("/") for url in storage.list_files(out_url)]
    depth = len(PurePosixPath(storage.local_path(out_url)).parts)
    return {
        name
        for folder, _, name in files
        if len(PurePosixPath(storage.local_path(folder)).parts) == depth and _OURS.fullmatch(name)
    }
