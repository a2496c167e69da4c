"""The source of images at a URL, of the kind that its name and content show."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.prepare.archive_sources import TarSource, ZipSource
from pipeline.data.prepare.cifar_source import find_cifar
from pipeline.data.prepare.folder_source import FolderSource, list_tree
from pipeline.data.prepare.mnist_source import find_mnist
from pipeline.data.prepare.parquet_source import ParquetSource, is_parquet_name
from pipeline.data.prepare.source_images import ImageSource, LeftOut
from pipeline.data.prepare.table_source import TableSource
from pipeline.errors import DataError

_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lzma"}
_COMPRESSED_TARS = {".tgz", ".tbz", ".tbz2", ".txz", ".tzst"}
_OTHER_ARCHIVES = {".7z", ".rar"}
_KINDS = "a folder, .tar, .zip, .csv, .jsonl or .parquet"


def open_source(url: str) -> ImageSource | ParquetSource:
    """The source at ``url``, of the kind that its name and content show.

    Raises:
        DataError: ``url`` is missing, empty, a compressed archive, or a file of another kind.
    """
    is_folder = storage.is_local(url) and os.path.isdir(storage.local_path(url))
    suffix = "" if is_folder else PurePosixPath(url).suffix.lower()
    if suffix in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return TableSource(url)
    if suffix == ".tar":
        return TarSource(url)
    if suffix == ".zip":
        return ZipSource(url)
    _refuse_compressed(url, suffix)
    if is_parquet_name(url) and not is_folder:
        return ParquetSource(url)
    place = storage.redact(url)
    if storage.is_local(url) and os.path.isfile(storage.local_path(url)):
        raise DataError(f"{place}: is a file of another kind; give {_KINDS}")
    if cifar := find_cifar(url):
        return cifar
    if mnist := find_mnist(url):
        return mnist
    paths = list_tree(url, LeftOut()) if is_folder or not storage.is_local(url) else iter(())
    first = next(paths, None)
    if first is None:
        found = "has no file" if is_folder or not storage.is_local(url) else "does not exist"
        raise DataError(f"{place}: {found}; give {_KINDS}")
    if is_parquet_name(first[0]) or any(is_parquet_name(path) for path, _ in paths):
        return ParquetSource(url)
    return FolderSource(url)


def _refuse_compressed(url: str, suffix: str) -> None:
    place = storage.redact(url)
    path = PurePosixPath(place)
    is_tar = suffix in _COMPRESSED_TARS or PurePosixPath(path.stem).suffix.lower() == ".tar"
    if suffix in _OTHER_ARCHIVES or suffix in _COMPRESSED | _COMPRESSED_TARS and is_tar:
        folder = path.name.split(".")[0] or "unpacked"
        archive = place if storage.is_local(url) else path.name
        command = f"tar -xf {archive} -C {folder}"
        if suffix in _OTHER_ARCHIVES:
            command = f"7z x {archive} -o{folder}"
        raise DataError(
            f"{place}: a compressed archive cannot be read in place; unpack it and give the "
            f"folder: `mkdir {folder} && {command}`, then --source {folder}"
        )
    if suffix in _COMPRESSED:
        raise DataError(
            f"{place}: a compressed file cannot be read in place; decompress it first, "
            f"and give {path.stem} as --source"
        )
