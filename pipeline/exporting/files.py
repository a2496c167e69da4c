"""The files of an export, in a folder or at a URL.

``export.json`` is written last and removed first, so that no reader takes an incomplete export for
a complete one. ``export.partial`` exists meanwhile: the next start may write where it stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.inference.export_record import (
    CARD_NAME,
    LOADER_NAME,
    RECORD_NAME,
    ExportRecord,
    is_export,
)

_MARKER_NAME = "export.partial"


def check_target(out: str, *, force: bool) -> None:
    """Refuse a place with files of others, and a complete export unless it may be replaced.

    Raises:
        ConfigError: the place is in use.
        StorageError: it cannot be read.
    """
    place = storage.redact(out)
    if is_export(out):
        if not force:
            raise ConfigError(
                f"{place}: holds an export already; give --force to replace it, with its "
                f"{CARD_NAME}, or another --out"
            )
    elif storage.list_files(out) and not storage.exists(storage.join(out, _MARKER_NAME)):
        raise ConfigError(
            f"{place}: holds files and no {RECORD_NAME}; give an empty or a new folder as --out"
        )


def write_files(
    out: str, record: ExportRecord, files: Mapping[str, bytes], *, card: str, loader: bytes | None
) -> ExportRecord:
    """Write an export to ``out``, in place of the one that is there; returns its complete record.

    Raises:
        StorageError: a file cannot be written.
    """
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    record = record.model_copy(update={"files": hashes})
    marker_url = storage.join(out, _MARKER_NAME)
    storage.write_atomically(marker_url, b"")
    for url in (storage.join(out, RECORD_NAME), *storage.list_files(out)):
        if url.rsplit("/", 1)[-1] != _MARKER_NAME:
            storage.remove(url)
    written = {**files, CARD_NAME: card.encode()}
    if loader is not None:
        written[LOADER_NAME] = loader
    for name, data in written.items():
        storage.write_atomically(storage.join(out, name), data)
    content = f"{record.model_dump_json(indent=2)}\n".encode()
    storage.write_atomically(storage.join(out, RECORD_NAME), content)
    storage.remove(marker_url)
    return record
