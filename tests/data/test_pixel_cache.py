"""Kept pixels change no batch, and no damage of their files or lack of room is an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.data import batch as batch_module
from pipeline.data.index import INDEX_NAME, ShardIndex, format_index, parse_index
from pipeline.data.pixel_cache import PixelCache
from pipeline.data.plan import EpochKey, EpochPlan, Layout
from pipeline.data.shard import Shard
from pipeline.data.stream import ShardSource, eval_stream, train_stream
from pipeline.data.transforms import Transform, build_transform
from pipeline.errors import DataError
from tests.shards import CLASSES, CROP, TRAIN, draw_samples, store

CLIP = build_transform("clip", 13)
ROW_BYTES = 4 + 3 * 13 * 13


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ShardIndex:
    return store(str(tmp_path_factory.mktemp("shards")), draw_samples())


@pytest.fixture
def no_decoding(monkeypatch) -> Callable[[], None]:
    """Called, it makes decoding an error in this process."""
    return lambda: monkeypatch.setattr(batch_module, "decode_sample", None)


def pixels_at(folder: Path, *, limit_bytes: int = 1 << 20, idle_s: float = 600) -> PixelCache:
    return PixelCache(folder, limit_bytes=limit_bytes, idle_s=idle_s)


def stream(
    index: ShardIndex,
    pixels: PixelCache | None,
    *,
    transform: Transform = CLIP,
    workers: int = 0,
    labels: range = range(5),
    **options: object,
) -> list[tuple[torch.Tensor, ...]]:
    """Two epochs of training, whose last batch repeats samples, and a test."""
    source = ShardSource(index, pixels=pixels, **options)
    layout = Layout(workers=workers)
    train, test = index.select("train", labels), index.select("test", labels)
    batches = []
    for epoch in range(2):
        plan = EpochPlan(train, EpochKey(5, 1, epoch), 8, "wrap")
        batches += train_stream(source, plan, transform, layout=layout)
    if not transform.is_random:
        batches += eval_stream(source, test, transform, batch_size=4, layout=layout)
    source.close()
    return [(batch.image_BCHW, batch.label_B, batch.sample_B) for batch in batches]


def are_equal(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", ["clip", "squash"])
def test_batches_are_equal_with_and_without(index, tmp_path, name, no_decoding):
    transform = build_transform(name, 13)
    expected = stream(index, None, transform=transform)
    assert are_equal(stream(index, pixels_at(tmp_path), transform=transform), expected)
    no_decoding()
    assert are_equal(stream(index, pixels_at(tmp_path), transform=transform), expected)


def test_pixels_of_loader_workers_are_found_by_every_process(index, tmp_path, no_decoding):
    expected = stream(index, None)
    assert are_equal(stream(index, pixels_at(tmp_path), workers=2), expected)
    no_decoding()
    assert are_equal(stream(index, pixels_at(tmp_path)), expected)


def test_each_image_is_decoded_once(index, tmp_path, monkeypatch):
    decode, keys = batch_module.decode_sample, []
    monkeypatch.setattr(
        batch_module, "decode_sample", lambda *args, key, **rest: (
            keys.append(key), decode(*args, key=key, **rest)
        )[1],
    )  # fmt: skip
    stream(index, pixels_at(tmp_path))
    train = index.select("train", range(5)).keys
    # A repeated sample of the last batch was kept by an earlier one.
    assert sorted(keys) == sorted([*train, *index.select("test", range(5)).keys])


def test_random_transform_keeps_nothing(index, tmp_path):
    expected = stream(index, None, transform=CROP)
    assert are_equal(stream(index, pixels_at(tmp_path), transform=CROP), expected)
    assert list(tmp_path.iterdir()) == []


def test_pixels_of_another_transform_are_not_used(index, tmp_path):
    stream(index, pixels_at(tmp_path))
    for transform in (build_transform("squash", 13), build_transform("clip", 11)):
        expected = stream(index, None, transform=transform)
        assert are_equal(stream(index, pixels_at(tmp_path), transform=transform), expected)


def flip(data: bytes) -> bytes:
    """Every byte of the pixels of the first row that is kept."""
    first = next(at for at in range(0, len(data), ROW_BYTES) if any(data[at : at + 4]))
    damaged = bytes(255 - byte for byte in data[first + 4 : first + ROW_BYTES])
    return data[: first + 4] + damaged + data[first + ROW_BYTES :]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: b""])
def test_damaged_file_is_noticed_and_removed(index, tmp_path, caplog, damage, no_decoding):
    expected = stream(index, None)
    stream(index, pixels_at(tmp_path))
    files = sorted(tmp_path.glob("*.segment"))
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert are_equal(stream(index, pixels_at(tmp_path)), expected)
    assert caplog.text.count("decoding its images again") == len(files)
    no_decoding()
    assert are_equal(stream(index, pixels_at(tmp_path)), expected)


def test_half_written_row_is_decoded_again(index, tmp_path, caplog):
    """must hold after a kill between the pixels and their checksum"""
    expected = stream(index, None)
    stream(index, pixels_at(tmp_path))
    for file in tmp_path.glob("*.segment"):
        data = bytearray(file.read_bytes())
        data[:4], data[4:40] = bytes(4), bytes(36)
        file.write_bytes(data)
    assert are_equal(stream(index, pixels_at(tmp_path)), expected)
    assert not caplog.text


@pytest.mark.parametrize("limit_bytes", [100, 20 * ROW_BYTES])
def test_without_room_the_rest_is_decoded_and_one_line_says_so(
    index, tmp_path, caplog, limit_bytes
):
    expected = stream(index, None)
    assert are_equal(stream(index, pixels_at(tmp_path, limit_bytes=limit_bytes)), expected)
    assert caplog.text.count("\n") == 1
    assert "no more decoded pixels are kept" in caplog.text
    assert "raise data.cache.pixels_gb" in caplog.text
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= limit_bytes


def test_folder_that_cannot_be_written_is_no_error(index, tmp_path, caplog):
    expected = stream(index, None)
    (tmp_path / "file").touch()
    assert are_equal(stream(index, pixels_at(tmp_path / "file" / "pixels")), expected)
    assert caplog.text.count("no more decoded pixels are kept") == 1


def test_pixels_of_an_earlier_task_give_way_to_those_of_a_later_one(index, tmp_path, caplog):
    limit_bytes = max(TRAIN) * 2 * ROW_BYTES
    stream(index, pixels_at(tmp_path, limit_bytes=limit_bytes), labels=range(1))
    before = {*tmp_path.glob("*.segment")}
    for file in before:
        os.utime(file, (0, 0))  # used long ago
    pixels = pixels_at(tmp_path, limit_bytes=limit_bytes)
    stream(index, pixels, labels=range(2, 3))
    assert before.isdisjoint(tmp_path.glob("*.segment")) and not caplog.text


def test_pixels_in_use_do_not_give_way(index, tmp_path):
    limit_bytes = max(TRAIN) * 2 * ROW_BYTES
    stream(index, pixels_at(tmp_path, limit_bytes=limit_bytes), labels=range(1))
    before = {*tmp_path.glob("*.segment")}
    stream(index, pixels_at(tmp_path, limit_bytes=limit_bytes), labels=range(2, 3))
    assert before <= {*tmp_path.glob("*.segment")}


def test_bad_sample_is_bad_in_every_epoch_and_the_others_are_kept(tmp_path, no_decoding):
    url = str(tmp_path / "shards")
    damaged = store(url, draw_samples(), damaged={"cat/007": b"not an image"})
    options = {"on_bad_sample": "skip", "bad_sample_budget": 1}
    expected = stream(damaged, None, **options)
    pixels = pixels_at(tmp_path / "pixels")
    for _ in range(2):
        assert are_equal(stream(damaged, pixels, **options), expected)
    with pytest.raises(DataError, match="sample cat/007 cannot be decoded"):
        stream(damaged, pixels)
    no_decoding()
    stream(damaged, pixels, labels=range(2))


def relabelled(shard: Shard) -> Shard:
    """The shard in an index that exchanges the first two classes."""
    swap = {0: 1, 1: 0}
    segments = (replace(s, label=swap.get(s.label, s.label)) for s in shard.segments)
    return replace(shard, segments=tuple(segments))


def test_index_with_other_classes_does_not_find_the_pixels(tmp_path):
    """must be refused as it is without kept pixels, though the bytes are the same"""
    url = str(tmp_path / "shards")
    index = store(url, draw_samples())
    pixels = pixels_at(tmp_path / "pixels")
    stream(index, pixels)
    content = format_index(CLASSES, CLASSES, [relabelled(shard) for shard in index.shards])
    storage.write_atomically(storage.join(url, INDEX_NAME), content)
    with pytest.raises(DataError, match="has class . in the shard and . in the index"):
        stream(parse_index(url, content), pixels)


def test_closed_split_is_refused_though_its_pixels_are_kept(index, tmp_path):
    pixels = pixels_at(tmp_path)
    stream(index, pixels)
    maker = batch_module.BatchMaker(ShardSource(index.with_closed("test"))._reader, pixels=pixels)
    samples = index.select("test", [0]).take(np.arange(1))
    with pytest.raises(DataError, match="the test split is closed"):
        maker[batch_module.Request(samples, CLIP)].batch()
