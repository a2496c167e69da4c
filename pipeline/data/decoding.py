"""From the bytes of one sample to its image: webdataset reads the tar, PIL the image file.

Nothing in a sample is executed. No decoder of webdataset is used, since its defaults unpickle. Only
the image and the class number are read; PIL accepts only formats that are pure data (its EPS reader
would start Ghostscript), and an image of absurd size is refused before it is decompressed.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, UnidentifiedImageError
from webdataset import DataPipeline
from webdataset import filters as stages
from webdataset.autodecode import Decoder, DecodingError
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import DataError

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = ("bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
_SUFFIX_OF_FORMAT = {
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG followed by further images, as some cameras write it
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
MAX_PIXELS = 1 << 26  # 8192 × 8192: 200 MB as RGB


class SampleError(DataError):
    """One sample that is unusable, though its bytes are those that were prepared."""


def decode_sample(record: bytes, *, key: str, label: int) -> Image.Image:
    """The RGB image in ``record``, the bytes of the sample ``key`` in a WebDataset tar.

    Raises:
        SampleError: another sample, no class or another class, no image, or a damaged image.
    """
    stream = {"url": key, "stream": io.BytesIO(record)}
    # One short pipeline per sample, so that a bad sample has no effect on others.
    pipeline = DataPipeline([[stream]], tar_file_expander, group_by_keys, stages.map(_DECODER))
    try:
        samples = list(pipeline)
    except DecodingError as error:
        raise SampleError(str(error.__cause__)) from error
    except Exception as error:  # tarfile raises anything on a malicious header
        cause = f"{type(error).__name__}: {error}"
        raise SampleError(f"is not a WebDataset sample ({cause})") from error
    if len(samples) != 1 or samples[0]["__key__"] != key:
        found = ", ".join(str(sample["__key__"]) for sample in samples) or "nothing"
        raise SampleError(f"the shard has {found} in its place")
    return _image(samples[0], label)


def open_image(data: bytes) -> Image.Image:
    """The decoded RGB image in the image file ``data``.

    Raises:
        SampleError: ``data`` is damaged, absurdly large, or not an image of a known format.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise SampleError(f"has {width} × {height} pixels, more than {MAX_PIXELS:,}")
        return image.convert("RGB")
    except SampleError:
        raise
    except UnidentifiedImageError as error:
        raise SampleError("cannot be decoded (no image of a known format)") from error
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        raise SampleError(f"cannot be decoded ({type(error).__name__}: {error})") from error


def image_suffix(data: bytes) -> str:
    """The file suffix for the format of ``data``, whatever the name of its file."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _SUFFIX_OF_FORMAT[image.format]


def _image(sample: dict[str, Any], label: int) -> Image.Image:
    found = sample.get("cls")
    if found is None:
        raise SampleError("has no class member (.cls)")
    if found != label:
        raise SampleError(f"has class {found} in the shard and {label} in the index")
    images = [value for value in sample.values() if isinstance(value, Image.Image)]
    if not images:
        raise SampleError("has no image member")
    return images[0]


def _decode_label(suffix: str, data: bytes) -> int | None:
    return int(data) if suffix == ".cls" else None


def _decode_image(suffix: str, data: bytes) -> Image.Image | None:
    return open_image(data) if suffix.removeprefix(".") in IMAGE_SUFFIXES else None


_DECODER = Decoder([_decode_label, _decode_image], pre=[], post=[])
