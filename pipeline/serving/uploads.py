"""From an untrusted request to the pixels of one image, within limits of size, time and pixels.

Every refusal is an ``HTTPException`` whose detail is one sentence for the client.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import NoReturn

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive
from torch import Tensor

from pipeline.data.decoding import (
    FORMATS,
    MAX_SCANS,
    SampleError,
    has_too_many_scans,
    silence_pil,
)
from pipeline.data.upright import open_upright
from pipeline.text import shorten

FIELD = "image"  # of the form

# Only formats whose header limits the memory of their decoder. 1 kB of TIFF can ask for a tile of
# 1 GB, whatever the size of the image. AVIF and HEIC can declare a smaller size than they code.
_FORMATS = tuple(name for name in FORMATS if name != "TIFF")
_MOST_FIELDS = 16  # of the form, beside the image
_MOST_FIELD_BYTES = 4096
_CLOSED = 499  # the client has gone; nobody reads this status except the metrics


async def read_upload(request: Request, *, most_bytes: int, seconds: float) -> bytes:
    """The image file in a request: its body, or the file ``image`` of a multipart form.

    Reading stops at ``most_bytes`` of the body, declared or not, and after ``seconds``.

    Raises:
        HTTPException: 400, no image or a damaged form; 408, too slow; 413, too large; 415, neither
            an image nor a form.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > most_bytes:
        _refuse_size(most_bytes)
    bounded = Request(request.scope, _bounded(request.receive, most_bytes))
    try:
        data = await asyncio.wait_for(_image_file(bounded), seconds)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the upload took more than {seconds:g} s") from None
    except ClientDisconnect:
        raise HTTPException(_CLOSED, "the client closed the connection") from None
    if not data:
        raise HTTPException(400, "the image file is empty")
    return data


def decode_upload(
    data: bytes, most_pixels: int, preprocess: Callable[[Image.Image], Tensor]
) -> Tensor:
    """``image_CHW``, uint8, of an image file of at most ``most_pixels`` pixels.

    Only the small result leaves this function, so that few large images are in memory.

    Raises:
        HTTPException: 400, damaged; 413, too many pixels or scans; 415, no image of a known format.
    """
    _check_header(data, most_pixels)
    try:
        return preprocess(open_upright(data))
    except SampleError as error:
        raise HTTPException(400, f"the image {error}") from error


async def _image_file(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        return await request.body()
    if kind != "multipart/form-data":
        raise HTTPException(
            415,
            f"the content type is {shorten(kind)!r}; send the image as the body with its content "
            f"type, such as image/jpeg, or as the file {FIELD!r} of a multipart/form-data form",
        )
    async with request.form(
        max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES
    ) as form:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(400, f"the form has no file {FIELD!r}")
        return await file.read()


def _bounded(receive: Receive, most_bytes: int) -> Receive:
    """``receive``, refusing a body of more than ``most_bytes`` as soon as it is known."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most_bytes:
            _refuse_size(most_bytes)
        return message

    return receive_bounded


def _refuse_size(most_bytes: int) -> NoReturn:
    raise HTTPException(413, f"the upload has more than {most_bytes:,} bytes")


def _check_header(data: bytes, most_pixels: int) -> None:
    """Refuse what is no image, or takes too much memory or time, before it is decompressed."""
    silence_pil()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        known = ", ".join(_FORMATS)
        raise HTTPException(415, f"the file is not an image of a known format: {known}") from None
    except Image.DecompressionBombError:
        raise HTTPException(413, f"the image has more than {most_pixels:,} pixels") from None
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        reason = shorten(f"{type(error).__name__}: {error}")
        raise HTTPException(400, f"the image cannot be decoded ({reason})") from error
    if width * height > most_pixels:
        raise HTTPException(
            413, f"the image has {width} × {height} pixels, more than {most_pixels:,}"
        )
    if data.startswith(b"\xff\xd8") and has_too_many_scans(data):
        raise HTTPException(413, f"the JPEG has more than {MAX_SCANS} scans, or too many markers")
