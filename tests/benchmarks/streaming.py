"""How fast pictures stream from object storage: ``python -m tests.benchmarks.streaming``.

A real S3 server on loopback gets shards of ImageNet-R's shape (200 classes, 30,000 pictures). Then
the same pictures are streamed for an epoch with a cold and a warm cache, by this project and by
plain webdataset with its own cache, both with the same transform and loader workers; beside them
stands what s3fs alone fetches.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from pipeline import storage
from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.index import INDEX_NAME, ShardIndex, format_index, read_index
from pipeline.data.stream import ShardSource, eval_stream, train_stream
from pipeline.data.transforms import build_transform
from pipeline.data.writer import Sample, build_shards
from tests.services.object_store import Access, ObjectStore

CLASSES, TRAIN, TEST = 200, 120, 30  # pictures per class
BATCH = 128


def main() -> None:
    """Run everything and print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64, help="pixels of the stored pictures")
    parser.add_argument("--image-size", type=int, default=64, help="pixels of the streamed ones")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, ExitStack() as stack:
        (Path(name) / "store").mkdir()
        access = stack.enter_context(ObjectStore(Path(name) / "store")).access
        os.environ.update(access.environment())
        access.file_system().mkdir("benchmark")
        url = "s3://benchmark/inr"
        seconds, index = timed(lambda: write_data_set(url, options.side))
        size = sum(shard.bytes for shard in index.shards if shard.split == "train")
        say("write shards to the store", seconds, CLASSES * (TRAIN + TEST), size)
        measure(index, Path(name), access, options.image_size, options.workers)


def measure(index: ShardIndex, folder: Path, access: Access, image_size: int, workers: int) -> None:
    """One line per way to read the training split."""
    shards = [shard for shard in index.shards if shard.split == "train"]
    size = sum(shard.bytes for shard in shards)
    pictures = CLASSES * TRAIN

    def get_files() -> None:
        file_system = access.file_system()
        for shard in shards:
            file_system.get_file(f"{index.url}/{shard.name}", str(folder / "raw.tar"))

    say("s3fs get_file, bytes only", timed(get_files)[0], pictures, size)

    def fetch() -> None:
        cache = SegmentCache(folder / "bytes", limit_bytes=1 << 34)
        for shard in shards:
            cache.fetch(RemoteShard(f"{index.url}/{shard.name}", shard.segments), shard.segments)

    say("our cache, bytes only, checked", timed(fetch)[0], pictures, size)

    source = ShardSource(index, cache=SegmentCache(folder / "cache", limit_bytes=1 << 34))
    warm_up(source, workers, image_size)
    for state in ("cold", "warm"):
        seconds, count = timed(lambda: stream_ours(source, range(CLASSES), image_size, workers))
        say(f"our stream, {state} cache", seconds, count, size)
    source.close()

    for state in ("cold", "warm"):
        seconds, count = timed(
            lambda: stream_webdataset(index, folder / "webdataset", image_size, workers)
        )
        say(f"plain webdataset, {state} cache", seconds, count, size)

    source = ShardSource(index, cache=SegmentCache(folder / "tasks", limit_bytes=1 << 34))
    warm_up(source, workers, image_size)
    labels = np.random.default_rng(1993).permutation(CLASSES)[:20].tolist()
    task = index.select("train", labels)
    seconds, count = timed(lambda: stream_ours(source, labels, image_size, workers))
    say("our stream, one task of 20 classes, cold", seconds, count, task.bytes)
    source.close()


def write_data_set(url: str, side: int) -> ShardIndex:
    """Shards of ImageNet-R's shape at ``url``."""
    shards = []
    for built in build_shards(draw_samples(side), shard_bytes=16 << 20):
        storage.write_atomically(f"{url}/{built.shard.name}", built.tar)
        storage.write_atomically(f"{url}/{built.shard.table_name}", built.table)
        shards.append(built.shard)
    names = [f"class {label}" for label in range(CLASSES)]
    storage.write_atomically(f"{url}/{INDEX_NAME}", format_index(names, names, shards))
    return read_index(url)


def draw_samples(side: int) -> Iterator[Sample]:
    """Smooth noise, which JPEG packs about as well as photographs."""
    draw = np.random.default_rng(7)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for label in range(CLASSES):
            for number in range(count):
                coarse = draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=85)
                yield Sample(split, label, f"c{label:03d}/{number:03d}", "jpg", file.getvalue())


def stream_ours(source: ShardSource, labels: Sequence[int], image_size: int, workers: int) -> int:
    """One epoch, the last batch filled from its beginning; the pictures that came."""
    stream = train_stream(
        source,
        source.index.select("train", labels),
        seed=1,
        task=0,
        epoch=0,
        global_batch=BATCH,
        tail="wrap",
        transform=build_transform("clip", image_size),
        workers=workers,
    )
    return sum(len(batch.label_B) for batch in stream)


def warm_up(source: ShardSource, workers: int, image_size: int) -> None:
    """Start the loader workers, so that no figure contains it; reads test pictures only."""
    test = source.index.select("test", [0])
    for _ in eval_stream(
        source, test, batch_size=4, transform=build_transform("clip", image_size), workers=workers
    ):
        pass


def stream_webdataset(index: ShardIndex, folder: Path, image_size: int, workers: int) -> int:
    """One epoch by webdataset's own shard cache; the pictures that came."""
    folder.mkdir(exist_ok=True)
    urls = [f"{index.url}/{shard.name}" for shard in index.shards if shard.split == "train"]
    transform = build_transform("clip", image_size)
    dataset = (
        webdataset.WebDataset(urls, cache_dir=str(folder), shardshuffle=False, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, int)
        .batched(BATCH)
    )
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=functools.partial(register_s3, dict(os.environ)),
    )
    if not workers:
        register_s3({}, 0)
    return sum(len(labels) for _, labels in loader)


def register_s3(environment: dict[str, str], worker: int) -> None:
    """Teach webdataset the s3 scheme, which it has not."""
    os.environ.update(environment)
    webdataset.gopen_schemes["s3"] = open_s3


def open_s3(url: str, mode: str = "rb", bufsize: int = 8192, **options: object) -> object:
    """A readable file for webdataset."""
    return storage.open_file(url, mode)


def timed(action: Callable[[], object]) -> tuple[float, object]:
    """Seconds and result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def say(what: str, seconds: float, pictures: int, size: int) -> None:
    """One line of the table."""
    print(
        f"{what:<44} {seconds:7.1f} s {pictures / seconds:9,.0f} pictures/s "
        f"{size / seconds / 1e6:8.1f} MB/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
