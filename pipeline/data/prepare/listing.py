"""The list of a data set's images, with class number and key, in the order of storage."""

from __future__ import annotations

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from pipeline import storage
from pipeline.data.prepare.source_images import SourceImage, printable
from pipeline.data.prepare.splits import SPLITS
from pipeline.errors import DataError

_LONGEST_KEY = 90  # the limit of a tar header, less the suffix
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Row:
    """One image with its place in the data set."""

    image: SourceImage
    label: int
    key: str


def read_classes(
    names_url: str | None,
    images: Iterable[SourceImage],
    class_order: Sequence[str] | None = None,
    class_names: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Readable names and folders of the classes, in the order of the index.

    ``names_url`` is a JSON list of ``{"name", "folder"}``. Without it the order is that of the
    source (``class_order``), or else folders are sorted, whole numbers by value; and a name is that
    in ``class_names``, or else its folder with spaces for underscores.

    Raises:
        StorageError: the list cannot be read.
        DataError: the list has another form, or other folders than the images; or two classes have
            the same name.
    """
    found = sort_folders({image.folder for image in images}, class_order)
    bad = next((folder for folder in found if not is_text(folder)), None)
    if bad is not None:
        raise DataError(
            f"the name of class folder {printable(bad)!r} is not valid UTF-8 text; rename it"
        )
    if names_url is None:
        known = class_names or {}
        names, folders = [known.get(f) or f.replace("_", " ") for f in found], found
        place = "the source"
    else:
        names, folders = _read_names(names_url, found)
        place = storage.redact(names_url)
    _refuse_bad_names(names, folders, place)
    return names, folders


def sort_folders(folders: Iterable[str], class_order: Sequence[str] | None = None) -> list[str]:
    """Class folders in ``class_order``, or sorted: by value if all are whole numbers."""
    found = sorted(folders)
    if class_order is not None:
        return sorted(found, key=list(class_order).index)
    if all(_WHOLE_NUMBER.fullmatch(folder) for folder in found):
        return sorted(found, key=int)
    return found


def _read_names(names_url: str, found: Sequence[str]) -> tuple[list[str], list[str]]:
    place = storage.redact(names_url)
    try:
        entries = json.loads(storage.read_text(names_url).removeprefix("\ufeff"))
        names = [entry["name"] for entry in entries]
        folders = [entry["folder"] for entry in entries]
        if not all(isinstance(text, str) for text in (*names, *folders)):
            raise TypeError("not text")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            f'{place}: is not a JSON list of {{"name": …, "folder": …}}; write it so'
        ) from None
    if len(set(folders)) != len(folders):
        raise DataError(f"{place}: lists a folder twice; list each class once")
    unknown, absent = set(found) - set(folders), set(folders) - set(found)
    if unknown:
        raise DataError(
            f"{place}: does not list class {min(unknown)!r}, which the source has; add it"
        )
    if absent:
        raise DataError(
            f"{place}: lists class {min(absent)!r}, which the source does not have; remove it"
        )
    return names, folders


def _refuse_bad_names(names: Sequence[str], folders: Sequence[str], place: str) -> None:
    """Return if the text tower can tell the class names apart.

    The tokenizer of CLIP ignores case and the number of spaces. Equal names would give equal
    anchors, and one of the two classes would never be predicted.
    """
    known: dict[str, tuple[str, str]] = {}
    for name, folder in zip(names, folders, strict=True):
        text = " ".join(html.unescape(unicodedata.normalize("NFC", name)).lower().split())
        problem = ""
        if not any(map(str.isprintable, text)) or "Cc" in map(unicodedata.category, text):
            problem = f"the name {name!r} of class {folder!r} is blank or cannot be printed"
        elif text in known:
            first, first_folder = known[text]
            problem = (
                f"classes {first_folder!r} and {folder!r} have the same name for the text tower, "
                f"{first!r}" + (f" and {name!r}" if name != first else "")
            )
        if problem:
            raise DataError(f"{place}: {problem}; give other names in a list of names (--names)")
        known[text] = name, folder


def is_text(name: str) -> bool:
    """Whether ``name`` can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def sort_rows(images: Iterable[SourceImage], folders: Sequence[str]) -> list[Row]:
    """Every image, sorted by split, class and key; keys are unique within a split.

    Raises:
        DataError: an image is listed twice.
    """
    labels = {folder: label for label, folder in enumerate(folders)}
    rows: dict[tuple[str, str], Row] = {}
    seen: set[tuple[str, str, str]] = set()
    for image in sorted(images):
        name = (image.split, image.folder, image.path)
        if name in seen:
            raise DataError(f"{image} is listed twice in the source; list it once")
        seen.add(name)
        # a.jpg beside a.png; a/b.jpg of class x beside b.jpg of class x/a
        key = next(key for key in _keys(image) if (image.split, key) not in rows)
        rows[image.split, key] = Row(image, labels[image.folder], key)
    return sorted(rows.values(), key=lambda r: (SPLITS.index(r.image.split), r.label, r.key))


def _keys(image: SourceImage) -> Iterable[str]:
    """Names for an image, in the order of preference."""
    stem = str(PurePosixPath(image.path).with_suffix("")) if image.path else ""
    yield _key(image.folder, stem)
    yield _key(image.folder, image.path)
    yield _key(image.folder, f"{image.path}-{_digest(repr((image.folder, image.path)))}")


def _key(folder: str, path: str) -> str:
    """A name that every tar tool keeps; without dots, since WebDataset ends a key at the first."""
    name = f"{folder}/{path.lstrip('/')}"
    key = quote(name, errors="surrogateescape").replace(".", "%2E")
    if len(key) > _LONGEST_KEY:
        key = f"{key[: _LONGEST_KEY - 17]}-{_digest(key)}"
    return key


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()
