"""Joined data sets: which classes are the same, which images belong to which index."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.index import ShardIndex
from pipeline.data.joining import join_indexes
from pipeline.data.reader import ShardReader
from pipeline.data.repeats import check_repeats
from pipeline.data.samples import read_table
from pipeline.errors import DataError
from tests.shards import draw_arrival, draw_samples, store


def arrival(name: str, classes: list[str], seed: int, **counts: int) -> ShardIndex:
    return store(f"memory://joining/{name}", draw_arrival(classes, seed, **counts), classes=classes)


@pytest.fixture(scope="module")
def first() -> ShardIndex:
    return arrival("first", ["ant", "bee", "cat"], 1)


@pytest.fixture(scope="module")
def second() -> ShardIndex:
    return arrival("second", ["dog", "cat", "ant"], 2, n_train=4, n_test=2)


@pytest.fixture(scope="module")
def joined(first, second) -> ShardIndex:
    return join_indexes([first, second], known_classes="allow")


def test_known_class_keeps_its_number(joined):
    assert joined.class_names == ("ant", "bee", "cat", "dog")
    assert joined.group_labels == ((0, 1, 2), (3, 2, 0))
    assert joined.group_sizes == (3, 1) and joined.known_labels == ((), (2, 0))
    assert joined.count("train") == {0: 9, 1: 5, 2: 9, 3: 4}
    assert joined.count("test", group=1) == {0: 2, 1: 0, 2: 2, 3: 2}


def test_equal_names_can_be_classes_apart(first, second):
    """must number every class of every index, as of benchmarks that share a name"""
    joined = join_indexes([first, second], known_classes="apart")
    assert joined.class_names == ("ant", "bee", "cat", "dog", "cat", "ant")
    assert joined.group_labels == ((0, 1, 2), (3, 4, 5))
    assert joined.known_labels == ((), ())
    assert joined.count("train") == {0: 5, 1: 5, 2: 5, 3: 4, 4: 4, 5: 4}
    assert {key.split("-")[0] for key in joined.select("train", [4]).keys} == {"cat/2"}
    with pytest.raises(DataError, match=r"'cat' is in more than one index; .*known_classes=apart"):
        join_indexes([first, second])


def test_images_are_selected_by_index(joined):
    both = joined.select("train", [2])
    one, other = (joined.select("train", [2], groups=[group]) for group in (0, 1))
    assert {key.split("-")[0] for key in other.keys} == {"cat/2"}
    assert [*both.keys] == [*one.keys, *other.keys] and len(other) == 4
    assert joined.digest([2], group=0) != joined.digest([2]) != joined.digest([2], group=1)


def test_stored_label_is_that_of_the_shard(joined, second):
    """must hold for a class whose number differs in the joined index: samples are checked by it"""
    selection = joined.select("train", [0, 2, 3], groups=[1])
    reader, chosen = ShardReader(joined), selection.take(np.arange(len(selection)))
    stored = {
        chosen.keys[row].split("/")[0]: reader.stored_label(chosen, row)
        for row in range(len(chosen))
    }
    assert stored == {name: label for label, name in enumerate(second.class_names)}


def test_appending_changes_nothing_before(first, second, joined):
    third = arrival("third", ["bee"], 3)
    longer = join_indexes([first, second, third], known_classes="allow")
    assert longer.group_sizes == (3, 1, 0) and longer.known_labels == ((), (2, 0), (1,))
    assert longer.group_labels[:2] == joined.group_labels
    for group, labels in enumerate(joined.group_labels):
        assert longer.digest(labels, group=group) == joined.digest(labels, group=group)


def test_class_without_images_in_a_later_index_is_not_one_of_its_classes(first):
    empty = store("memory://joining/empty", draw_arrival(["cat"], 4), classes=["cat", "bee"])
    joined = join_indexes([first, empty], known_classes="allow")
    assert joined.known_labels == ((), (2,)) and joined.group_sizes == (3, 0)


def test_known_class_is_refused_without_the_setting(first, second):
    words = "joining/second: class 'cat' is in more than one index; set tasks.known_classes=allow"
    with pytest.raises(DataError, match=words):
        join_indexes([first, second])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"class_folders": ("dog", "n02", "ant")},
            "class 'cat' has the folder 'n02', and an earlier index has class 'cat' with the "
            "folder 'cat'; the same class must have the same name and folder",
        ),
        (
            {"class_names": ("dog", "kitten", "ant")},
            "class 'kitten' has the folder 'cat', and an earlier index has class 'cat' with",
        ),
        ({"class_names": ("dog", "dog", "ant")}, "two classes are called 'dog'"),
    ],
)
def test_same_class_has_one_name_and_one_folder(first, second, changes, words):
    with pytest.raises(DataError, match=f"joining/second: {words}"):
        join_indexes([first, replace(second, **changes)], known_classes="allow")


def test_image_of_two_indexes_is_refused(first):
    """must be found by its bytes: another image of the same name is no repeat"""
    samples = draw_arrival(["cat"], 5)
    again = next(s for s in draw_arrival(["ant", "bee", "cat"], 1) if s.key == "cat/1-002")
    store_again = [replace(again, label=0), *samples]
    index = store("memory://joining/again", store_again, classes=["cat"])
    joined = join_indexes([first, index], known_classes="allow")
    words = "joining/again: the train image cat/1-002 is in memory://joining/first too"
    with pytest.raises(DataError, match=words):
        check_repeats(joined, n_groups=2)
    check_repeats(joined, n_groups=1)
    other = store(
        "memory://joining/again", store_again, classes=["cat"],
        damaged={again.key: b"another image of the same name"},
    )  # fmt: skip
    check_repeats(join_indexes([first, other], known_classes="allow"), n_groups=2)


@pytest.mark.parametrize("first_split", ["train", "test"])
def test_image_of_two_indexes_is_refused_beside_a_copy_of_it(first_split):
    """must compare it with every image of the same bytes, not with the first of them"""
    image = next(s for s in draw_samples() if s.key == "ant/003")
    copy = replace(image, key="ant/002", split=first_split)
    pair = sorted([image, copy], key=lambda s: (s.split == "test", s.key))
    first = store("memory://joining/copied", pair, classes=["ant"])
    second = store("memory://joining/repeated", [image], classes=["ant"])
    joined = join_indexes([first, second], known_classes="allow")
    with pytest.raises(DataError, match="repeated: the train image ant/003 is in memory://joining"):
        check_repeats(joined, n_groups=2)


@pytest.mark.parametrize(
    ("split", "key", "words"),
    [
        ("train", "cat/new", "1 images are copies of an image of another index"),
        ("test", "cat/1-002", "1 images have the same bytes as an image of the other split"),
    ],
)
def test_copies_in_two_indexes_give_a_warning(first, split, key, words, caplog):
    again = next(s for s in draw_arrival(["ant", "bee", "cat"], 1) if s.key == "cat/1-002")
    copy = replace(again, label=0, split=split, key=key)
    samples = sorted([copy, *draw_arrival(["cat"], 6)], key=lambda s: (s.split == "test", s.key))
    index = store(f"memory://joining/copies-{split}", samples, classes=["cat"])
    joined = join_indexes([first, index], known_classes="allow")
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        check_repeats(joined, n_groups=2)
    (record,) = caplog.records
    assert record.getMessage().startswith(words) and "cat/1-002" in record.getMessage()


def test_closed_split_is_not_read(joined, monkeypatch):
    read = []
    monkeypatch.setattr(
        "pipeline.data.repeats.read_table",
        lambda shard: read.append(shard.table_url) or read_table(shard),
    )
    check_repeats(joined.with_closed("test"), n_groups=2)
    assert read and not any("test" in url for url in read)
