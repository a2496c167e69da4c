"""The list of a data set's images, with class number and key, in the order of storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from pipeline import storage
from pipeline.data.prepare.folder_sources import SPLITS, SourceImage
from pipeline.errors import DataError

_LONGEST_KEY = 90  # the limit of a tar header, less the suffix


@dataclass(frozen=True)
class Row:
    """One image with its place in the data set."""

    image: SourceImage
    label: int
    key: str


def read_classes(
    names_url: str | None, images: Iterable[SourceImage]
) -> tuple[list[str], list[str]]:
    """Readable names and folders of the classes, in the order of the index.

    ``names_url`` is a JSON list of ``{"name", "folder"}``; without it folders are sorted, and a
    name is that of its folder with spaces for underscores.

    Raises:
        StorageError: the list cannot be read.
        DataError: the list has another form, or other folders than the images.
    """
    found = sorted({image.folder for image in images})
    if names_url is None:
        return [folder.replace("_", " ") for folder in found], found
    place = storage.redact(names_url)
    try:
        entries = json.loads(storage.read_text(names_url))
        names = [str(entry["name"]) for entry in entries]
        folders = [str(entry["folder"]) for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{place}: is not a JSON list of {{"name": …, "folder": …}}') from None
    if len(set(folders)) != len(folders):
        raise DataError(f"{place}: lists a folder twice")
    unknown, absent = set(found) - set(folders), set(folders) - set(found)
    if unknown:
        raise DataError(f"{place}: does not list class {min(unknown)!r}, which the source has")
    if absent:
        raise DataError(f"{place}: lists class {min(absent)!r}, which the source does not have")
    return names, folders


def sort_rows(images: Iterable[SourceImage], folders: Sequence[str]) -> list[Row]:
    """Every image, sorted by split, class and key; keys are unique within a split.

    Raises:
        DataError: an image is listed twice.
    """
    labels = {folder: label for label, folder in enumerate(folders)}
    rows: dict[tuple[str, str], Row] = {}
    for image in sorted(images):
        key = _key(image, with_suffix=False)
        if (image.split, key) in rows:  # a.jpg beside a.png
            key = _key(image, with_suffix=True)
        if (image.split, key) in rows:
            raise DataError(f"{image} is listed twice in the source; list it once")
        rows[image.split, key] = Row(image, labels[image.folder], key)
    return sorted(rows.values(), key=lambda r: (SPLITS.index(r.image.split), r.label, r.key))


def _key(image: SourceImage, *, with_suffix: bool) -> str:
    """A name that every tar tool keeps; without dots, since WebDataset ends a key at the first."""
    path = image.path if with_suffix else str(PurePosixPath(image.path).with_suffix(""))
    key = quote(f"{image.folder}/{path.lstrip('/')}").replace(".", "%2E")
    if len(key) > _LONGEST_KEY:
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        key = f"{key[: _LONGEST_KEY - 17]}-{digest}"
    return key
