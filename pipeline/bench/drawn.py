"""Data sets of drawn images with any number of classes, as shards."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.data.index import INDEX_NAME, format_index
from pipeline.data.prepare.writer import Sample, build_shards

_SHARD_BYTES = 64 << 20
_QUALITY = 85  # of JPEG
# Words that are one token or two: a name of two of them is as long as those of ImageNet-R.
_WORDS = """
amber apple arrow badge basin beach berry birch blade bloom board bread brick brush cabin camel
candle canyon carrot castle cedar chain chalk cherry clock cloud clover coral cotton crane crown
daisy delta desert dolphin dragon eagle ember falcon feather fern flame flute forest fountain fox
garden glacier grape hammer harbor hazel honey island ivory jacket jungle kettle ladder lantern
lemon lily lion lotus maple marble meadow melon mirror mosaic needle ocean olive onion orchid otter
panther pearl pepper pine planet plum pond quartz rabbit raven river robin rose saddle salmon scarf
silver sparrow spider
""".split()


def class_names(count: int) -> list[str]:
    """Different names of two words; beyond 9,025 of them, of three."""
    most = len(_WORDS)

    def name(number: int) -> str:
        pages, rest = divmod(number, most**2)
        first, second = rest % most, (rest // most + rest + 1) % most
        return " ".join([_WORDS[first], _WORDS[second], *_WORDS[:pages][-1:]])

    return list(map(name, range(count)))


def write_drawn(url: str, train: Sequence[int], test: Sequence[int], side: int) -> None:
    """Write shards of square JPEGs of ``side`` pixels.

    ``train[label]`` and ``test[label]`` are the numbers of images of a class. Equal arguments give
    equal bytes.
    """
    samples = (*_draw("train", train, side), *_draw("test", test, side))
    shards = []
    for built in build_shards(samples, shard_bytes=_SHARD_BYTES):
        storage.write_atomically(storage.join(url, built.shard.name), built.tar)
        storage.write_atomically(storage.join(url, built.shard.table_name), built.table)
        shards.append(built.shard)
    names = class_names(len(train))
    storage.write_atomically(storage.join(url, INDEX_NAME), format_index(names, names, shards))


def _draw(split: str, counts: Sequence[int], side: int) -> Iterator[Sample]:
    """Images of smooth noise, which JPEG compresses about as well as photographs."""
    draw = np.random.default_rng([7, split == "test"])
    for label, count in enumerate(counts):
        for number in range(count):
            coarse = draw.integers(0, 256, (max(2, side // 4),) * 2 + (3,), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=_QUALITY)
            yield Sample(split, label, f"c{label:05d}/{number:05d}", "jpg", file.getvalue())
