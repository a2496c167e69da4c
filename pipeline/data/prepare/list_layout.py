"""The images that text files of a benchmark's owner name, in any tree of files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.catalogue.entry import Lists
from pipeline.data.prepare.archive_sources import TarSource, ZipSource
from pipeline.data.prepare.cifar_source import refuse_archived_cifar
from pipeline.data.prepare.file_tree import FRAMES, IMAGE_SUFFIXES, has_image, is_video, keep_images
from pipeline.data.prepare.folder_source import FolderSource, list_tree
from pipeline.data.prepare.matlab_file import SUFFIX, matlab_text
from pipeline.data.prepare.source_images import LeftOut, Listing, SourceImage, printable
from pipeline.data.prepare.table_source import decode_text
from pipeline.data.prepare.video_file import check_reader, is_video_file
from pipeline.errors import DataError

TreeSource = FolderSource | TarSource | ZipSource

_LONGEST_LINE = 4096  # characters
_AGAIN = "unpack the archive of its owner again"


@dataclass(frozen=True)
class Tree:
    """The files of a source, pairs of path and location."""

    source: TreeSource
    files: Sequence[tuple[str, str]]
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def place(self) -> str:
        """The URL of the source, without secrets."""
        return storage.redact(self.source.url)

    def find(self, name: str) -> tuple[str, str] | None:
        """The file with the path ``name``, in the source or below any of its folders."""
        found = [file for file in self.files if f"/{file[0]}".endswith(f"/{name}")]
        return min(found, key=lambda file: file[0].count("/"), default=None)

    def text(self, file: tuple[str, str]) -> str:
        """The text in one of its files."""
        path, location = file
        data = self.source.read(SourceImage("", "", path, location))
        place = f"{self.place}: {path}"
        return matlab_text(data, place) if path.endswith(SUFFIX) else decode_text(data, place)


def open_tree(source: TreeSource) -> Tree:
    """The files of a folder or an archive."""
    left_out = LeftOut()
    if isinstance(source, FolderSource):
        return Tree(source, list(list_tree(source.url, left_out)), left_out)
    files = source.list_members(left_out)
    refuse_archived_cifar((path for path, _ in files), source.url)
    if isinstance(source, ZipSource):
        source.refuse_other_methods(location for _, location in files)
    return Tree(source, files, left_out)


def read_lists(forms: Sequence[Lists], tree: Tree) -> tuple[Listing, str | None] | None:
    """The images that the first complete one of ``forms`` names, and its split.

    None if the tree has none of the files.

    Raises:
        DataError: some of the files are missing, or a line has another form or names no image.
    """
    absent = None
    for lists in forms:
        found = {name: tree.find(name) for name in lists.files}
        files = {name: file for name, file in found.items() if file is not None}
        if len(files) == len(found):
            return _read(lists, files, tree), lists.split
        if files and absent is None:
            absent = next(name for name in found if name not in files)
    if absent is not None:
        raise DataError(f"{tree.place}: has no {absent}, beside the other lists; {_AGAIN}")
    return None


def _read(lists: Lists, files: dict[str, tuple[str, str]], tree: Tree) -> Listing:
    texts = {name: tree.text(file) for name, file in files.items()}
    others = [file for file in tree.files if file not in files.values()]
    videos = lists.videos and not has_image(others)
    pool = _Pool(keep_images(others, tree.left_out, videos=videos))
    images, missing = [], []
    for split, path, label, place in _entries(lists, texts, pool, tree.place):
        location = pool.take(path, place)
        if location is None:
            missing.append(f"{printable(path)!r} of {place}")
        else:
            name = PurePosixPath(location[0]).name
            images.append(SourceImage(split, label, name, location[1], is_video_file(name)))
    if missing:
        has_videos = any(is_video(path) for path, _ in tree.files)
        remedy = f"it has videos: {FRAMES}" if has_videos else _AGAIN
        raise DataError(
            f"{tree.place}: has no image for {len(missing):,} lines of its lists, first "
            f"{missing[0]}; {remedy}"
        )
    for path in pool.unused():
        tree.left_out.add("no list of the split names it", path)
    if not videos:
        return Listing(images, tree.left_out)
    check_reader(tree.place)
    note = f"the middle frame of each of {len(images):,} videos is its image"
    return Listing(images, tree.left_out, notes=(note,))


class _Pool:
    """Images by the end of their path, without suffix; each is taken once."""

    def __init__(self, images: Iterable[tuple[str, str]]) -> None:
        self.images = list(images)
        self._by_end: dict[int, dict[str, list[tuple[str, str]]]] = {}
        self._taken: set[str] = set()

    def take(self, path: str, place: str) -> tuple[str, str] | None:
        """The image whose path ends with ``path``; None if there is none.

        Raises:
            DataError: there are several, or it was taken before.
        """
        length = path.count("/") + 1
        if length not in self._by_end:
            ends = self._by_end[length] = defaultdict(list)
            for file in self.images:
                ends["/".join(_stem(file[0]).split("/")[-length:])].append(file)
        found = self._by_end[length].get(_stem(path), [])
        if len(found) > 1 or (found and found[0][0] in self._taken):
            raise DataError(
                f"{place}: {printable(path)!r} stands for several images, or is listed twice; "
                "give the folder of this benchmark alone"
            )
        self._taken.update(file[0] for file in found)
        return found[0] if found else None

    def below(self, folder: str) -> Iterator[tuple[str, str]]:
        """Path and class of the images of ``<folder>/<class>/*``, wherever the folder is."""
        for path, _ in self.images:
            name, slash, _ = f"/{path}".partition(f"/{folder}")[2].partition("/")
            if slash:
                yield path, name

    def unused(self) -> Iterator[str]:
        """The paths of the images that were not taken."""
        yield from (path for path, _ in self.images if path not in self._taken)


def _entries(
    lists: Lists, texts: dict[str, str], pool: _Pool, place: str
) -> Iterator[tuple[str, str, str, str]]:
    """Split, path, label and file of each entry."""

    def matches(name: str, line: re.Pattern[str]) -> Iterator[tuple[int, dict[str, str]]]:
        return _matches(texts[name], line, lists.patterns, f"{place}: {name}")

    def table(name: str | None, line: re.Pattern[str] | None, key: str) -> dict[str, Any]:
        found = matches(name, line) if name is not None and line is not None else ()
        return {groups[key]: groups for _, groups in found}

    tables = {
        "id": table(lists.ids, lists.ids_line, "id"),
        "label": table(lists.names, lists.names_line, "label"),
    }
    for split, names, line in lists.parts:
        for name in names:
            if name.endswith("/"):
                yield from ((split, path, label, name) for path, label in pool.below(name))
                continue
            for number, groups in matches(name, line):
                for key, known in tables.items():
                    if known and groups[key] not in known:
                        unknown = f"an unknown {key} {groups[key]}"
                        raise DataError(f"{place}: {name}, line {number}: has {unknown}; {_AGAIN}")
                    groups |= known[groups[key]] if known else {}
                path = lists.path.format(split=split, line=number, **groups)
                yield split, path, groups.get("name", groups["label"]), name


def _matches(
    text: str, pattern: re.Pattern[str], others: Sequence[re.Pattern[str]], place: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and groups of the lines of ``pattern``; lines of ``others`` are passed over."""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        is_short = len(line) <= _LONGEST_LINE
        if is_short and (found := pattern.fullmatch(line)):
            yield number, found.groupdict()
        elif line and not (is_short and any(other.fullmatch(line) for other in others)):
            raise DataError(f"{place}, line {number}: {printable(line)[:80]!r} has another form")


def _stem(path: str) -> str:
    """The path without the suffix of an image or a video."""
    stem, dot, suffix = path.rpartition(".")
    is_known = suffix.lower() in IMAGE_SUFFIXES or is_video_file(path)
    return stem if dot and is_known else path
