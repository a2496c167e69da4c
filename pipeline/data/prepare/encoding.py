"""From the image files of a source to the stored files, in order, on several cores."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial

from PIL import Image

from pipeline.data.decoding import SampleError, image_suffix, open_image
from pipeline.data.prepare.folder_sources import ImageSource
from pipeline.data.prepare.listing import Row
from pipeline.data.prepare.parallel import map_in_order
from pipeline.data.prepare.writer import Sample

_JPEG_QUALITY = 95
_CHUNK = 16  # images per message to an encoding process


def encode_image_file(data: bytes, resize: int | None) -> tuple[str, bytes]:
    """Suffix and bytes of the image file to store.

    Every image is decoded here, so that no broken one gets into a shard.

    Raises:
        SampleError: ``data`` cannot be decoded.
    """
    image = open_image(data)
    width, height = image.size
    if resize is None or min(width, height) <= resize:
        return image_suffix(data), data
    scale = resize / min(width, height)
    size = (max(resize, round(width * scale)), max(resize, round(height * scale)))
    buffer = io.BytesIO()
    shrunk = image.resize(size, Image.Resampling.BICUBIC)
    shrunk.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "jpg", buffer.getvalue()


def encode_rows(
    source: ImageSource, rows: Sequence[Row], *, resize: int | None, jobs: int
) -> Iterator[Sample | str]:
    """For each row, in order, its sample or a sentence with the reason why it has none."""
    encode = partial(_encode_chunk, source, resize)
    chunks = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
    for results in map_in_order(encode, chunks, jobs=jobs):
        yield from results


def _encode_chunk(
    source: ImageSource, resize: int | None, rows: Sequence[Row]
) -> list[Sample | str]:
    """For each row its sample, or a sentence with the reason why it has none."""
    results: list[Sample | str] = []
    for row in rows:
        try:
            suffix, data = encode_image_file(source.read(row.image), resize)
            results.append(Sample(row.image.split, row.label, row.key, suffix, data))
        except SampleError as error:
            results.append(f"{row.image} {error}")
    return results
