"""Several prepared data sets as one: further classes, or further images of known ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pipeline import storage
from pipeline.data.index import ShardIndex
from pipeline.data.shard import Segments, Shard
from pipeline.errors import DataError

KnownClasses = Literal["refuse", "allow", "apart"]


def join_indexes(
    indexes: Sequence[ShardIndex], *, known_classes: KnownClasses = "refuse"
) -> ShardIndex:
    """One index of all: the numbers of classes and samples continue from one index to the next.

    A class that an earlier index has too, by name and folder, keeps its number there, if
    ``known_classes`` allows it; with ``apart`` it is another class of the same name. Appending a
    further index changes no number of those before it.

    Raises:
        DataError: a class is in two indexes and that is not allowed, or it has another folder or
            name in one of them.
    """
    if len(indexes) == 1:
        return indexes[0]
    folder_of: dict[str, str] = {}
    label_of: dict[tuple[int, str], int] = {}  # by group and name, where equal names are apart
    folders: list[str] = []  # of each label
    shards: list[Shard] = []
    group_labels: list[tuple[int, ...]] = []
    for index in indexes:
        _check_joined(index, folder_of, known_classes)
        group = len(group_labels) if known_classes == "apart" else 0
        for name, folder in zip(index.class_names, index.class_folders, strict=True):
            if label_of.setdefault((group, name), len(folders)) == len(folders):
                folders.append(folder)
        labels = tuple(label_of[group, name] for name in index.class_names)
        shards += [_renumbered(shard, labels, len(group_labels)) for shard in index.shards]
        group_labels.append(labels)
        folder_of |= zip(index.class_names, index.class_folders, strict=True)
    return ShardIndex(
        url=" + ".join(index.url for index in indexes),
        class_names=tuple(name for _, name in label_of),
        class_folders=tuple(folders),
        shards=tuple(shards),
        sha256=hashlib.sha256("".join(index.sha256 for index in indexes).encode()).hexdigest(),
        group_labels=tuple(group_labels),
        memberships=tuple(index.membership for index in indexes),
    )


def _check_joined(
    index: ShardIndex, folder_of: Mapping[str, str], known_classes: KnownClasses
) -> None:
    """Check the classes of a further index against the folders of those before it, by name."""
    place = storage.redact(index.url)
    twice = [name for name, count in Counter(index.class_names).items() if count > 1]
    if twice:
        raise DataError(
            f"{place}: two classes are called {twice[0]!r}; prepare it again with --names"
        )
    name_of = {folder: name for name, folder in folder_of.items()}
    for name, folder in zip(index.class_names, index.class_folders, strict=True):
        if known_classes == "refuse" and name in folder_of:
            raise DataError(
                f"{place}: class {name!r} is in more than one index; set "
                "tasks.known_classes=allow and tasks.appended=one_task to learn more images of "
                "known classes, tasks.known_classes=apart if it is another class of the same name, "
                "or append only new classes"
            )
        if known_classes == "allow":
            before = folder_of.get(name, folder), name_of.get(folder, name)
            if before != (folder, name):
                raise DataError(
                    f"{place}: class {name!r} has the folder {folder!r}, and an earlier index has "
                    f"class {before[1]!r} with the folder {before[0]!r}; the same class must have "
                    "the same name and folder in every index: prepare it again with --names"
                )


def _renumbered(shard: Shard, labels: Sequence[int], group: int) -> Shard:
    """The shard of index number ``group``, whose classes have ``labels`` in the joined index."""
    segments = Segments.of(shard.segments).with_labels(labels)
    return replace(shard, segments=segments, group=group)
