"""From the bytes of one sample to its image.

A sample as ``prepare`` writes it is taken from its tar headers in 5 µs. Any other one is read by
webdataset, which takes 80 µs. PIL reads the image file.

Nothing in a sample is executed. No decoder of webdataset is used, since its defaults unpickle. Only
the image and the class number are read; PIL accepts only formats that are pure data (its EPS reader
would start Ghostscript), and an image of absurd size is refused before it is decompressed.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from webdataset import DataPipeline
from webdataset import filters as stages
from webdataset.autodecode import Decoder, DecodingError
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
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
# A progressive JPEG has about ten scans. One over all pixels can take 35 bytes: a few megabytes of
# them would be decoded for an hour. libtiff has the same limit, and libjpeg has none.
MAX_SCANS = 100

_MAX_MARKERS = 10_000  # of a JPEG: each has at most 64 kB of metadata
_MARKER = re.compile(rb"(?s)\xff+([\x02-\xcf\xd8-\xfe])(..)")  # but those of one byte
_SCAN, _END = b"\xda", b"\xd9"

_BLOCK = 512  # bytes of a tar header; a member is padded to a multiple of it
# The key of a sample that webdataset finds under this very key, whatever rule of its applies.
_PLAIN_KEY = re.compile(r"(?!__)(?:[ -~]*/)?[^./\x00-\x1f\x7f-\U0010ffff]+")
# A ustar header behind the name: mode, owners, size, time, checksum, a regular file without a link,
# magic, names of the owners, devices, no prefix of the name.
_PLAIN_HEADER = re.compile(
    rb"(?s)(?:[0-7]{7}\0){3}([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 0\0{100}ustar\x0000"
    rb".{64}(?:[0-7]{7}\0|\0{8}){2}\0{167}"
)


class SampleError(DataError):
    """One sample that is unusable, though its bytes are those that were prepared."""


def decode_sample(record: bytes, *, key: str, label: int) -> Image.Image:
    """The RGB image in ``record``, the bytes of the sample ``key`` in a WebDataset tar.

    Raises:
        SampleError: another sample, no class or another class, no image, or a damaged image.
    """
    image = _plain_image(record, key, label)
    if image is not None:
        return open_image(image)
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


def open_image(data: bytes, *, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The decoded RGB image in the image file ``data``.

    16-bit grey values are scaled to 8 bits. Floating-point values in [0, 1] are multiplied by 255.

    Raises:
        SampleError: ``data`` is damaged, absurdly large, not an image of a known format, or has
            values without a known range.
    """
    silence_pil()
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise SampleError(f"has {width} × {height} pixels, more than {MAX_PIXELS:,}")
        if image.info.get("progressive") and has_too_many_scans(data):
            raise SampleError(f"is a JPEG of more than {MAX_SCANS} scans, or of too many markers")
        if image.mode == "F" or image.mode.startswith("I"):
            return Image.fromarray(_grey_HW(image)).convert("RGB")
        if image.mode != "RGB":
            return image.convert("RGB")
        image.load()
        return image
    except SampleError:
        raise
    except UnidentifiedImageError as error:
        raise SampleError("cannot be decoded (no image of a known format)") from error
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SampleError(f"cannot be decoded ({cause})") from error


def has_too_many_scans(data: bytes) -> bool:
    """Whether a JPEG takes little room and much time to decode."""
    at, scans = 2, 0
    for _ in range(_MAX_MARKERS):
        marker = _MARKER.search(data, at)
        if marker is None or marker[1] == _END:
            return False
        at = marker.end() + max(0, int.from_bytes(marker[2], "big") - 2)
        scans += marker[1] == _SCAN
        if scans > MAX_SCANS:
            return True
    return True


def silence_pil() -> None:
    """Keep PIL's warnings about odd metadata off stderr; they do not concern the pixels."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _plain_image(record: bytes, key: str, label: int) -> bytes | None:
    """The image file in a sample of class ``label`` as ``prepare`` writes it.

    None for any other sample: other or further members, extended headers, damage.
    """
    members, offset = {}, 0
    while offset < len(record):
        header = record[offset : offset + _BLOCK]
        name, size = header[:100].partition(b"\0")[0], _member_size(header)
        if size is None or name in members:
            return None
        offset += _BLOCK
        members[name] = record[offset : offset + size]
        offset += -(-size // _BLOCK) * _BLOCK
    stem = key.encode() + b"."
    found = members.pop(stem + b"cls", None)
    is_plain = _PLAIN_KEY.fullmatch(key) and offset == len(record) and len(members) == 1
    if not is_plain or found != str(label).encode():
        return None
    name, image = members.popitem()
    return image if name in [stem + suffix.encode() for suffix in IMAGE_SUFFIXES] else None


def _member_size(header: bytes) -> int | None:
    """The size in a plain ustar header with the right checksum; None for any other header."""
    fields = _PLAIN_HEADER.fullmatch(header, 100)
    if fields is None:
        return None
    # The lower half of Adler-32 is one more than the sum of at most 256 bytes.
    halves = header[:256], header[256:]
    total = sum((zlib.adler32(half) & 0xFFFF) - 1 for half in halves)
    checksum = total - sum(header[148:156]) + 8 * ord(" ")
    return int(fields[1], 8) if checksum == int(fields[2], 8) else None


def _grey_HW(image: Image.Image) -> np.ndarray:
    """8-bit values of a grey image of 16 or 32 bits; PIL alone would cut them off at 255."""
    value_HW = np.asarray(image)
    if image.mode.startswith("I;16") or image.format == "PPM" and image.mode == "I":
        return _from_16_bits(value_HW)
    lowest, highest = float(value_HW.min()), float(value_HW.max())
    if lowest >= 0 and image.mode == "F" and highest <= 1:
        return (value_HW * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    if lowest >= 0 and highest <= 255:
        return value_HW.astype(np.uint8)
    if lowest >= 0 and image.mode == "I" and highest <= 65535:
        return _from_16_bits(value_HW)
    raise SampleError(
        f"has grey values from {lowest:g} to {highest:g}, of no known range; "
        "convert it to 8 bits, or to floating-point values from 0 to 1"
    )


def _from_16_bits(value_HW: np.ndarray) -> np.ndarray:
    levels = np.arange(1 << 16, dtype=np.uint32)
    return ((levels * 255 + 32767) // 65535).astype(np.uint8)[value_HW]


def image_suffix(data: bytes) -> str:
    """The file suffix for the format of ``data``, whatever the name of its file."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
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
