"""A source as a benchmark of the catalogue: its classes, the split that is meant, its counts."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.catalogue.entry import Benchmark, Split, read_benchmark
from pipeline.data.membership import Membership, hash_membership
from pipeline.data.prepare.archive_sources import TarSource, ZipSource
from pipeline.data.prepare.file_tree import keep_images
from pipeline.data.prepare.folder_source import FolderSource
from pipeline.data.prepare.list_layout import Tree, open_tree, read_lists
from pipeline.data.prepare.listing import is_text
from pipeline.data.prepare.parquet_source import ParquetSource
from pipeline.data.prepare.source_images import (
    ImageSource,
    LeftOut,
    Listing,
    SourceImage,
    printable,
)
from pipeline.data.prepare.splits import SPLITS, SplitChoice
from pipeline.errors import ConfigError, DataError
from pipeline.text import did_you_mean

_NOT_PINNED = "the list of the split does not name it"
_FORM = '{"train": [paths], "test": [paths]}'


@dataclass(frozen=True)
class BenchmarkChoice:
    """The options about a benchmark; ``split`` is a name of the catalogue or a JSON file."""

    name: str
    split: str | None = None
    other_counts: bool = False  # images or classes may be more or fewer than expected


def list_images(
    source: ImageSource | ParquetSource,
    choice: BenchmarkChoice | None,
    splits: SplitChoice,
    url: str,
) -> Listing:
    """The images of ``source`` at ``url``; of a benchmark, with its classes and in its split.

    Raises:
        PipelineError: the source has another class or other counts, or the split is not clear.
    """
    if choice is None:
        return source.list_images(splits)
    entry, place = read_benchmark(choice.name), storage.redact(url)
    listing, name = _in_splits(source, choice, entry, splits, place)
    listing = _with_classes(listing, choice.name, entry, place)
    digest = hash_membership((i.split, i.folder, i.path) for i in listing.images)
    problems = list(_problems(listing, entry, entry.splits.get(name), digest))
    if problems and not choice.other_counts:
        raise DataError(
            f"{place}: is not {choice.name}, split {name!r}: {'; '.join(problems)}; get it from "
            f"{entry.url}, choose another split, or continue with --allow-other-counts"
        )
    if problems and name in entry.splits:  # published results are on other images
        name = f"{name}, other counts"
    found = f"{choice.name}, split {name!r}: membership sha256 {digest}"
    notes = (*listing.notes, found, *(f"not as in the catalogue: {text}" for text in problems))
    return replace(listing, notes=notes, membership=Membership(choice.name, name, digest))


def _in_splits(
    source: ImageSource | ParquetSource,
    choice: BenchmarkChoice,
    entry: Benchmark,
    splits: SplitChoice,
    place: str,
) -> tuple[Listing, str]:
    """The images in the split that is meant, with the class folders of the source; its name."""
    pinned = None
    if choice.split is not None and choice.split not in entry.splits:
        pinned = _read_split(choice.split, entry)
    is_pinned = pinned is not None
    is_listed = is_pinned or choice.split in (None, _split_of_lists(entry))
    is_chosen = splits.chosen is not None or splits.test_fraction > 0
    lists = entry.lists if is_listed and not is_chosen else None
    tree = listing = None
    if (is_pinned or lists) and isinstance(source, FolderSource | TarSource | ZipSource):
        tree = open_tree(source)
        account = LeftOut() if is_pinned else tree.left_out  # a split file counts anew
        listing = read_lists(lists, replace(tree, left_out=account)) if lists else None
    name = _split_name(choice, entry, splits, by_lists=listing is not None)
    if pinned is None:
        return listing or source.list_images(splits), name
    if tree is None:
        raise DataError(f"{place}: --split FILE needs a folder, .tar or .zip of image files")
    return _pin(_all_images(tree, listing, entry), pinned, place), name


def _split_of_lists(entry: Benchmark) -> str | None:
    return next((name for name, split in entry.splits.items() if split.lists), None)


def _split_name(
    choice: BenchmarkChoice, entry: Benchmark, splits: SplitChoice, by_lists: bool
) -> str:
    """The name of the split that the index records.

    Raises:
        ConfigError: the benchmark has several, and none is chosen.
    """
    if choice.split in entry.splits:
        return str(choice.split)
    if choice.split is not None:
        return PurePosixPath(choice.split).stem
    if splits.test_fraction:
        return f"drawn: {splits.test_fraction} with seed {splits.seed}"
    if by_lists:
        return str(_split_of_lists(entry))
    if len(entry.splits) == 1:
        return next(iter(entry.splits))
    raise ConfigError(
        f"{choice.name} has several splits: {', '.join(entry.splits)}; choose with --split NAME, "
        f"or give its list with --split FILE. `tppt benchmarks {choice.name}` describes them"
    )


def _read_split(url: str, entry: Benchmark) -> dict[str, str]:
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
        if path in pinned:
            raise DataError(f"{place}: lists {printable(path)!r} twice; list each image once")
        pinned[path] = split
    return pinned


def _all_images(tree: Tree, listing: Listing | None, entry: Benchmark) -> Listing:
    """Every image of a tree, with the class that a list gives it, or else its folder."""
    left_out, folder_of = tree.left_out, _Finder(entry.classes)
    images = list(listing.images) if listing else []
    known = {image.location for image in images}
    for path, location in keep_images(tree.files, left_out):
        if location in known:
            continue
        *folders, name = path.split("/")
        ends = range(
            len(folders), 0, -1
        )  # the nearest folder; of those that end there, the longest
        spans = [(max(0, end - length), end) for end in ends for length in (3, 2, 1)]
        names = ["/".join(folders[start:end]) for start, end in spans]
        found = next((i for i, folder in enumerate(names) if folder_of(folder)), None)
        if found is None:
            left_out.add("it is not in a class folder", path)
        else:
            inner = "/".join([*folders[spans[found][1] :], name])
            images.append(SourceImage("", names[found], inner, location))
    return Listing(images, left_out)


def _pin(listing: Listing, pinned: Mapping[str, str], place: str) -> Listing:
    """The images that ``pinned`` lists, in its splits; its paths may begin with other folders."""
    by_path = defaultdict(list)
    for image in listing.images:
        by_path[f"{image.folder}/{image.path}"].append(image)
    images, missing, used = [], [], set()
    for path, split in pinned.items():
        key = next((end for end in _ends(path) if end in by_path), None)
        if key is None:
            missing.append(path)
            continue
        if key in used or len(by_path[key]) > 1:
            raise DataError(
                f"{place}: {printable(key)!r} is there twice; give the folder of one data set, and "
                "list each image once"
            )
        used.add(key)
        images.append(replace(by_path[key][0], split=split))
    if missing:
        raise DataError(
            f"{place}: has no image for {len(missing):,} of the {len(pinned):,} paths of the "
            f"split, first {printable(missing[0])!r}; paths end with <class folder>/<file>"
        )
    for key in by_path.keys() - used:
        listing.left_out.add(_NOT_PINNED, key)
    return replace(listing, images=images)


def _ends(path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/".join(parts[start:]) for start in range(len(parts)))


class _Finder:
    """The class folder of the catalogue for a folder or label of a source.

    Case and signs do not matter: owners and toolboxes write ``F-16A/B`` and ``f-16a b``.
    """

    def __init__(self, classes: Mapping[str, str]) -> None:
        self._exact = set(classes)
        self._similar = {_letters(name): folder for folder, name in classes.items()}
        self._similar |= {_letters(folder): folder for folder in classes}

    def __call__(self, folder: str) -> str | None:
        return folder if folder in self._exact else self._similar.get(_letters(folder))


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())


def _with_classes(listing: Listing, name: str, entry: Benchmark, place: str) -> Listing:
    """The images with the class folders of the catalogue.

    Raises:
        DataError: a folder is not a class.
    """
    folder_of, images = _Finder(entry.classes), []
    for image in listing.images:
        folder = folder_of(image.folder)
        if folder is not None:
            images.append(replace(image, folder=folder))
        elif image.folder in entry.ignored:
            listing.left_out.add("its folder is not a class of the benchmark", str(image))
        else:
            raise DataError(
                f"{place}: class {printable(image.folder)!r} is not one of the "
                f"{entry.class_count} of {entry.title}; `tppt benchmarks {name} --classes` lists "
                "them; take the folder out, or rename it"
            )
    present = {image.folder for image in images}
    order = tuple(folder for folder in entry.classes if folder in present)
    return replace(listing, images=images, class_order=order, class_names=entry.classes)


def _problems(
    listing: Listing, entry: Benchmark, split: Split | None, digest: str
) -> Iterator[str]:
    """A text for each count that is not that of the split; of a split of one's own: its classes."""
    n_classes = len(listing.class_order or ())
    expected = entry.class_count if split is None else entry.classes_of(split)
    if n_classes != expected:
        yield f"found {n_classes:,} classes, expected {expected:,}"
    if split is None:
        return
    found = Counter(image.split for image in listing.images)
    for name, count in zip(SPLITS, (split.train, split.test), strict=True):
        if count is not None and found[name] != count:
            yield f"found {found[name]:,} {name} images, expected {count:,}"
    if split.sha256 is not None and split.sha256 != digest:
        yield f"found the membership {digest}, expected {split.sha256}"
