"""From the image files of a source to the stored files, in order, on several cores."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal, Protocol

from PIL import Image

from pipeline.data.decoding import SampleError, image_suffix, open_image, silence_pil
from pipeline.data.prepare.listing import Row
from pipeline.data.prepare.parallel import map_in_order
from pipeline.data.prepare.parquet_source import ParquetSource
from pipeline.data.prepare.source_images import ImageSource, SourceImage, describe
from pipeline.data.prepare.spool import spool_parquet
from pipeline.data.prepare.video_file import middle_frame
from pipeline.data.prepare.writer import Sample
from pipeline.data.upright import formats_with, phone_format, turn_of

Orientation = Literal["apply", "ignore"]

_JPEG_QUALITY = 95
_JPEG_LONGEST = 65500  # pixels of a side
_CHUNK = 16  # images per message to an encoding process


class ImageReader(Protocol):
    """Anything that has the bytes of the images of a source."""

    def read(self, image: SourceImage) -> bytes:
        """The bytes of its image file."""


def encode_image_file(
    data: bytes, resize: int | None, orientation: Orientation = "apply"
) -> tuple[str, bytes, bool]:
    """Suffix and bytes of the image file to store, and whether it has an EXIF orientation.

    Every image is decoded here, so that no broken one gets into a shard. The bytes are kept, unless
    the image is shrunk, turned as its EXIF orientation says, or is of a format of phones.

    Raises:
        SampleError: ``data`` cannot be decoded, or the result cannot be stored.
    """
    kind = phone_format(data)
    image = open_image(data, formats=formats_with(kind))
    turn = turn_of(data, kind)
    tagged = turn is not None and not kind  # in AVIF the turn is a part of the format
    if turn is not None and (kind or orientation == "apply"):
        image = image.transpose(turn)
    elif not kind and not _is_larger(image, resize):
        return image_suffix(data), data, tagged
    if _is_larger(image, resize):
        assert resize is not None
        scale = resize / min(image.size)
        width, height = (max(resize, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return *_stored(image), tagged


def has_further_images(data: bytes) -> bool:
    """Whether an image file has frames or pages after its first image, which alone is read."""
    kind = phone_format(data)
    silence_pil()
    try:
        with Image.open(io.BytesIO(data), formats=formats_with(kind)) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damage after the first image does not make it unusable
        return False


def encode_rows(
    source: ImageSource | ParquetSource,
    rows: Sequence[Row],
    *,
    resize: int | None,
    jobs: int,
    orientation: Orientation = "apply",
) -> Iterator[Sample | str]:
    """For each row, in order, its sample or a sentence with the reason why it has none."""
    opened: AbstractContextManager[tuple[ImageReader, Sequence[Row]]] = (
        spool_parquet(rows) if isinstance(source, ParquetSource) else nullcontext((source, rows))
    )
    with opened as (reader, rows):
        encode = partial(_encode_chunk, reader, resize, orientation)
        chunks = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
        for results in map_in_order(encode, chunks, jobs=jobs):
            yield from results


def _encode_chunk(
    source: ImageReader, resize: int | None, orientation: Orientation, rows: Sequence[Row]
) -> list[Sample | str]:
    """For each row its sample, or a sentence with the reason why it has none."""
    results: list[Sample | str] = []
    for row in rows:
        try:
            file = _image_file(source, row.image)
            suffix, data, tagged = encode_image_file(file, resize, orientation)
            place = (row.image.split, row.label, row.key)
            results.append(Sample(*place, suffix, data, tagged, has_further_images(file)))
        except SampleError as error:
            results.append(f"{row.image} {error}")
    return results


def _image_file(source: ImageReader, image: SourceImage) -> bytes:
    file = source.read(image)
    return _stored(middle_frame(file))[1] if image.is_video else file


def _is_larger(image: Image.Image, resize: int | None) -> bool:
    return resize is not None and min(image.size) > resize


def _stored(image: Image.Image) -> tuple[str, bytes]:
    """Suffix and bytes of a file with the pixels of ``image``: JPEG, or PNG if it is too long."""
    buffer = io.BytesIO()
    try:
        if max(image.size) > _JPEG_LONGEST:
            image.save(buffer, "PNG")
            return "png", buffer.getvalue()
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    except Exception as error:  # PIL's writers raise almost anything
        raise SampleError(f"cannot be stored ({describe(error)})") from error
    return "jpg", buffer.getvalue()
