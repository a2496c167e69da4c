"""Image files as cameras and phones write them, decoded with their pixels upright."""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image

from pipeline.data.decoding import FORMATS, open_image

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_upright(data: bytes) -> Image.Image:
    """The RGB image in an image file, turned as its EXIF orientation says; also AVIF and HEIC.

    These are the pixels that ``prepare`` puts into a shard by default, unless it shrinks them or
    stores them as JPEG again.

    Raises:
        SampleError: as :func:`pipeline.data.decoding.open_image`.
    """
    kind = phone_format(data)
    image = open_image(data, formats=formats_with(kind))
    turn = turn_of(data, kind)
    return image if turn is None else image.transpose(turn)


def phone_format(data: bytes) -> str | None:
    """The name that PIL has for a format of phones; None for all others."""
    if data[4:8] != b"ftyp":
        return None
    if b"avif" in data[8:32] or b"avis" in data[8:32]:
        return "AVIF"
    _register_heif()
    return "HEIF"


def formats_with(kind: str | None) -> tuple[str, ...]:
    """The formats that are pure data, and that of a phone's file."""
    return (*FORMATS, kind) if kind else FORMATS


def turn_of(data: bytes, kind: str | None) -> Image.Transpose | None:
    """The turn that makes the decoded image upright, by its EXIF orientation.

    None if the tag is absent, damaged or says so, or if PIL has applied it already.
    """
    if not kind and b"Exif" not in data and b"eXIf" not in data and b"EXIF" not in data:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=formats_with(kind)) as image:
            if image.format in ("TIFF", "HEIF"):
                return None
            return _TRANSPOSE.get(int(image.getexif().get(_ORIENTATION_TAG, 1)))
    except Exception:  # a damaged tag does not make an image unusable
        return None


@lru_cache
def _register_heif() -> None:
    # Imported here, since few data sets need it; it adds a format to PIL.
    from pillow_heif import register_heif_opener

    register_heif_opener()
