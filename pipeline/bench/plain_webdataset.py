"""One epoch through webdataset alone, as its documentation shows it, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import webdataset

from pipeline import storage
from pipeline.data.decoding import IMAGE_SUFFIXES
from pipeline.data.transforms import Transform

_SHUFFLED = 1000  # samples in the buffer that is drawn from


def stream_plain(
    urls: Sequence[str], transform: Transform, *, batch: int, cache: Path | None = None
) -> int:
    """Read, shuffle, decode, transform and batch all samples; returns their number.

    ``cache`` is a folder for complete shards, which webdataset fills and then reads.
    """
    webdataset.gopen_schemes["s3"] = _open  # a scheme that it lacks
    options: dict[str, Any] = {"shardshuffle": len(urls), "empty_check": False}
    if cache:
        cache.mkdir(parents=True, exist_ok=True)
        options["cache_dir"] = str(cache)
    batches = (
        webdataset.WebDataset(list(urls), **options)
        .shuffle(_SHUFFLED)
        .decode("pil")
        .to_tuple(";".join(IMAGE_SUFFIXES), "cls")
        .map_tuple(transform, int)
        .batched(batch)
    )
    return sum(len(labels) for _, labels in batches)


def _open(url: str, mode: str = "rb", bufsize: int = 8192, **options: object) -> IO[Any]:
    return storage.open_file(url, mode)
