"""The image files that paths name: files, folders, archives, patterns, here or at a URL."""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pipeline import storage
from pipeline.data.prepare.archive_sources import TarSource, ZipSource
from pipeline.data.prepare.file_tree import IMAGE_SUFFIXES, keep_images
from pipeline.data.prepare.folder_source import list_tree, path_below, read_image_file
from pipeline.data.prepare.source_images import LeftOut
from pipeline.errors import DataError, StorageError

_TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_WEB = ("http://", "https://")  # a question mark in such a URL starts its query


@dataclass(frozen=True)
class ImageFile:
    """An image file; ``name`` is its path as the user wrote it, with the path below a folder."""

    name: str
    location: str  # absolute path, URL, or place in the archive
    archive: TarSource | ZipSource | None = None

    @property
    def folder(self) -> str:
        """The name of the folder that holds the file; empty if there is none."""
        return posixpath.basename(posixpath.dirname(self.name if self.archive else self.location))

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            SampleError: this file is missing, too large or damaged.
            StorageError: the storage cannot be reached.
        """
        if self.archive:
            return self.archive.read_member(self.location)
        return read_image_file(self.location)


@dataclass
class FoundImages:
    """The images of some paths, each once, and an account of everything else."""

    images: list[ImageFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # a sentence for each path without an image
    left_out: LeftOut = field(default_factory=LeftOut)
    n_repeated: int = 0  # images that were named before


def find_images(paths: Iterable[str]) -> FoundImages:
    """The images that ``paths`` name, in their order.

    A file that is named is an image whatever its name. In folders and in archives (``.tar``,
    ``.zip``) the suffix decides. ``*``, ``?``, ``[…]`` and ``**`` are patterns, unless a file has
    this very name.
    """
    found = FoundImages()
    seen = set()
    for path in paths:
        try:
            images = [each for one in _matches(path) for each in _images_of(one, found.left_out)]
        except (DataError, StorageError) as error:
            found.problems.append(str(error))
            continue
        if not images:
            found.problems.append(f"{storage.redact(path)}: contains no image")
        for image in images:
            key = (image.archive, image.location)
            found.n_repeated += key in seen
            if key not in seen:
                seen.add(key)
                found.images.append(image)
    return found


def place_of(path: str) -> str:
    """The absolute path of a local file; a URL as it is."""
    return os.path.abspath(storage.local_path(path)) if storage.is_local(path) else path


def _matches(path: str) -> list[str]:
    """The paths that a pattern names, sorted; ``path`` itself if it is none.

    Raises:
        DataError: there is no such path, or ``path`` is empty, as an unset variable of a shell is.
    """
    if not path:
        raise DataError("an empty path names no image; give . for the working folder")
    if not glob.has_magic(path) or path.startswith(_WEB):
        return [path]
    if storage.is_local(path):
        if os.path.lexists(path):
            return [path]
        found = sorted(glob.glob(path, recursive=True))
    else:
        if storage.exists(path):
            return [path]
        parts = path.split("/")
        first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        root = "/".join(parts[:first])
        files = [(path_below(root, file), file) for file in storage.list_files(root)]
        found = [file for below, file in files if _fits(below.split("/"), parts[first:])]
    if not found:
        raise DataError(f"{storage.redact(path)}: no file has a name of this form")
    return found


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether each part of a path fits its pattern; ``**`` fits any number of parts."""
    if not patterns or (not parts and patterns[0] != "**"):
        return not parts and not patterns
    if patterns[0] == "**":
        return _fits(parts, patterns[1:]) or (bool(parts) and _fits(parts[1:], patterns))
    return fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])


def _images_of(path: str, left_out: LeftOut) -> Iterator[ImageFile]:
    """The images of one file, folder or archive."""
    is_local, lower = storage.is_local(path), path.lower()
    is_folder = is_local and os.path.isdir(storage.local_path(path))
    if not is_folder and lower.endswith((*_TARS, ".zip")):
        place = place_of(path)
        archive = ZipSource(place) if lower.endswith(".zip") else TarSource(place)
        for below, location in keep_images(archive.list_members(left_out), left_out):
            yield ImageFile(f"{path}/{below}", location, archive)
        return
    files: list[tuple[str, str]] = []
    if is_folder:
        files = list(list_tree(path, left_out))
    elif not is_local and lower.rpartition(".")[2] not in IMAGE_SUFFIXES:
        if not path.startswith(_WEB):
            files = [(path_below(path, file), file) for file in storage.list_files(path)]
        is_folder = any(below for below, _ in files)
    if not is_folder:
        yield ImageFile(path, place_of(path))
    for below, location in keep_images(files, left_out) if is_folder else ():
        yield ImageFile(storage.join(path, below), location)
