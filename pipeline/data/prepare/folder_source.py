"""A folder of image files, local or at a URL. Links are followed."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.data.prepare.file_tree import select_images
from pipeline.data.prepare.source_images import (
    MAX_FILE_BYTES,
    LeftOut,
    Listing,
    SourceImage,
    check_size,
    describe,
)
from pipeline.data.prepare.splits import SplitChoice
from pipeline.errors import DataError, StorageError

_MOST_VISITS = 16  # of one folder, through different links


@dataclass(frozen=True)
class FolderSource:
    """``train/<class>/*`` and ``test/<class>/*`` below a folder, or one level deeper."""

    url: str

    def list_images(self, choice: SplitChoice) -> Listing:
        """Every image below the folder."""
        left_out = LeftOut()
        return select_images(list_tree(self.url, left_out), self.url, choice, left_out)

    def read(self, image: SourceImage) -> bytes:
        """The bytes of one file."""
        return read_image_file(image.location)


def list_tree(url: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """Path below ``url`` and place of every file; what is no file goes to ``left_out``."""
    if storage.is_local(url):
        yield from _walk(storage.local_path(url), left_out)
    else:
        for file in storage.list_files(url):
            yield path_below(url, file), file


def path_below(folder: str, file: str) -> str:
    """The path of a listed ``file`` below ``folder``, both URLs; empty if they are the same.

    A listing may write the URL of the folder otherwise: ``s3`` for ``s3a``, one ``/`` for two.
    """
    root, path = (storage.local_path(url).strip("/") for url in (folder, file))
    return path.removeprefix(root).lstrip("/")


def read_image_file(url: str) -> bytes:
    """The bytes of the image file at ``url``.

    Raises:
        SampleError: this file is missing or too large, or this machine cannot read it.
        StorageError: the storage cannot be reached.
    """
    if not storage.is_local(url):
        try:
            data = storage.read_range(url, 0, MAX_FILE_BYTES + 1)
        except StorageError:
            if storage.exists(url):
                raise
            raise SampleError(f"cannot be read ({storage.redact(url)}: no such file)") from None
        if len(data) > MAX_FILE_BYTES:  # only so much is fetched
            check_size(storage.size(url))
        return data
    try:
        path = url if url.startswith("/") else storage.local_path(url)
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SampleError("is not a regular file")
            check_size(status.st_size)
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise SampleError(f"cannot be read ({describe(error)})") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a named pipe does not wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _walk(root: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """Path below ``root`` and URL of every file, sorted; links are followed, but never in a circle.

    A link may lead out of ``root``: data sets are often put together from links.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    visits: Counter[tuple[int, int]] = Counter()
    while pending:
        folder, above = pending.pop()
        path = os.path.join(root, folder) if folder else root
        try:
            status = os.stat(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"{storage.redact(path)}: cannot be listed ({describe(error)}); "
                "make it readable, or move it out of the source"
            ) from error
        inode = (status.st_dev, status.st_ino)
        if inode in above:
            left_out.add("it is a link to a folder that contains it", folder)
            continue
        visits[inode] += 1
        if visits[inode] > _MOST_VISITS:
            left_out.add("it is a link to a folder to which many links lead", folder)
            continue
        if folder and not entries:
            left_out.add("it is a folder without a file", folder)
        folders, place = [], os.path.abspath(path)
        for entry in entries:
            name = f"{folder}/{entry.name}".lstrip("/")
            kind = _kind(entry)
            if kind == "folder":
                folders.append((name, above | {inode}))
            elif kind == "file":
                yield name, f"{place}/{entry.name}"
            else:
                left_out.add(kind, name)
        pending += reversed(folders)


def _kind(entry: os.DirEntry[str]) -> str:
    """``folder``, ``file``, or the reason why the entry is left out."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a circle of links
        return "it is a link to itself"
    return "it is a broken link" if entry.is_symlink() else "it is not a regular file"
