"""Archives of image files, read in place: nothing is unpacked, so no member can leave a folder."""

from __future__ import annotations

import posixpath
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.data.prepare.cifar_source import refuse_archived_cifar
from pipeline.data.prepare.file_tree import select_images
from pipeline.data.prepare.source_images import (
    LeftOut,
    Listing,
    SourceImage,
    check_size,
    damage_named,
    file_errors_named,
    printable,
)
from pipeline.data.prepare.splits import SplitChoice
from pipeline.errors import DataError

_BLOCK = 512
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_OTHER_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz"}
_PIECE = 1 << 16  # bytes that are decompressed at once
_ENCRYPTED = 1  # flag of a zip member
_MADE_BY_WINDOWS = 0


@dataclass(frozen=True)
class TarSource:
    """A plain tar of a folder with the form of ``FolderSource``."""

    url: str

    def list_images(self, choice: SplitChoice) -> Listing:
        """Every image in the archive; links to its other members are followed."""
        left_out = LeftOut()
        files = self.list_members(left_out)
        refuse_archived_cifar((path for path, _ in files), self.url)
        return select_images(files, self.url, choice, left_out)

    def list_members(self, left_out: LeftOut) -> list[tuple[str, str]]:
        """Path and place of every file; what is no file goes to ``left_out``.

        Raises:
            DataError: this is not a complete plain tar.
        """
        remedy = "copy or download it again; if it is compressed, decompress it first"
        with file_errors_named(self.url, f"it is not a complete plain tar; {remedy}"):
            with storage.open_file(self.url) as file:
                members = list(_tar_members(file, self.url))
        return [
            (member.name, f"{target.offset_data}+{target.size}")
            for member, target in _resolved(members, left_out)
        ]

    def read(self, image: SourceImage) -> bytes:
        """The bytes of one member."""
        return self.read_member(image.location)

    def read_member(self, location: str) -> bytes:
        """The bytes at a place of :meth:`list_members`."""
        offset, size = map(int, location.split("+"))
        check_size(size)
        return storage.read_range(self.url, offset, offset + size)


@dataclass(frozen=True)
class ZipSource:
    """A zip of a folder with the form of ``FolderSource``."""

    url: str

    def list_images(self, choice: SplitChoice) -> Listing:
        """Every image in the archive."""
        left_out = LeftOut()
        files = self.list_members(left_out)
        refuse_archived_cifar((path for path, _ in files), self.url)
        listing = select_images(files, self.url, choice, left_out)
        self.refuse_other_methods(image.location for image in listing.images)
        return listing

    def refuse_other_methods(self, locations: Iterable[str]) -> None:
        """Return if the members at ``locations`` can be read with bounded memory.

        Raises:
            DataError: one is compressed with another method.
        """
        for location in locations:
            method = _open_zip(self.url).getinfo(location).compress_type
            if method not in _METHODS:
                name = _OTHER_METHODS.get(method, f"method {method}")
                raise DataError(
                    f"{storage.redact(self.url)}: {printable(location)} is compressed with "
                    f"{name}, which cannot be read with bounded memory; "
                    "unpack the zip and give the folder"
                )

    def list_members(self, left_out: LeftOut) -> list[tuple[str, str]]:
        """Path and name of every file; a link goes to ``left_out``.

        Raises:
            DataError: this is not a complete zip.
        """
        files = []
        with file_errors_named(self.url, "it is not a complete zip; copy or download it again"):
            for entry in _open_zip(self.url).infolist():
                if entry.is_dir():
                    continue
                if (entry.external_attr >> 16) & 0o170000 == 0o120000:
                    left_out.add("it is a link in a zip", entry.filename)
                else:
                    files.append((_path_of(entry), entry.filename))
        return files

    def read(self, image: SourceImage) -> bytes:
        """The bytes of one member."""
        return self.read_member(image.location)

    def read_member(self, location: str) -> bytes:
        """The bytes of the member of a name."""
        archive = _open_zip(self.url)
        with damage_named():
            entry = archive.getinfo(location)
            check_size(entry.file_size)
            if entry.flag_bits & _ENCRYPTED:
                raise SampleError("is encrypted; unpack the zip, and give the folder")
            # In pieces: a member may contain far more than it claims.
            with archive.open(entry) as member:
                return b"".join(iter(lambda: member.read(_PIECE), b""))


def _path_of(entry: zipfile.ZipInfo) -> str:
    """The path of a zip member; old tools of Windows write it with backslashes."""
    if entry.create_system == _MADE_BY_WINDOWS:
        return entry.filename.replace("\\", "/")
    return entry.filename


def _tar_members(file: IO[bytes], url: str) -> Iterator[tarfile.TarInfo]:
    """The members of a tar up to its end mark.

    Raises:
        DataError: the tar ends before its end mark, or its headers lead back.
    """
    last = -1
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.offset <= last or member.size < 0:
                raise DataError(f"{storage.redact(url)}: a header leads back; do not trust it")
            last = member.offset
            yield member
        end = tar.offset
    file.seek(end)
    # tarfile also ends at a damaged header, and would leave the members after it out.
    if file.read(_BLOCK).strip(b"\0") or file.tell() < end + _BLOCK:
        raise DataError(
            f"{storage.redact(url)}: is damaged or cut off at byte {end:,}, after the member "
            f"{printable(member.name) if last >= 0 else 'none'!r}; copy or download it again"
        )


def _resolved(
    members: list[tarfile.TarInfo], left_out: LeftOut
) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """Each file with the member that has its bytes, which is another one if it is a link."""
    files = {posixpath.normpath(m.name): m for m in members if m.isreg() and m.sparse is None}
    for member in members:
        if member.isdir():
            continue
        target: tarfile.TarInfo | None = member
        if member.islnk():
            target = files.get(posixpath.normpath(member.linkname))
        elif member.issym():
            folder = posixpath.dirname(member.name)
            target = files.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        elif not member.isreg() or member.sparse is not None:
            left_out.add("it is not a regular file", member.name)
            continue
        if target is None:
            left_out.add("it is a link to no file of the archive", member.name)
        else:
            yield member, target


@lru_cache(maxsize=2)
def _open_zip(url: str) -> zipfile.ZipFile:
    """One handle per process: a large archive needs seconds to read its table of contents."""
    return zipfile.ZipFile(storage.open_file(url))
