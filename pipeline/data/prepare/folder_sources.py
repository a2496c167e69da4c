"""Where pictures come from: what a folder, an archive or a table says there is, before any is read.

Each kind of source lists ``SourceImage`` rows (split, class folder, path) and reads one's bytes. An
archive is never unpacked: its members are read in place, so no member can leave a target folder.
Sources are small to pickle; what they keep open belongs to the process that opened it.
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
    """One picture of a source: ``path`` is unique within its split and class folder."""

    split: str
    folder: str
    path: str
    location: str = ""  # how its source finds it again

    def __str__(self) -> str:
        return f"{self.split}/{self.folder}/{self.path}"


class ImageSource(Protocol):
    """A collection of labelled pictures."""

    def list(self) -> list[SourceImage]:
        """Every picture, in no particular order.

        Raises:
            PipelineError: the source is not what its name says.
        """

    def read(self, picture: SourceImage) -> bytes:
        """The bytes of its image file."""


@dataclass(frozen=True)
class FolderSource:
    """``train/<class>/*`` and ``test/<class>/*`` below a folder, perhaps within one more folder."""

    url: str

    def list(self) -> list[SourceImage]:
        """Every picture below the folder."""
        files = storage.list_files(self.url)
        # A relative path is listed as an absolute URL: what all files share must be cut off.
        root = _listed_form(self.url)
        return _sorted_out(
            ((file.removeprefix(root).lstrip("/"), file) for file in files), self.url
        )

    def read(self, picture: SourceImage) -> bytes:
        """The bytes of one file."""
        return storage.read_bytes(picture.location)


@dataclass(frozen=True)
class TarSource:
    """A plain tar of a folder as ``FolderSource`` wants it."""

    url: str

    def list(self) -> list[SourceImage]:
        """Every picture in the archive; links and devices are not followed."""
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
        return _sorted_out(members, self.url)

    def read(self, picture: SourceImage) -> bytes:
        """The bytes of one member."""
        offset, size = map(int, picture.location.split("+"))
        return storage.read_range(self.url, offset, offset + size)


@dataclass(frozen=True)
class ZipSource:
    """A zip of a folder as ``FolderSource`` wants it."""

    url: str

    def list(self) -> list[SourceImage]:
        """Every picture in the archive."""
        place = storage.redact(self.url)
        try:
            members = [
                (_member(entry.filename, entry.file_size, place), entry.filename)
                for entry in _open_zip(self.url).infolist()
                if not entry.is_dir()
            ]
        except zipfile.BadZipFile as error:
            raise DataError(f"{place}: is not a zip ({error})") from error
        return _sorted_out(members, self.url)

    def read(self, picture: SourceImage) -> bytes:
        """The bytes of one member."""
        try:
            return _open_zip(self.url).read(picture.location)
        except (zipfile.BadZipFile, OSError, RuntimeError) as error:  # damaged, or encrypted
            raise DataError(f"{storage.redact(self.url)}: {picture.location}: {error}") from error


@dataclass(frozen=True)
class TableSource:
    """A CSV with the columns path, label and split, or a JSONL with those fields.

    Paths are relative to the table's folder.
    """

    url: str

    def list(self) -> list[SourceImage]:
        """One picture per row."""
        place, text = storage.redact(self.url), storage.read_text(self.url)
        rows = _csv_rows(text, place) if self.url.endswith(".csv") else _json_rows(text, place)
        return [self._picture(row, f"{place}, line {line}") for line, row in rows]

    def read(self, picture: SourceImage) -> bytes:
        """The bytes of the file that one row names."""
        return storage.read_bytes(picture.location)

    def _picture(self, row: dict[str, Any], place: str) -> SourceImage:
        missing = [name for name in ("path", "label", "split") if row.get(name) in (None, "")]
        if missing:
            raise DataError(f"{place}: has no {missing[0]}; wanted path, label and split")
        path, label, split = (str(row[name]) for name in ("path", "label", "split"))
        if split not in SPLIT_NAMES:
            raise DataError(f"{place}: split {split!r} is none of {', '.join(SPLIT_NAMES)}")
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


def _sorted_out(files: Iterable[tuple[str, str]], url: str) -> list[SourceImage]:
    """The (path, location) pairs that are ``[folder/]<split>/<class>/…<image>``."""
    pictures = []
    for path, location in files:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise DataError(f"{storage.redact(url)}: member {path!r} leads out of the archive")
        depth = next((depth for depth in (0, 1) if parts[depth : depth + 1] and
                      parts[depth] in SPLIT_NAMES), None)  # fmt: skip
        suffix = PurePosixPath(path).suffix.lower().removeprefix(".")
        if depth is None or len(parts) < depth + 3 or parts[-1].startswith("."):
            continue
        if suffix in IMAGE_SUFFIXES:
            split, folder, *inner = parts[depth:]
            pictures.append(SourceImage(SPLIT_NAMES[split], folder, "/".join(inner), location))
    if not pictures:
        raise DataError(
            f"{storage.redact(url)}: holds no picture as {LAYOUT}; "
            "rearrange it, or list its pictures in a CSV with path, label and split"
        )
    return pictures


def _member(name: str, size: int, place: str) -> str:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{place}: member {name!r} has {size:,} bytes, too many for a picture")
    return name


def _listed_form(url: str) -> str:
    """How the URLs of the files below ``url`` begin when they are listed."""
    return "file://" + storage.local_path(url) if storage.is_local(url) else url


@lru_cache(maxsize=2)
def _open_zip(url: str) -> zipfile.ZipFile:
    """One handle per process: reading the table of contents costs seconds in a large archive."""
    return zipfile.ZipFile(storage.open_file(url))
