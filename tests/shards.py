"""Data sets of a few tiny images, stored without the checks of the prepare command.

Damaged images, wrong labels and missing members can be stored here, which that command refuses.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from pipeline import storage
from pipeline.data.index import INDEX_NAME, ShardIndex, format_index, parse_index
from pipeline.data.plan import ONE_PROCESS, EpochKey, EpochPlan, Layout
from pipeline.data.prepare.writer import Sample, build_shards
from pipeline.data.stream import Batch, ShardSource, train_stream
from pipeline.data.transforms import build_transform

CLASSES = ("ant", "bee", "cat", "dog", "elk")
TRAIN = (11, 7, 13, 5, 9)  # images per class: 45
TEST = (3, 2, 5, 1, 4)  # 15

CROP = build_transform("random_crop", 13)


def draw_image_file(*seed: int, size: tuple[int, int] = (29, 23), kind: str = "JPEG") -> bytes:
    """An image file of noise, different for each seed."""
    pixel_HWC = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixel_HWC).save(file, kind)
    return file.getvalue()


def draw_samples(*, data_seed: int = 0) -> list[Sample]:
    """A small data set in the order of storage."""
    return [
        Sample(
            split,
            label,
            f"{CLASSES[label]}/{number:03d}",
            "jpg",
            draw_image_file(data_seed, split == "test", label, number),
        )  # fmt: skip
        for split, counts in (("train", TRAIN), ("test", TEST))
        for label, count in enumerate(counts)
        for number in range(count)
    ]


def store(
    url: str,
    samples: Iterable[Sample],
    *,
    shard_bytes: int = 40_000,
    damaged: Mapping[str, bytes] | None = None,
    classes: Sequence[str] = CLASSES,
) -> ShardIndex:
    """Store ``samples`` as a data set at ``url``, with other bytes for the keys in ``damaged``.

    ``classes`` are the names of the labels, and of the folders.
    """
    other = damaged or {}
    stored = [Sample(s.split, s.label, s.key, s.suffix, other.get(s.key, s.data)) for s in samples]
    shards = []
    for built in build_shards(stored, shard_bytes=shard_bytes):
        storage.write_atomically(storage.join(url, built.shard.name), built.tar)
        storage.write_atomically(storage.join(url, built.shard.table_name), built.table)
        shards.append(built.shard)
    content = format_index(classes, classes, shards)
    storage.write_atomically(storage.join(url, INDEX_NAME), content)
    return parse_index(url, content)


def draw_arrival(
    classes: Sequence[str], data_seed: int, *, n_train: int = 5, n_test: int = 3
) -> list[Sample]:
    """Images of some classes in the order of storage; a class has a colour, a seed a brightness."""
    samples = []
    for split, count in (("train", n_train), ("test", n_test)):
        for label, name in enumerate(classes):
            colour_C = np.random.default_rng([ord(letter) for letter in name]).integers(40, 216, 3)
            draw = np.random.default_rng([data_seed, split == "test", *map(ord, name)])
            for number in range(count):
                noise_HWC = draw.normal(9 * data_seed, 120, size=(21, 21, 3))
                pixel_HWC = np.clip(colour_C + noise_HWC, 0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixel_HWC).save(file, "PNG")
                key = f"{name}/{data_seed}-{number:03d}"
                samples.append(Sample(split, label, key, "png", file.getvalue()))
    return samples


def overwrite_byte(url: str, position: int) -> None:
    """Change one byte of the file at ``url``."""
    data = bytearray(storage.read_bytes(url))
    data[position] ^= 0x55
    storage.write_atomically(url, bytes(data))


def plan_epoch(index: ShardIndex, epoch: int = 2) -> EpochPlan:
    """An epoch over all training images, in global batches of 8."""
    return EpochPlan(index.select("train", range(len(CLASSES))), EpochKey(5, 1, epoch), 8, "wrap")


def stream_digests(
    source: ShardSource, layout: Layout = ONE_PROCESS, *, epoch: int = 2, start_step: int = 0
) -> list[str]:
    """A hash of the pixels, labels and numbers of each global batch, whose shares are joined."""
    plan = plan_epoch(source.index, epoch)
    ranks = [replace(layout, rank=rank) for rank in range(layout.world_size)]
    streams = [
        list(train_stream(source, plan, CROP, start_step=start_step, layout=rank)) for rank in ranks
    ]
    return [_digest(shares) for shares in zip(*streams, strict=True)]


def _digest(shares: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for name in ("image_BCHW", "label_B", "sample_B"):
        digest.update(torch.cat([getattr(share, name) for share in shares]).numpy().tobytes())
    return digest.hexdigest()
