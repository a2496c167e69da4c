"""The stream of images on one core, beside webdataset alone and the transfer of the bytes alone.

Each stream reads, decodes, transforms and batches one epoch in this process. ``bench.url`` is a
folder in an object store: the same shards are written there and read with an empty cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch

from pipeline import storage
from pipeline.bench.drawn import write_drawn
from pipeline.bench.large_index import start_together, write_large
from pipeline.bench.plain_webdataset import stream_plain
from pipeline.bench.settings import DRAWN, BenchConfig
from pipeline.bench.timing import Figure, NotMeasured, Timing, time_alternately
from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.pixel_cache import PixelCache
from pipeline.data.plan import EpochKey, EpochPlan
from pipeline.data.shard import Shard
from pipeline.data.stream import ShardSource, train_stream
from pipeline.data.transforms import Transform, build_transform
from pipeline.distributed.world import World

_BATCH = 32
_CLASSES = 20
_NO_LIMIT = 1 << 40
_CPU = torch.device("cpu")


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """Each of ``bench.streams``, then starts on a large data set.

    Raises:
        NotMeasured: several ranks would share what is to be measured.
    """
    if world.world_size > 1:
        raise NotMeasured("it measures one process on one core")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for stored, side, images in config.bench.streams:
            url = f"{folder}/shards-{stored}"
            if config.data.index == DRAWN:
                per_class = [images // _CLASSES] * _CLASSES
                write_drawn(url, per_class, [1] * _CLASSES, stored)
            else:
                url = str(config.data.index)
            bench = _Streams(read_index(url), config, side, folder)
            yield from bench.measure_local(f"{stored} to {side} pixels")
            if config.bench.url:
                yield from bench.measure_store(f"{stored} to {side} pixels", config.bench.url)
        yield from _measure_starts(config, folder)


class _Streams:
    """One epoch of an index in several ways."""

    def __init__(self, index: ShardIndex, config: BenchConfig, side: int, folder: Path) -> None:
        self._index = index
        self._config = config
        self._transform: Transform = build_transform(config.data.eval_transform, side)
        self._folder = folder
        self._shards = [shard for shard in index.shards if shard.split == "train"]
        self._images = sum(shard.samples for shard in self._shards)
        self._numbers = count()

    def measure_local(self, label: str) -> Iterator[Figure]:
        """From local shards: decoded in each epoch, with kept pixels, and through webdataset."""
        pixels = PixelCache(self._folder / "pixels", limit_bytes=_NO_LIMIT)
        kept = partial(self._stream, ShardSource(self._index, pixels=pixels))
        kept()  # the first epoch
        plain = partial(stream_plain, [s.url for s in self._shards], self._transform, batch=_BATCH)
        ours = partial(self._stream, ShardSource(self._index))
        works = {"ours": ours, "kept": kept, "plain": plain}
        timings = time_alternately(works, self._config.bench, _CPU)
        shutil.rmtree(self._folder / "pixels")
        for name, text in (
            ("ours", "local"), ("kept", "local, kept pixels"), ("plain", "local, webdataset alone")
        ):  # fmt: skip
            yield timings[name].rate(f"{label}: {text}", self._images, "images/s")
        yield _faster(timings, "ours", "plain", f"{label}: local against webdataset", "≥ 1")
        yield _faster(timings, "kept", "plain", f"{label}: kept pixels against webdataset", "≥ 5")

    def measure_store(self, label: str, url: str) -> Iterator[Figure]:
        """From an object store with an empty cache."""
        url = storage.join(url, f"{len(self._shards)}-{self._images}")
        for shard in self._index.shards:
            for name in (shard.name, shard.table_name):
                data = storage.read_bytes(storage.join(self._index.url, name))
                storage.write_atomically(storage.join(url, name), data)
        data = storage.read_bytes(storage.join(self._index.url, "index.json"))
        storage.write_atomically(storage.join(url, "index.json"), data)
        index = read_index(url)
        shards = [shard for shard in index.shards if shard.split == "train"]
        works = {
            "raw": partial(self._in_new_folder, partial(_copy_raw, shards)),
            "bytes": partial(self._in_new_folder, partial(_fetch_all, shards)),
            "ours": partial(self._in_new_folder, partial(self._stream_cold, index)),
            "plain": partial(self._in_new_folder, partial(self._stream_plain_cold, shards)),
        }
        timings = time_alternately(works, self._config.bench, _CPU)
        megabytes = sum(shard.bytes for shard in shards) / 1e6
        yield timings["raw"].rate(f"{label}: store, bytes alone", megabytes, "MB/s")
        yield timings["bytes"].rate(f"{label}: store, into our cache, checked", megabytes, "MB/s")
        for name, text in (("ours", "store, cold"), ("plain", "store, cold, webdataset alone")):
            yield timings[name].rate(f"{label}: {text}", self._images, "images/s")
        yield _faster(timings, "bytes", "raw", f"{label}: our cache against bytes alone", "≥ 0.9")
        yield _faster(timings, "ours", "plain", f"{label}: cold against webdataset", "≥ 1")

    def _stream(self, source: ShardSource) -> int:
        """One epoch, shuffled again; the last batch is filled from its start."""
        selection = source.index.select("train", range(len(source.index.class_names)))
        plan = EpochPlan(selection, EpochKey(1, 0, next(self._numbers)), _BATCH, "wrap")
        images = sum(len(batch.label_B) for batch in train_stream(source, plan, self._transform))
        source.close()
        return images

    def _stream_cold(self, index: ShardIndex, folder: Path) -> int:
        cache = SegmentCache(folder, limit_bytes=_NO_LIMIT)
        return self._stream(ShardSource(index, cache=cache))

    def _stream_plain_cold(self, shards: list[Shard], folder: Path) -> int:
        return stream_plain([s.url for s in shards], self._transform, batch=_BATCH, cache=folder)

    def _in_new_folder(self, work: Callable[[Path], object]) -> None:
        folder = self._folder / f"cache-{next(self._numbers)}"
        folder.mkdir()
        work(folder)
        shutil.rmtree(folder)


def _copy_raw(shards: list[Shard], folder: Path) -> None:
    for shard in shards:
        (folder / shard.name).write_bytes(storage.read_bytes(shard.url))


def _fetch_all(shards: list[Shard], folder: Path) -> None:
    cache = SegmentCache(folder, limit_bytes=_NO_LIMIT)
    cache.fetch_all({RemoteShard(shard.url, shard.segments): shard.segments for shard in shards})


def _measure_starts(config: BenchConfig, folder: Path) -> Iterator[Figure]:
    """The first start of a node, which shares its tables, and a later one of several ranks."""
    n_shards, samples, classes = config.bench.large
    if not n_shards:
        return
    large = folder / "large"
    large.mkdir()
    write_large(large, shards=n_shards, samples=samples, classes=classes)
    data = config.data.model_copy(
        update={
            "index": str(large),
            "cache": config.data.cache.model_copy(update={"folder": str(folder / "cache")}),
        }
    )
    tasks = config.tasks.model_copy(update={"classes_per_task": max(1, classes // 10)})
    config = config.model_copy(update={"data": data, "tasks": tasks})
    label = f"{n_shards * samples:,} samples, {classes:,} classes"
    for ranks, text in ((1, "first start of a node"), (1, "a later start")):
        seconds, _ = start_together(config, ranks)
        yield Timing((seconds,)).duration(f"{label}: {text}", "< 3")
    seconds, size = start_together(config, config.bench.large_ranks)
    text = f"{label}: {config.bench.large_ranks} ranks of a node"
    yield Timing((seconds,)).duration(f"{text}, start together")
    yield Figure.counted(f"{text}, memory of all", size / 1e9, "GB", "< 1")


def _faster(timings: dict[str, Timing], name: str, other: str, label: str, target: str) -> Figure:
    """How many times as fast one work is as the other."""
    return timings[other].over(timings[name], label, target)
