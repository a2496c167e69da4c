"""Measures how fast images stream from object storage.

    python -W ignore -m tests.benchmarks.streaming --dry-run

A real S3 server on loopback holds shards like those of ImageNet-R (200 classes, 30,000 images).
This project and plain webdataset with its own cache stream one epoch of the same images, with a
cold and a warm cache, the same transform and the same loader workers. For comparison, s3fs fetches
the bytes alone. Each line gives wall time and processor time; the latter is of this program and its
workers, not of the server, and is the fairer figure on a busy machine.
"""

from __future__ import annotations

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
from pipeline.cli import build_parser
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
    parser = build_parser("python -m tests.benchmarks.streaming", __doc__ or "")
    parser.add_argument(
        "--side", type=int, default=64, help="pixels per side of a stored image; default 64"
    )
    parser.add_argument(
        "--image-size", type=int, default=64, help="pixels per side of a streamed image; default 64"
    )
    parser.add_argument("--workers", type=int, default=2, help="loader workers; default 2")
    parser.add_argument(
        "--per-class",
        type=int,
        default=150,
        help="images per class, a fifth of them for the test; default 150",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="also plan configs/vitl_inr.yaml with these shards"
    )
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
    """Print one line for each way to read the training split."""
    shards = [shard for shard in index.shards if shard.split == "train"]
    size = sum(shard.bytes for shard in shards)
    images = sum(shard.samples for shard in shards)

    def get_files() -> None:
        file_system = access.file_system()
        for shard in shards:
            file_system.get_file(f"{index.url}/{shard.name}", str(folder / "raw.tar"))

    print_line("s3fs get_file, bytes only", timed(get_files)[0], images, size)

    def fetch() -> None:
        cache = SegmentCache(folder / "bytes", limit_bytes=1 << 34)
        for shard in shards:
            cache.fetch(RemoteShard(f"{index.url}/{shard.name}", shard.segments), shard.segments)

    print_line("our cache, bytes only, checked", timed(fetch)[0], images, size)

    for state in ("cold", "warm"):
        cost, count = timed(
            lambda: stream_ours(index, folder / "cache", range(CLASSES), image_size, workers)
        )
        print_line(f"our stream, {state} cache", cost, count, size)

    for state in ("cold", "warm"):
        cost, count = timed(
            lambda: stream_webdataset(index, folder / "webdataset", image_size, workers)
        )
        print_line(f"plain webdataset, {state} cache", cost, count, size)

    labels = np.random.default_rng(1993).permutation(CLASSES)[:20].tolist()
    cost, count = timed(lambda: stream_ours(index, folder / "task", labels, image_size, workers))
    task = index.select("train", labels)
    print_line("our stream, one task of 20 classes, cold", cost, count, task.bytes)


def dry_run(url: str) -> None:
    """Print the plan of configs/vitl_inr.yaml for these shards."""
    command = [sys.executable, "-m", "pipeline.train", "--config", "configs/vitl_inr.yaml"]
    subprocess.run([*command, "--dry-run", f"data.index={url}", "model.weights=random"], check=True)


def write_data_set(url: str, side: int, per_class: int) -> None:
    """Write shards like those of ImageNet-R to ``url``."""
    shards = []
    for built in build_shards(draw_samples(side, per_class), shard_bytes=16 << 20):
        storage.write_atomically(f"{url}/{built.shard.name}", built.tar)
        storage.write_atomically(f"{url}/{built.shard.table_name}", built.table)
        shards.append(built.shard)
    names = [f"class {label}" for label in range(CLASSES)]
    storage.write_atomically(f"{url}/{INDEX_NAME}", format_index(names, names, shards))


def draw_samples(side: int, per_class: int) -> Iterator[Sample]:
    """Images of smooth noise, which JPEG compresses about as well as photographs."""
    draw = np.random.default_rng(7)
    test = per_class // 5
    for split, count in (("train", per_class - test), ("test", test)):
        for label in range(CLASSES):
            for number in range(count):
                coarse = draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
                file = io.BytesIO()
                image.save(file, "JPEG", quality=85)
                yield Sample(split, label, f"c{label:03d}/{number:03d}", "jpg", file.getvalue())


def stream_ours(
    index: ShardIndex, folder: Path, labels: Sequence[int], image_size: int, workers: int
) -> int:
    """Stream one epoch, the last batch filled up from its start; returns the number of images."""
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
    """Stream one epoch with webdataset's own shard cache; returns the number of images."""
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
    """Register the s3 scheme, which webdataset lacks."""
    os.environ.update(environment)
    webdataset.gopen_schemes["s3"] = open_s3


def open_s3(url: str, mode: str = "rb", bufsize: int = 8192, **options: object) -> object:
    """Open a file for webdataset."""
    return storage.open_file(url, mode)


@dataclass(frozen=True)
class Cost:
    """The time of one measurement."""

    wall_s: float
    processor_s: float


def timed(action: Callable[[], T]) -> tuple[Cost, T]:
    """Cost and result of ``action``."""
    wall_s, processor_s = time.perf_counter(), processor_seconds()
    result = action()
    return Cost(time.perf_counter() - wall_s, processor_seconds() - processor_s), result


def processor_seconds() -> float:
    """Processor time of this process and its loader workers, also ended ones; not of the store."""
    this = psutil.Process()
    loaders = [p for p in this.children(recursive=True) if "multiprocessing" in str(p.cmdline())]
    times = [process.cpu_times() for process in (this, *loaders)]
    ended = [t.children_user + t.children_system for t in times[1:]]
    return sum(t.user + t.system for t in times) + sum(ended)


def print_line(label: str, cost: Cost, images: int, size: int) -> None:
    """Print one line of the table."""
    print(
        f"{label:<40} {cost.wall_s:7.1f} s {images / cost.wall_s:8,.0f} images/s "
        f"{size / cost.wall_s / 1e6:7.1f} MB/s {cost.processor_s:7.1f} s of processor",
        flush=True,
    )


if __name__ == "__main__":
    main()
