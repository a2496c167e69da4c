"""Requests that want to harm: each is refused in one sentence, and the service answers the next."""

from __future__ import annotations

import io
import pickle
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.fuzz import mutations
from tests.serving.service import Service, draw_image, encode, form_file, read_all, wait_for

GOOD = encode(draw_image(3))
SENTENCE = re.compile(r"[^\n]{10,400}")
REFUSALS = {400, 413, 415}


@pytest.fixture(autouse=True)
def alive(service: Service) -> Iterator[None]:
    """must classify as before, in the same process, without a leftover in the queue"""
    yield
    assert service.predict(GOOD).status == 200
    wait_for(lambda: service.metric("tppt_queue_images") == 0)
    assert service.process.poll() is None


def assert_refused(answer, status: int, words: str) -> None:
    """must be one sentence as JSON, without a traceback"""
    assert answer.status == status, answer.content
    assert SENTENCE.fullmatch(answer.json["error"]) and words in answer.json["error"]
    assert b"Traceback" not in answer.content


def png_of(width: int, height: int) -> bytes:
    """The start of a PNG that declares these sides."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9)))


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: little to send, much to decode."""
    data = encode(Image.new("RGB", (900, 900)), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + count * last + data[-2:]


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.jpg", bytes(1 << 20))
    return file.getvalue()


ONE_BIT = encode(Image.new("1", (30_000, 30_000)), "PNG")  # 110 kB
LARGE_GIF = b"GIF89a" + b"\xff" * 4 + encode(draw_image(1), "GIF")[10:]  # 65535 × 65535

NO_SMALL_IMAGES = {
    "PNG of 10 gigapixels": (png_of(100_000, 100_000), 413, "more than 1,000,000"),
    "PNG with the longest sides": (png_of(2**31 - 1, 2**31 - 1), 413, "more than 1,000,000"),
    "PNG of 1 bit per pixel": (
        ONE_BIT,
        413,
        "more than 1,000,000",
    ),
    "WEBP": (encode(Image.new("RGB", (1001, 1000)), "WEBP"), 413, "1001 × 1000 pixels"),
    "GIF": (
        b"GIF89a" + b"\xff" * 4 + encode(draw_image(1), "GIF")[10:],
        413,
        "more than 1,000,000",
    ),
    "JPEG of many scans": (with_scans(200), 413, "scans"),
    "JPEG of many comments": (GOOD[:2] + b"\xff\xfe\0\2" * 20_000 + GOOD[2:], 413, "markers"),
    "half a JPEG": (GOOD[: len(GOOD) // 2], 400, "cannot be decoded"),
    "JPEG without its end": (GOOD[:-100], 400, "truncated"),
    "PNG without its end": (encode(draw_image(1), "PNG")[:60], 400, "cannot be decoded"),
    "empty": (b"", 400, "empty"),
    "text": (b"hello", 415, "known format: BMP, GIF, JPEG"),
    "pickle": (pickle.dumps({"a": 1}), 415, "known format"),
    "zip": (zip_file(), 415, "known format"),
    "TIFF": (encode(draw_image(1), "TIFF"), 415, "known format"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "known format"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "known format"),
}


@pytest.mark.parametrize(("data", "status", "words"), NO_SMALL_IMAGES.values(), ids=NO_SMALL_IMAGES)
def test_file_that_is_no_small_image_is_refused(service: Service, data, status, words):
    assert_refused(service.predict(data), status, words)
    assert_refused(service.send_form(form_file(data)), status, words)


def test_bytes_of_metadata_are_no_scans(service: Service):
    """must hold for what cameras put behind the image, and for thumbnails before it"""
    noise = b"\xff\xda" * 300
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(noise)) + noise
    assert service.predict(GOOD[:2] + comment + GOOD[2:] + noise).status == 200
    assert service.predict(encode(draw_image(1), "PNG") + noise).status == 200


def test_limit_of_pixels_is_inclusive(service: Service):
    assert service.predict(encode(Image.new("RGB", (1000, 1000)), "PNG")).status == 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_damaged_images_are_classified_or_refused(service: Service, kind):
    data = encode(draw_image(5), kind)
    statuses = {service.predict(damaged).status for damaged in mutations(data, 25, seed=1)}
    assert statuses <= REFUSALS | {200} and statuses & REFUSALS


@pytest.mark.parametrize("kind", ["", "text/html", "application/octet-stream", "multipart/mixed"])
def test_content_that_is_declared_as_no_image_is_refused(service: Service, kind):
    answer = service.request("POST", "/predict", GOOD, {"Content-Type": kind})
    assert_refused(answer, 415, "multipart/form-data")


FIELD = b'Content-Disposition: form-data; name="%d"\r\n\r\nx'


NO_FORMS = {
    "no part": (),
    "another name": (form_file(GOOD, name="file"),),
    "a text": (b'Content-Disposition: form-data; name="image"\r\n\r\ntext',),
    "two files": (form_file(GOOD), form_file(GOOD)),
    "10000 parts": tuple(FIELD % number for number in range(10_000)),
    "a large field": (b'Content-Disposition: form-data; name="a"\r\n\r\n' + bytes(5000),),
    "a part without a name": (b"Content-Disposition: form-data\r\n\r\nx",),
    "a large header": (b"X: " + b"x" * 50_000 + b"\r\n\r\nx",),
    "many headers": (b"\r\n".join(b"X-%d: y" % number for number in range(5000)) + b"\r\n\r\nx",),
    "no header": (b"no header at all",),
}


@pytest.mark.parametrize("parts", NO_FORMS.values(), ids=NO_FORMS)
def test_form_without_exactly_one_image_is_refused(service: Service, parts):
    assert_refused(service.send_form(*parts), 400, "")


def test_form_without_its_boundary_is_refused(service: Service):
    assert_refused(service.send_form(form_file(GOOD), boundary="other"), 400, "")
    headers = {"Content-Type": "multipart/form-data"}
    assert_refused(service.request("POST", "/predict", b"x", headers), 400, "boundary")


# Size and time.


def test_large_upload_is_refused_and_its_client_can_read_why(service: Service):
    """must hold although the client sends all of it before it reads"""
    assert_refused(service.predict(bytes(20_000_000)), 413, "1,000,000 bytes")


def test_upload_that_declares_too_much_is_refused_before_it_is_sent(service: Service):
    with service.begin_upload(bytes(1_000_001), 0) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_endless_upload_in_chunks_is_stopped(service: Service):
    with service.connect() as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        sent, end = 0, time.monotonic() + 30
        with pytest.raises(OSError):  # the service closes the connection
            while time.monotonic() < end:
                connection.sendall(chunk)
                sent += 1
    assert sent > 15, "refused before the limit"


def test_chunked_upload_below_the_limit_is_classified(service: Service):
    assert service.predict(iter([GOOD[:100], GOOD[100:]])).status == 200


def test_slow_upload_is_refused(service: Service):
    with service.begin_upload(GOOD, len(GOOD) - 1) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_full_queue_is_refused_and_empties(service: Service):
    slow = [service.begin_upload(GOOD, 10) for _ in range(6)]
    wait_for(lambda: service.metric("tppt_queue_images") == 6)
    answer = service.predict(GOOD)
    assert_refused(answer, 429, "6 images")
    assert {name.lower() for name in answer.headers} >= {"retry-after"}
    assert service.get("/readyz").status == 503 and service.get("/healthz").status == 200
    for connection in slow:
        connection.sendall(GOOD[10:])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.close()


def test_client_that_leaves_frees_its_place(service: Service):
    for _ in range(12):
        service.begin_upload(GOOD, 10).close()
    wait_for(lambda: service.metric("tppt_queue_images") == 0)


# Not HTTP.


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100_000,
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["tls", "hostless", "header", "headers", "length", "chunk"],
)
def test_request_that_is_not_http_is_refused(service: Service, data):
    with service.connect() as connection:
        try:
            connection.sendall(data)
            found = connection.recv(1 << 16)
        except OSError:  # closed while the rest was sent
            return
        assert found.startswith(b"HTTP/1.1 4"), found


def test_pipelined_requests_are_answered_in_order(service: Service):
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with service.connect() as connection:
        connection.sendall(3 * (request + b"\r\n") + request + b"Connection: close\r\n\r\n")
        assert read_all(connection).count(b'{"status":"ok"}') == 4
