"""The source of images at a URL, of the kind that its name and content show."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.prepare.folder_sources import (
    FolderSource,
    ImageSource,
    TableSource,
    TarSource,
    ZipSource,
)
from pipeline.data.prepare.record_sources import (
    CifarSource,
    ParquetSource,
    cifar_layout,
    is_parquet,
)
from pipeline.errors import DataError

_UNPACKERS = {
    ".gz": "gzip",
    ".tgz": "gzip",
    ".bz2": "bzip2",
    ".tbz2": "bzip2",
    ".xz": "xz",
    ".txz": "xz",
    ".zst": "zstd",
    ".tzst": "zstd",
}


def open_source(url: str) -> ImageSource:
    """The source at ``url``, of the kind that its name and content show.

    Raises:
        DataError: ``url`` has no file, or a compressed archive.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix in (".csv", ".jsonl"):
        return TableSource(url)
    if suffix == ".tar":
        return TarSource(url)
    if suffix == ".zip":
        return ZipSource(url)
    place = storage.redact(url)
    if unpacker := _UNPACKERS.get(suffix):
        raise DataError(
            f"{place}: a compressed archive cannot be read in place; decompress it first with "
            f"`{unpacker} -d {PurePosixPath(place).name}` and give the .tar"
        )
    if layout := cifar_layout(url):
        return CifarSource(url, layout)
    if is_parquet(url):
        return ParquetSource(url)
    if not storage.list_files(url):
        raise DataError(
            f"{place}: has no file; give a folder, .tar, .zip, .csv, .jsonl or .parquet"
        )
    return FolderSource(url)
