"""Sources of images that are files: folders, archives, tables of paths.

Each source lists ``SourceImage`` rows (split, class folder, path) before it reads any image. An
archive is never unpacked: its members are read in place, so no member can leave a target folder.
Sources are small to pickle; an open file belongs to the process that opened it.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Protocol

from pipeline import storage
from pipeline.data.decoding import IMAGE_SUFFIXES
from pipeline.errors import DataError

SPLITS = ("train", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",
    "valid": "test",
    "validation": "test",
}
MAX_FILE_BYTES = 256 << 20

LAYOUT = "train/<class>/* and test/<class>/*"


@dataclass(frozen=True, order=True)
class SourceImage:
    """One image of a source: ``path`` is unique within its split and class folder."""

    split: str
    folder: str
    path: str
    location: str = ""  # the place of its bytes, for its source

    def __str__(self) -> str:
        return f"{self.split}/{self.folder}/{self.path}"


class ImageSource(Protocol):
    """A collection of labelled images."""

    def list_images(self) -> list[SourceImage]:
        """Every image, in no particular order.

        Raises:
            PipelineError: the source cannot be read, or has another form than its name says.
        """

    def read(self, image: SourceImage) -> bytes:
        """The bytes of its image file."""


@dataclass(frozen=True)
class FolderSource:
    """``train/<class>/*`` and ``test/<class>/*`` below a folder, or one level deeper."""

    url: str

    def list_images(self) -> list[SourceImage]:
        """Every image below the folder."""
        files = storage.list_files(self.url)
        # A relative path is listed as an absolute URL, whose beginning must be cut off.
        root = _listed_form(self.url)
        return _select_images(
            ((file.removeprefix(root).lstrip("/"), file) for file in files), self.url
        )

    def read(self, image: SourceImage) -> bytes:
        """The bytes of one file."""
        return storage.read_bytes(image.location)


@dataclass(frozen=True)
class TarSource:
    """A plain tar of a folder with the form of ``FolderSource``."""

    url: str

    def list_images(self) -> list[SourceImage]:
        """Every image in the archive; links and devices are not followed."""
        place = storage.redact(self.url)
        try:
            with storage.open_file(self.url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                members = [
                    (
                        _member(member.name, member.size, place),
                        f"{member.offset_data}+{member.size}",
                    )
                    for member in tar
                    if member.isreg()
                ]
        except tarfile.TarError as error:
            raise DataError(
                f"{place}: is not a plain tar ({error}); if it is compressed, decompress it first"
            ) from error
        return _select_images(members, self.url)

    def read(self, image: SourceImage) -> bytes:
        """The bytes of one member."""
        offset, size = map(int, image.location.split("+"))
        return storage.read_range(self.url, offset, offset + size)


@dataclass(frozen=True)
class ZipSource:
    """A zip of a folder with the form of ``FolderSource``."""

    url: str

    def list_images(self) -> list[SourceImage]:
        """Every image in the archive."""
        place = storage.redact(self.url)
        try:
            members = [
                (_member(entry.filename, entry.file_size, place), entry.filename)
                for entry in _open_zip(self.url).infolist()
                if not entry.is_dir()
            ]
        except zipfile.BadZipFile as error:
            raise DataError(f"{place}: is not a zip ({error})") from error
        return _select_images(members, self.url)

    def read(self, image: SourceImage) -> bytes:
        """The bytes of one member."""
        try:
            return _open_zip(self.url).read(image.location)
        except (zipfile.BadZipFile, OSError, RuntimeError) as error:  # damaged, or encrypted
            raise DataError(f"{storage.redact(self.url)}: {image.location}: {error}") from error


@dataclass(frozen=True)
class TableSource:
    """A CSV with the columns path, label and split, or a JSONL with those fields.

    Paths are relative to the table's folder.
    """

    url: str

    def list_images(self) -> list[SourceImage]:
        """One image per row."""
        place, text = storage.redact(self.url), storage.read_text(self.url)
        rows = _csv_rows(text, place) if self.url.endswith(".csv") else _json_rows(text, place)
        return [self._image(row, f"{place}, line {line}") for line, row in rows]

    def read(self, image: SourceImage) -> bytes:
        """The bytes of the file that one row names."""
        return storage.read_bytes(image.location)

    def _image(self, row: dict[str, Any], place: str) -> SourceImage:
        missing = [name for name in ("path", "label", "split") if row.get(name) in (None, "")]
        if missing:
            raise DataError(f"{place}: has no {missing[0]}; give path, label and split")
        path, label, split = (str(row[name]) for name in ("path", "label", "split"))
        if split not in SPLIT_NAMES:
            raise DataError(f"{place}: split {split!r} is not one of {', '.join(SPLIT_NAMES)}")
        folder = self.url.rpartition("/")[0] or "."
        absolute = "://" in path or path.startswith("/")
        location = path if absolute else storage.join(folder, path)
        return SourceImage(SPLIT_NAMES[split], label, path, location)


def _csv_rows(text: str, place: str) -> Iterable[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(text))
    missing = {"path", "label", "split"} - set(rows.fieldnames or ())
    if missing:
        raise DataError(f"{place}: has no column {', '.join(sorted(missing))}")
    for row in rows:
        yield rows.line_num, row


def _json_rows(text: str, place: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}, line {number}: is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}, line {number}: is not a JSON object")
        yield number, row


def _select_images(files: Iterable[tuple[str, str]], url: str) -> list[SourceImage]:
    """The images among (path, location) pairs: paths ``[folder/]<split>/<class>/…<image>``."""
    images = []
    for path, location in files:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise DataError(
                f"{storage.redact(url)}: the path of member {path!r} leaves the archive; remove it"
            )
        depth = next((depth for depth in (0, 1) if parts[depth : depth + 1] and
                      parts[depth] in SPLIT_NAMES), None)  # fmt: skip
        suffix = PurePosixPath(path).suffix.lower().removeprefix(".")
        if depth is None or len(parts) < depth + 3 or parts[-1].startswith("."):
            continue
        if suffix in IMAGE_SUFFIXES:
            split, folder, *inner = parts[depth:]
            images.append(SourceImage(SPLIT_NAMES[split], folder, "/".join(inner), location))
    if not images:
        raise DataError(
            f"{storage.redact(url)}: contains no image of the form {LAYOUT}; "
            "rearrange it, or list its images in a CSV with path, label and split"
        )
    return images


def _member(name: str, size: int, place: str) -> str:
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{place}: member {name!r} has {size:,} bytes; an image may have {MAX_FILE_BYTES:,}"
        )
    return name


def _listed_form(url: str) -> str:
    """The beginning of the URLs of the files below ``url`` when they are listed."""
    return "file://" + storage.local_path(url) if storage.is_local(url) else url


@lru_cache(maxsize=2)
def _open_zip(url: str) -> zipfile.ZipFile:
    """One handle per process: a large archive needs seconds to read its table of contents."""
    return zipfile.ZipFile(storage.open_file(url))
