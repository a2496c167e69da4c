"""The split of a benchmark that a JSON file lists, such as CoOp's ``split_zhou_*.json``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pipeline import storage
from pipeline.catalogue.entry import Benchmark
from pipeline.data.prepare.file_tree import keep_images
from pipeline.data.prepare.list_layout import Tree, read_lists
from pipeline.data.prepare.listing import is_text
from pipeline.data.prepare.source_images import LeftOut, Listing, SourceImage, printable
from pipeline.data.prepare.splits import SPLITS
from pipeline.errors import ConfigError, DataError
from pipeline.text import did_you_mean

_NOT_PINNED = "the list of the split does not name it"
_FORM = '{"train": [paths], "test": [paths]}'


def read_split_file(url: str, entry: Benchmark) -> dict[str, str]:
    """``train`` or ``test`` for each path that the JSON file at ``url`` lists.

    Raises:
        ConfigError: ``url`` is neither a file nor a name of a split.
        DataError: the file has another form, or lists a path twice.
    """
    place = storage.redact(url)
    if not storage.exists(url):
        remedy = did_you_mean(url, entry.splits)
        raise ConfigError(f"--split {place!r} is no file and no split of the catalogue; {remedy}")
    pinned: dict[str, str] = {}
    try:
        content = json.loads(storage.read_text(url))
        entries = [(split, each) for split in SPLITS for each in content[split]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{place}: is not a JSON object {_FORM}; write it so") from None
    for split, each in entries:
        # CoOp writes [path, class number, class name]
        path = each[0] if isinstance(each, list) and each else each
        if not isinstance(path, str) or not is_text(path):
            raise DataError(f"{place}: {ascii(each)[:80]} is not a path; write {_FORM}")
        path = "/".join(part for part in path.split("/") if part not in ("", "."))
        if path in pinned:
            raise DataError(f"{place}: lists {printable(path)!r} twice; list each image once")
        pinned[path] = split
    return pinned


def pin_images(tree: Tree, entry: Benchmark, pinned: Mapping[str, str]) -> Listing:
    """The images of ``tree`` that ``pinned`` lists, in its splits.

    A listed path is the end of the path of one image; or it ends with the path of the image in the
    tree, or with its ``<class folder>/<file>``.

    Raises:
        DataError: a path stands for no image, or for several, or two paths for one.
    """
    depths = {path.count("/") + 1 for path in pinned}
    path_of = {location: path for path, location in tree.files}
    by_name, by_end = defaultdict(list), defaultdict(list)
    images = list(_class_images(tree, entry))
    for image in images:
        path = path_of[image.location]
        names = {_name(image), path}
        for name in names:
            by_name[name].append(image)
        for end in names.union("/".join(path.split("/")[-depth:]) for depth in depths):
            by_end[end].append(image)
    chosen: dict[SourceImage, str] = {}
    missing = []
    for path, split in pinned.items():
        found = by_end.get(path) or next((by_name[e] for e in _ends(path) if e in by_name), [])
        if not found:
            missing.append(path)
        elif len(found) > 1 or found[0] in chosen:
            raise DataError(
                f"{tree.place}: {printable(_name(found[0]))!r} is there twice; give the folder of "
                "one data set, and list each image once"
            )
        else:
            chosen[found[0]] = split
    if missing:
        raise DataError(
            f"{tree.place}: has no image for {len(missing):,} of the {len(pinned):,} paths of the "
            f"split, first {printable(missing[0])!r}; paths end with <class folder>/<file>"
        )
    for image in images:
        if image not in chosen:
            tree.left_out.add(_NOT_PINNED, path_of[image.location])
    pinned_images = [replace(image, split=split) for image, split in chosen.items()]
    return Listing(pinned_images, tree.left_out)


def _class_images(tree: Tree, entry: Benchmark) -> Iterator[SourceImage]:
    """Every image of a tree, with the class that a list gives it, or else its folder."""
    # Another account: an image that the lists leave out may be in the split.
    lists = read_lists(entry.lists, replace(tree, left_out=LeftOut()))
    listed = {image.location: image for image in lists[0].images} if lists else {}
    for path, location in keep_images(tree.files, tree.left_out):
        image = listed.pop(location, None) or _in_class_folder(path, location, entry)
        if image is None:
            tree.left_out.add("it is not in a class folder", path)
        else:
            yield image


def _in_class_folder(path: str, location: str, entry: Benchmark) -> SourceImage | None:
    """The image in its nearest class folder; of those that end there, the longest."""
    parts = path.split("/")
    for end in range(len(parts) - 1, 0, -1):
        for start in range(max(0, end - 3), end):
            folder = "/".join(parts[start:end])
            if entry.find_class(folder) is not None:
                return SourceImage("", folder, "/".join(parts[end:]), location)
    return None


def _name(image: SourceImage) -> str:
    return f"{image.folder}/{image.path}"


def _ends(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))
