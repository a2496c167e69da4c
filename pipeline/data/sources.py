"""Finds out what kind of source of pictures lies at a URL."""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.pictures import FolderSource, PictureSource, TableSource, TarSource, ZipSource
from pipeline.data.records import CifarSource, ParquetSource, cifar_layout, is_parquet
from pipeline.errors import DataError


def open_source(url: str) -> PictureSource:
    """The source at ``url``, of the kind that its name and its content tell.

    Raises:
        DataError: there is nothing, or nothing of a known kind.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix in (".csv", ".jsonl"):
        return TableSource(url)
    if suffix == ".tar":
        return TarSource(url)
    if suffix == ".zip":
        return ZipSource(url)
    place = storage.redact(url)
    if suffix in (".gz", ".tgz", ".bz2", ".xz"):
        raise DataError(f"{place}: a compressed tar cannot be read in place; decompress it first")
    if layout := cifar_layout(url):
        return CifarSource(url, layout)
    if is_parquet(url):
        return ParquetSource(url)
    if not storage.list_files(url):
        raise DataError(
            f"{place}: holds no file; give a folder, .tar, .zip, .csv, .jsonl or .parquet"
        )
    return FolderSource(url)
