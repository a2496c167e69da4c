"""The index addresses every sample once; an impossible index is refused."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import replace

import numpy as np
import pytest

from pipeline import storage
from pipeline.data.index import INDEX_NAME, format_index, parse_index, read_index
from pipeline.data.samples import read_table
from pipeline.errors import DataError, StorageError
from tests.shards import CLASSES, TEST, TRAIN, draw_samples, overwrite_byte, store


@pytest.fixture(scope="module")
def url():
    place = f"memory://{uuid.uuid4().hex}"
    store(place, draw_samples())
    return place


def test_index_is_read_as_it_was_written(url):
    index = read_index(url)
    assert read_index(storage.join(url, INDEX_NAME)) == index
    again = format_index(index.class_names, index.class_folders, index.shards)
    assert again == storage.read_bytes(storage.join(url, INDEX_NAME))
    assert len(index.shards) > 3
    assert index.count("train") == dict(enumerate(TRAIN))
    assert index.count("test") == dict(enumerate(TEST))


def test_index_of_the_working_folder_is_named_by_its_file_alone(tmp_path, monkeypatch):
    store(str(tmp_path), draw_samples())
    monkeypatch.chdir(tmp_path)
    assert read_index(INDEX_NAME).class_names == read_index(".").class_names
    assert read_index(INDEX_NAME).sha256 == read_index(str(tmp_path)).sha256


def test_selection_has_its_classes_in_canonical_order(url):
    index = read_index(url)
    selection = index.select("train", [3, 0])
    assert len(selection) == TRAIN[0] + TRAIN[3]
    assert np.all(np.diff(selection.sample_S) > 0)
    assert set(selection.label_S.tolist()) == {0, 3}
    assert all(key.startswith(("ant/", "dog/")) for key in selection.keys)
    everything = index.select("train", range(5))
    assert everything.sample_S.tolist() == list(range(sum(TRAIN)))
    rows = np.flatnonzero(np.isin(everything.label_S, [0, 3]))
    assert np.array_equal(everything.sample_S[rows], selection.sample_S)
    test = index.select("test", range(5))
    assert test.sample_S.tolist() == list(range(sum(TRAIN), sum(TRAIN) + sum(TEST)))


def test_task_needs_only_the_bytes_of_its_classes(url):
    index = read_index(url)
    parts = [index.select("train", [label]).bytes for label in range(5)]
    assert sum(parts) == index.select("train", range(5)).bytes
    assert sum(parts) < sum(shard.bytes for shard in index.shards if shard.split == "train")
    assert len(index.select("train", [3]).shards) < len(index.select("train", range(5)).shards)


def test_addresses_match_the_tar(url):
    index = read_index(url)
    samples = index.select("test", range(5)).take(np.arange(sum(TEST)))
    for row, key in enumerate(samples.keys):
        place = storage.join(url, index.shards[samples.shard_S[row]].name)
        start = int(samples.offset_S[row])
        record = storage.read_range(place, start, start + int(samples.size_S[row]))
        assert record[: len(key) + 4] == f"{key}.cls".encode()


def test_validation_is_a_fixed_part_of_train(url):
    index = read_index(url)
    held = index.select("validation", range(5), validation_fraction=0.3)
    fit = index.select("fit", range(5), validation_fraction=0.3)
    assert sorted([*held.sample_S, *fit.sample_S]) == list(range(sum(TRAIN)))
    assert 3 < len(held) < 25
    alone = index.select("validation", [2], validation_fraction=0.3)
    assert set(alone.keys) == {key for key in held.keys if key.startswith("cat/")}
    more = index.select("validation", range(5), validation_fraction=0.6)
    assert set(held.keys) < set(more.keys)


def test_missing_classes_and_samples_are_named(url):
    index = read_index(url)
    with pytest.raises(DataError, match=r"classes 5, 9 are not in the index, which has 5"):
        index.select("train", [1, 9, 5])
    with pytest.raises(DataError, match="no validation sample of classes 0"):
        index.select("validation", [0], validation_fraction=0.0)


def test_table_that_does_not_match_the_index_is_refused(url):
    place = f"memory://{uuid.uuid4().hex}"
    index = store(place, draw_samples())
    overwrite_byte(storage.join(place, index.shards[0].table_name), 9)
    with pytest.raises(DataError, match=r"train-000000.json: its sha256 is not the one"):
        index.select("train", [0]).take(np.arange(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema=99), "has schema 99, this version reads"),
        (lambda content: content.pop("classes"), "is not an index of shards .KeyError"),
        (lambda content: content["shards"][0].update(name="../../etc/x.tar"), "leaves the folder"),
        (lambda content: content["shards"][0].update(split="dev"), "split 'dev'"),
        (lambda content: content["classes"].pop(), f"contains classes {len(CLASSES) - 1}"),
        (lambda content: content["shards"][0].update(samples=1), "do not add up"),
        (lambda content: content["shards"][0].update(samples=10**30), "is not a count"),
        (lambda content: content["shards"][0].update(bytes=-1), "'-1' is not a count"),
        (lambda content: content["shards"][0].update(bytes=9.0), "'9.0' is not a count"),
        (lambda content: content["shards"][0].update(name="a\\..\\b.tar"), "leaves the folder"),
        (lambda content: content["shards"][0].update(name="index"), "does not end in .tar"),
        (lambda content: content["shards"][0]["segments"][0].__setitem__(3, 10**9), "ends after"),
        (lambda content: content["shards"][0]["segments"][0].__setitem__(4, "../x"), "a sha256"),
        (lambda content: content["shards"].append(content["shards"][0]), "lists a shard twice"),
        (lambda content: content["classes"][0].update(name=None), "'None' is not text"),
        (lambda content: content.update(orientation="up"), "orientation is 'up', not"),
        (lambda content: content.update(shards=5), "is not an index of shards .TypeError"),
    ],
)
def test_impossible_index_is_refused(url, change, message):
    content = json.loads(storage.read_bytes(storage.join(url, INDEX_NAME)))
    change(content)
    with pytest.raises(DataError, match=message):
        parse_index(url, json.dumps(content).encode())


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "[" * 100_000, '{"schema": ' + "9" * 5000])
def test_text_that_is_no_index_is_refused(url, text):
    with pytest.raises(DataError, match="is not an index of shards"):
        parse_index(url, text.encode())


def test_orientation_of_images_is_kept_if_it_is_recorded(url):
    index = read_index(url)
    parts = (index.class_names, index.class_folders, index.shards)
    assert index.orientation is None
    assert parse_index(url, format_index(*parts, "applied")).orientation == "applied"
    assert b"orientation" not in format_index(*parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.pop("key"), "is not the table of a shard .KeyError"),
        (lambda table: table["key"].pop(), "does not list"),
        (lambda table: table["key"].__setitem__(0, 7), "a key is not text"),
        (lambda table: table["offset"].__setitem__(0, -1), "an address is not a count"),
        (lambda table: table["size"].__setitem__(0, 10**30), "OverflowError"),
        (lambda table: table["size"].__setitem__(0, 1 << 50), "lists a sample beyond the"),
        (lambda table: table["offset"].__setitem__(0, (1 << 63) - 1), "lists a sample beyond the"),
        (lambda table: table["crc32"].__setitem__(0, None), "an address is not a count"),
        (lambda table: table["image_sha256"].__setitem__(0, "zz"), "ValueError"),
    ],
)
def test_table_with_impossible_content_is_refused(tmp_path, change, words):
    """must hold though its hash is right: an attacker may have written both"""
    index = store(str(tmp_path), draw_samples())
    shard = index.shards[0]
    table = json.loads(storage.read_bytes(shard.table_url))
    change(table)
    data = json.dumps(table).encode()
    storage.write_atomically(shard.table_url, data)
    with pytest.raises(DataError, match=words):
        read_table(replace(shard, table_sha256=hashlib.sha256(data).hexdigest()))


def test_folder_without_an_index_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"index.json: there is no such file"):
        read_index(str(tmp_path))


def test_class_names_are_those_that_were_stored(url):
    assert read_index(url).class_names == CLASSES
