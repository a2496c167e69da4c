"""Who is in a data set to be: each picture with its class number and its key, in stored order."""

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

_LONGEST_KEY = 90  # what a tar header holds, less the suffix


@dataclass(frozen=True)
class Row:
    """One picture with its place in the data set."""

    picture: SourceImage
    label: int
    key: str


def read_classes(
    names_url: str | None, pictures: Iterable[SourceImage]
) -> tuple[list[str], list[str]]:
    """Readable names and folders of the classes, in the order of the index.

    ``names_url`` is a JSON list of ``{"name", "folder"}``; without it folders are sorted, and a
    name is its folder's with spaces.

    Raises:
        StorageError: the list cannot be read.
        DataError: it is not such a list, or its folders are not those of the pictures.
    """
    found = sorted({picture.folder for picture in pictures})
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
        raise DataError(f"{place}: lists class {min(absent)!r}, which the source has not")
    return names, folders


def sort_rows(pictures: Iterable[SourceImage], folders: Sequence[str]) -> list[Row]:
    """Every picture by split, class and key; keys are unique within a split.

    Raises:
        DataError: a picture is listed twice.
    """
    labels = {folder: label for label, folder in enumerate(folders)}
    rows: dict[tuple[str, str], Row] = {}
    for picture in sorted(pictures):
        key = _key(picture, with_suffix=False)
        if (picture.split, key) in rows:  # a.jpg beside a.png
            key = _key(picture, with_suffix=True)
        if (picture.split, key) in rows:
            raise DataError(f"{picture} is listed twice in the source")
        rows[picture.split, key] = Row(picture, labels[picture.folder], key)
    return sorted(rows.values(), key=lambda r: (SPLITS.index(r.picture.split), r.label, r.key))


def _key(picture: SourceImage, *, with_suffix: bool) -> str:
    """A name that every tar tool keeps: WebDataset ends a key at the first dot."""
    path = picture.path if with_suffix else str(PurePosixPath(picture.path).with_suffix(""))
    key = quote(f"{picture.folder}/{path.lstrip('/')}").replace(".", "%2E")
    if len(key) > _LONGEST_KEY:
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        key = f"{key[: _LONGEST_KEY - 17]}-{digest}"
    return key
