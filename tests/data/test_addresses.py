"""The columns of a shard's table give what the table says, and are made once per node."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.data import index as index_module
from pipeline.data.addresses import AddressTable, NodeFiles, pack_draws, pack_table
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.samples import SampleTable
from pipeline.errors import DataError, StorageError
from pipeline.rng import derive_seed
from tests.shards import draw_samples, store


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("shards"))
    store(place, draw_samples())
    return place


def files_at(folder: Path, *, limit_bytes: int = 1 << 20) -> NodeFiles:
    return NodeFiles(folder, limit_bytes=limit_bytes)


def shared(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: int) -> ShardIndex:
    """The index as a large one, whose tables the processes of a node share."""
    monkeypatch.setattr(index_module, "_MANY_SAMPLES", 1)
    return read_index(url).with_node_files(files_at(folder, **options))


def columns(index: ShardIndex) -> list[object]:
    """Every address of the training split, and which samples validation holds out."""
    selection = index.select("train", range(5))
    samples = selection.take(np.arange(len(selection)))
    held = index.select("validation", range(5), validation_fraction=0.3)
    values = [value.tolist() for name, value in vars(samples).items() if name != "keys"]
    return [*values, samples.keys, held.sample_S.tolist(), held.keys]


def test_columns_are_those_of_the_table():
    keys = ("ant/0", "", "über", "a" * 300)
    numbers = np.array([0, 1 << 40, 5, 7]), np.array([1, 2, 3, 4]), np.array([9, 2**32 - 1, 0, 5])
    packed = pack_table(SampleTable(keys, *numbers, np.zeros((4, 32), dtype=np.uint8)))
    table = AddressTable(packed, 4)
    assert tuple(map(table.key, range(4))) == keys == tuple(table.keys)
    for found, expected in zip((table.offset_S, table.size_S, table.crc32_S), numbers, strict=True):
        assert found.tolist() == expected.tolist()


def test_held_out_samples_never_change():
    keys = ["ant/0", "", "über", "it's", 'a "b"', 'it\'s "c"', "new\nline", "\\", "a" * 300]
    draws = np.frombuffer(pack_draws(keys), dtype=np.int64)
    assert draws.tolist() == [derive_seed("validation", key) for key in keys]
    assert derive_seed("validation", "ant/0") == 2374747177114507135
    assert AddressTable(pack_table(SampleTable((), *[np.empty(0, int)] * 4)), 0).keys == []


def test_every_sample_has_the_address_in_its_table(url):
    index = read_index(url)
    for split in ("train", "test"):
        selection = index.select(split, [0, 2, 3])
        samples = selection.take(np.arange(len(selection))[::-1])
        for row in range(len(samples)):
            table = index.table(int(samples.shard_S[row]))
            place = table.keys.index(samples.keys[row])
            segment = index.shards[samples.shard_S[row]].segments[samples.segment_S[row]]
            first = sum(shard.samples for shard in index.shards[: samples.shard_S[row]])
            assert samples.sample_S[row] == first + place
            assert samples.label_S[row] == segment.label
            before = [s.samples for s in index.shards[samples.shard_S[row]].segments]
            assert samples.row_S[row] == place - sum(before[: samples.segment_S[row]])
            for name in ("offset_S", "size_S", "crc32_S"):
                assert getattr(samples, name)[row] == getattr(table, name)[place]


def test_shared_tables_change_nothing(url, tmp_path, monkeypatch):
    expected = columns(read_index(url))
    assert columns(shared(url, tmp_path, monkeypatch)) == expected  # made
    assert list(tmp_path.glob("*.segment"))
    monkeypatch.setattr(index_module, "read_table", None)
    assert columns(shared(url, tmp_path, monkeypatch)) == expected  # mapped


def test_small_data_set_writes_no_file(url, tmp_path):
    columns(read_index(url).with_node_files(files_at(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[8:]]
)
def test_damaged_file_is_made_again(url, tmp_path, monkeypatch, caplog, damage):
    expected = columns(shared(url, tmp_path, monkeypatch))
    for file in tmp_path.glob("*.segment"):
        file.write_bytes(damage(file.read_bytes()))
    assert columns(shared(url, tmp_path, monkeypatch)) == expected
    assert "is damaged; making it again" in caplog.text
    caplog.clear()
    assert columns(shared(url, tmp_path, monkeypatch)) == expected and not caplog.text


def test_without_room_each_process_keeps_its_own(url, tmp_path, monkeypatch, caplog):
    index = shared(url, tmp_path, monkeypatch, limit_bytes=100)
    assert columns(index) == columns(read_index(url))
    assert caplog.text.count("are kept in the memory of each process") == 1


def test_error_of_the_content_is_no_error_of_the_folder(tmp_path, caplog):
    """must be raised at once, and leave the folder in use"""
    files, made = files_at(tmp_path), []

    def fail() -> bytes:
        made.append(1)
        raise StorageError("cannot read the table")

    with pytest.raises(StorageError, match="cannot read the table"):
        files.get("a", fail)
    assert len(made) == 1 and not caplog.text
    assert bytes(files.get("a", lambda: b"content")[:7]) == b"content"
    assert list(tmp_path.glob("a.segment"))


def test_content_is_made_once_for_all(tmp_path):
    made = []

    def make() -> bytes:
        made.append(1)
        time.sleep(0.2)
        return b"content"

    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(bytes(files_at(tmp_path).get("a", make)[:7])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"content"] * 4 and len(made) == 1


def test_closed_split_is_refused_though_another_run_has_shared_it(url, tmp_path, monkeypatch):
    index = shared(url, tmp_path, monkeypatch)
    columns(index)
    test = index.select("test", [0])
    test.take(np.arange(1))
    number = test.shard_numbers[0]
    with pytest.raises(DataError, match="the test split is closed"):
        index.with_closed("test").addresses(number)


def test_tables_are_not_read_before_a_sample_is_taken(url, monkeypatch):
    """must hold so that a start costs nothing per sample"""
    monkeypatch.setattr(index_module, "read_table", None)
    index = read_index(url)
    selection = index.select("train", range(5))
    sizes = [segment.bytes for shard in index.shards for segment in shard.segments]
    assert 0 < selection.bytes < sum(sizes)
    assert storage.is_local(index.url) and len(selection.label_S) == len(selection)
