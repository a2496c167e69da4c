"""How fast pictures stream from object storage: ``python -m tests.benchmarks.streaming``.

A real S3 server on loopback gets shards of ImageNet-R's shape (200 classes, 30,000 pictures). Then
the same pictures are streamed for an epoch with a cold and a warm cache, by this project and by
plain webdataset with its own cache, both with the same transform and loader workers; beside them
stands what s3fs alone fetches. The seconds of processor time of this program and its workers, not
of the server, stand beside the wall clock: they are the fairer figure on a busy machine.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from pipeline import storage
from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.index import INDEX_NAME, ShardIndex, format_index, read_index
from pipeline.data.plan import EpochKey, EpochPlan, Layout
from pipeline.data.prepare.writer import Sample, build_shards
from pipeline.data.stream import ShardSource, train_stream
from pipeline.data.transforms import build_transform
from tests.services.object_store import Access, ObjectStore

T = TypeVar("T")

CLASSES = 200
BATCH = 128


def main() -> None:
    """Run everything and print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64, help="pixels of the stored pictures")
    parser.add_argument("--image-size", type=int, default=64, help="pixels of the streamed ones")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--per-class", type=int, default=150, help="a fifth of them test pictures")
    parser.add_argument("--dry-run", action="store_true", help="plan configs/vitl_inr.yaml on it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, ExitStack() as stack:
        (Path(name) / "store").mkdir()
        access = stack.enter_context(ObjectStore(Path(name) / "store")).access
        os.environ.update(access.environment())
        access.file_system().mkdir("benchmark")
        url = "s3://benchmark/inr"
        write_data_set(url, options.side, options.per_class)
        measure(read_index(url), Path(name), access, options.image_size, options.workers)
        if options.dry_run:
            dry_run(url)


def measure(index: ShardIndex, folder: Path, access: Access, image_size: int, workers: int) -> None:
    """One line per way to read the training split."""
    shards = [shard for shard in index.shards if shard.split == "train"]
    size = sum(shard.bytes for shard in shards)
    pictures = sum(shard.samples for shard in shards)

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

    for state in ("cold", "warm"):
        cost, count = timed(
            lambda: stream_ours(index, folder / "cache", range(CLASSES), image_size, workers)
        )
        say(f"our stream, {state} cache", cost, count, size)

    for state in ("cold", "warm"):
        cost, count = timed(
            lambda: stream_webdataset(index, folder / "webdataset", image_size, workers)
        )
        say(f"plain webdataset, {state} cache", cost, count, size)

    labels = np.random.default_rng(1993).permutation(CLASSES)[:20].tolist()
    cost, count = timed(lambda: stream_ours(index, folder / "task", labels, image_size, workers))
    task = index.select("train", labels)
    say("our stream, one task of 20 classes, cold", cost, count, task.bytes)


def dry_run(url: str) -> None:
    """What the configuration for ImageNet-R would do with these shards."""
    command = [sys.executable, "-m", "pipeline.train", "--config", "configs/vitl_inr.yaml"]
    subprocess.run([*command, "--dry-run", f"data.index={url}", "model.weights=random"], check=True)


def write_data_set(url: str, side: int, per_class: int) -> None:
    """Shards of ImageNet-R's shape at ``url``."""
    shards = []
    for built in build_shards(draw_samples(side, per_class), shard_bytes=16 << 20):
        storage.write_atomically(f"{url}/{built.shard.name}", built.tar)
        storage.write_atomically(f"{url}/{built.shard.table_name}", built.table)
        shards.append(built.shard)
    names = [f"class {label}" for label in range(CLASSES)]
    storage.write_atomically(f"{url}/{INDEX_NAME}", format_index(names, names, shards))


def draw_samples(side: int, per_class: int) -> Iterator[Sample]:
    """Smooth noise, which JPEG packs about as well as photographs."""
    draw = np.random.default_rng(7)
    test = per_class // 5
    for split, count in (("train", per_class - test), ("test", test)):
        for label in range(CLASSES):
            for number in range(count):
                coarse = draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=85)
                yield Sample(split, label, f"c{label:03d}/{number:03d}", "jpg", file.getvalue())


def stream_ours(
    index: ShardIndex, folder: Path, labels: Sequence[int], image_size: int, workers: int
) -> int:
    """One epoch, the last batch filled from its beginning; the pictures that came."""
    source = ShardSource(index, cache=SegmentCache(folder, limit_bytes=1 << 34))
    stream = train_stream(
        source,
        EpochPlan(index.select("train", labels), EpochKey(1, 0, 0), BATCH, "wrap"),
        build_transform("clip", image_size),
        layout=Layout(workers=workers),
    )
    count = sum(len(batch.label_B) for batch in stream)
    source.close()
    return count


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


@dataclass(frozen=True)
class Cost:
    """What one measurement took."""

    wall_s: float
    processor_s: float


def timed(action: Callable[[], T]) -> tuple[Cost, T]:
    """Cost and result."""
    wall_s, processor_s = time.perf_counter(), processor_seconds()
    result = action()
    return Cost(time.perf_counter() - wall_s, processor_seconds() - processor_s), result


def processor_seconds() -> float:
    """Of this process and all below it, ended ones included; the store is not among them."""
    this = psutil.Process()
    loaders = [p for p in this.children(recursive=True) if "multiprocessing" in str(p.cmdline())]
    times = [process.cpu_times() for process in (this, *loaders)]
    ended = [t.children_user + t.children_system for t in times[1:]]
    return sum(t.user + t.system for t in times) + sum(ended)


def say(what: str, cost: Cost, pictures: int, size: int) -> None:
    """One line of the table."""
    print(
        f"{what:<40} {cost.wall_s:7.1f} s {pictures / cost.wall_s:8,.0f} pictures/s "
        f"{size / cost.wall_s / 1e6:7.1f} MB/s {cost.processor_s:7.1f} s of processor",
        flush=True,
    )


if __name__ == "__main__":
    main()
