"""The images that text files of a benchmark's owner name, in any tree of files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.catalogue.entry import Lists
from pipeline.data.prepare.archive_sources import TarSource, ZipSource
from pipeline.data.prepare.cifar_source import refuse_archived_cifar
from pipeline.data.prepare.file_tree import IMAGE_SUFFIXES, keep_images
from pipeline.data.prepare.folder_source import FolderSource, list_tree
from pipeline.data.prepare.matlab_file import SUFFIX, matlab_text
from pipeline.data.prepare.source_images import LeftOut, Listing, SourceImage, printable
from pipeline.data.prepare.table_source import decode_text
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


def read_lists(lists: Lists, tree: Tree) -> Listing | None:
    """The images that ``lists`` names; None if the tree has none of the files.

    Raises:
        DataError: some of the files are missing, or a line has another form or names no image.
    """
    named = [name for names in lists.files.values() for name in names if not name.endswith("/")]
    named += [name for name in (lists.ids, lists.names) if name]
    found = {name: tree.find(name) for name in named}
    absent = [name for name, file in found.items() if file is None]
    if len(absent) == len(found):
        return None
    if absent:
        raise DataError(f"{tree.place}: has no {absent[0]}, beside the other lists; {_AGAIN}")
    texts = {name: tree.text(file) for name, file in found.items() if file is not None}
    files = [file for file in tree.files if file not in found.values()]
    pool = _Pool(files, lists.images, tree)
    images, missing = [], []
    for split, path, label, place in _entries(lists, texts, pool, tree.place):
        location = pool.take(path, place)
        if location is None:
            missing.append(f"{printable(path)!r} of {place}")
        else:
            images.append(SourceImage(split, label, PurePosixPath(location[0]).name, location[1]))
    if missing:
        raise DataError(
            f"{tree.place}: has no image for {len(missing):,} lines of its lists, first "
            f"{missing[0]}; {_AGAIN}"
        )
    for path in pool.unused():
        tree.left_out.add("no list of the split names it", path)
    return Listing(images, tree.left_out)


class _Pool:
    """Images by the end of their path, without suffix; each is taken once."""

    def __init__(self, files: Sequence[tuple[str, str]], folder: str | None, tree: Tree) -> None:
        images = list(keep_images(files, tree.left_out))
        if folder is not None:
            images = [file for file in images if f"/{folder}/" in f"/{file[0]}"]
        self.images = images
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

    def unused(self) -> Iterator[str]:
        """The paths of the images that were not taken."""
        yield from (path for path, _ in self.images if path not in self._taken)


def _entries(
    lists: Lists, texts: dict[str, str], pool: _Pool, place: str
) -> Iterator[tuple[str, str, str, str]]:
    """Split, path, label and file of each entry."""
    by_id = _table(texts, lists.ids, lists.ids_line, "id", place)
    by_label = _table(texts, lists.names, lists.names_line, "label", place)
    for split, names in lists.files.items():
        pattern = lists.lines[split]
        other = lists.lines["test" if split == "train" else "train"]
        for name in names:
            if name.endswith("/"):
                yield from _in_folder(split, name, pool)
                continue
            for number, groups in _matches(texts[name], pattern, f"{place}: {name}", other):
                for key, table in (("id", by_id), ("label", by_label)):
                    if table and groups[key] not in table:
                        unknown = f"an unknown {key} {groups[key]}"
                        raise DataError(f"{place}: {name}, line {number}: has {unknown}; {_AGAIN}")
                    groups |= table[groups[key]] if table else {}
                path = lists.path_formats[split].format(line=number, **groups)
                yield split, path, groups.get("name", groups["label"]), name


def _table(
    texts: dict[str, str], name: str | None, line: str | None, key: str, place: str
) -> dict[str, dict[str, str]]:
    """The groups of each line of the file ``name``, by the group ``key``."""
    if name is None or line is None:
        return {}
    lines = _matches(texts[name], re.compile(line), f"{place}: {name}")
    return {groups[key]: groups for _, groups in lines}


def _matches(
    text: str, pattern: re.Pattern[str], place: str, other: re.Pattern[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and groups of the lines of ``pattern``; lines of ``other`` are passed over."""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        is_short = len(line) <= _LONGEST_LINE
        if is_short and (found := pattern.fullmatch(line)):
            yield number, found.groupdict()
        elif line and not (is_short and other and other.fullmatch(line)):
            raise DataError(f"{place}, line {number}: {printable(line)[:80]!r} has another form")


def _in_folder(split: str, folder: str, pool: _Pool) -> Iterator[tuple[str, str, str, str]]:
    """The images of ``<folder>/<class>/*``, at the top of the source or one level below."""
    for path, _ in pool.images:
        parts = path.split("/")
        for depth in (0, 1):
            if parts[depth] + "/" == folder and len(parts) > depth + 2:
                yield split, path, parts[depth + 1], folder
                break


def _stem(path: str) -> str:
    """The path without the suffix of an image."""
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and suffix.lower() in IMAGE_SUFFIXES else path
