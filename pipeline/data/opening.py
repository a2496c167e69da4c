"""The index, or the joined indexes, that the setting ``data.index`` names."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pipeline import storage
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.joining import KnownClasses, join_indexes
from pipeline.errors import ConfigError
from pipeline.paths import expand_path
from pipeline.settings_file import parse_list


def open_index(given: str | Sequence[str], *, known_classes: KnownClasses = "refuse") -> ShardIndex:
    """The index at a folder or URL, or those of a list joined; ``@FILE`` names a file of a list.

    Raises:
        ConfigError: a list cannot be used.
        DataError: an index cannot be used, or two cannot be joined.
        StorageError: a file cannot be read.
    """
    entries = [given] if isinstance(given, str) else given
    urls = [url for entry in entries for url in _listed(entry)]
    return join_indexes(list(map(read_index, urls)), known_classes=known_classes)


def _listed(entry: str) -> list[str]:
    """The indexes that an entry of ``data.index`` names: itself, or those in the file ``@FILE``.

    The paths in the file start at its folder.
    """
    if not entry.startswith("@"):
        return [entry]
    try:
        file = expand_path(entry.removeprefix("@"))
        listed = parse_list(storage.read_text(file), place=storage.redact(file))
        urls = list(map(expand_path, listed))
    except ValueError as error:
        raise ConfigError(f"data.index: {entry}: {error}") from None
    if any(url.startswith("@") for url in urls):
        raise ConfigError(
            f"{storage.redact(file)}: an index of a list cannot be another list; write its "
            "entries into this file"
        )
    folder = os.path.dirname(file) or "."
    return [
        url if not storage.is_local(url) or os.path.isabs(url) else storage.join(folder, url)
        for url in urls
    ]
