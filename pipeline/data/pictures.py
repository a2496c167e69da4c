"""Where pictures come from: what a folder, an archive or a table says there is, before any is read.

Each kind of source lists ``Picture`` rows (split, class folder, path) and reads one's bytes. An
archive is never unpacked: its members are read in place, so no member can leave a target folder.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from pipeline import storage
from pipeline.data.decoding import IMAGE_SUFFIXES
from pipeline.errors import DataError

SPLITS = ("train", "test")
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "val": "test"}


@dataclass(frozen=True, order=True)
class Picture:
    """One picture of a source: ``path`` is unique within its split and class folder."""

    split: str
    folder: str
    path: str
    location: str = ""

    @property
    def suffix(self) -> str:
        """The lower-case file suffix without its dot."""
        return PurePosixPath(self.path).suffix.lower().removeprefix(".")


class PictureSource(Protocol):
    """A collection of labelled pictures."""

    def list(self) -> list[Picture]:
        """Every picture, in no particular order."""

    def read(self, picture: Picture) -> bytes:
        """The bytes of its image file."""


def open_source(url: str) -> PictureSource:
    """The source at ``url``, of the kind that its name tells.

    Raises:
        DataError: there is nothing, or nothing of a known kind.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix == ".csv":
        return TableSource(url)
    if suffix == ".tar":
        return TarSource(url)
    if not storage.list_files(url):
        raise DataError(f"{storage.redact(url)}: is no source; give a folder, .tar or .csv")
    return FolderSource(url)


class FolderSource:
    """``train/<class>/*`` and ``test/<class>/*`` below a folder."""

    def __init__(self, url: str) -> None:
        self._url = url

    def list(self) -> list[Picture]:
        """Every picture below the folder."""
        files = storage.list_files(self._url)
        root = len(storage.join(_common_root(files, self._url), ""))
        return _require(_sorted_out((url[root:], url) for url in files), self._url)

    def read(self, picture: Picture) -> bytes:
        """The bytes of one file."""
        return storage.read_bytes(picture.location)


class TarSource:
    """A tar of ``train/<class>/*`` and ``test/<class>/*``, perhaps within one more folder."""

    def __init__(self, url: str) -> None:
        self._url = url

    def list(self) -> list[Picture]:
        """Every picture in the archive; links and devices are not followed."""
        try:
            with storage.open_file(self._url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                members = [
                    (member.name, f"{member.offset_data}+{member.size}")
                    for member in tar
                    if member.isreg()
                ]
        except tarfile.TarError as error:
            raise DataError(f"{storage.redact(self._url)}: is not a tar ({error})") from error
        return _require(_sorted_out(members), self._url)

    def read(self, picture: Picture) -> bytes:
        """The bytes of one member."""
        offset, size = map(int, picture.location.split("+"))
        return storage.read_range(self._url, offset, offset + size)


class TableSource:
    """A CSV with the columns path, label and split; paths are relative to the table's folder."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._folder = url.rpartition("/")[0] or "."

    def list(self) -> list[Picture]:
        """One picture per row."""
        place = storage.redact(self._url)
        rows = csv.DictReader(io.StringIO(storage.read_text(self._url)))
        missing = {"path", "label", "split"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(f"{place}: has no column {', '.join(sorted(missing))}")
        return [self._picture(row, f"{place}, line {rows.line_num}") for row in rows]

    def read(self, picture: Picture) -> bytes:
        """The bytes of the file that one row names."""
        return storage.read_bytes(picture.location)

    def _picture(self, row: dict[str, str], place: str) -> Picture:
        path, label, split = (str(row[name] or "") for name in ("path", "label", "split"))
        if split not in _SPLIT_NAMES:
            raise DataError(f"{place}: split {split!r} is none of {', '.join(_SPLIT_NAMES)}")
        if not path or not label:
            raise DataError(f"{place}: path and label must not be empty")
        absolute = "://" in path or path.startswith("/")
        location = path if absolute else storage.join(self._folder, path)
        return Picture(_SPLIT_NAMES[split], label, path, location)


def _sorted_out(files: Iterable[tuple[str, str]]) -> list[Picture]:
    """The (path, location) pairs that are ``[folder/]<split>/<class>/…<image>``."""
    pictures = []
    for path, location in files:
        parts = [part for part in PurePosixPath(path).parts if part != "."]
        if ".." in parts or path.startswith("/"):
            raise DataError(f"{path!r}: leads out of the archive; refuse or repack it")
        for depth in (0, 1):
            if len(parts) >= depth + 3 and parts[depth] in _SPLIT_NAMES:
                split, folder = _SPLIT_NAMES[parts[depth]], parts[depth + 1]
                inner = "/".join(parts[depth + 2 :])
                picture = Picture(split, folder, inner, location)
                if picture.suffix in IMAGE_SUFFIXES and not parts[-1].startswith("."):
                    pictures.append(picture)
                break
    return pictures


def _require(pictures: list[Picture], url: str) -> list[Picture]:
    if not pictures:
        raise DataError(
            f"{storage.redact(url)}: holds no picture; wanted train/<class>/* and test/<class>/*"
        )
    return pictures


def _common_root(files: list[str], url: str) -> str:
    """The listed URLs' form of ``url``: a relative path is listed as an absolute one."""
    if not files or files[0].startswith(url):
        return url
    return "file://" + storage.local_path(url) if storage.is_local(url) else url
