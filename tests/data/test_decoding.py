"""A sample is decoded, or refused with a reason; nothing in it is executed."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

from pipeline.data import decoding
from pipeline.data.decoding import SampleError, decode_sample, image_suffix, open_image
from tests.shards import draw_image_file


class Bomb:
    """Code that runs when the object is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def record(key: str, **members: bytes) -> bytes:
    """The bytes of one sample in a tar."""
    file = io.BytesIO()
    with TarWriter(file, encoder=False, mtime=0) as writer:
        writer.write({"__key__": key, **members})
        size = writer.tarstream.offset
    return file.getvalue()[:size]


def png_header(width: int, height: int) -> bytes:
    """A PNG with a size and without pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_good_sample_is_decoded(kind):
    data = draw_image_file(1, kind=kind)
    image = decode_sample(
        record("ant/1", cls=b"3", **{image_suffix(data): data}), key="ant/1", label=3
    )
    assert image.mode == "RGB" and image.size == (29, 23)
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"cls": b"3", "jpg": draw_image_file(1)[:-200]}, "cannot be decoded .*truncated"),
        ({"cls": b"3", "jpg": b"not an image"}, "cannot be decoded"),
        ({"cls": b"3", "jpg": b""}, "cannot be decoded"),
        ({"cls": b"3", "png": png_header(9_000, 9_000)}, "has 9000 × 9000 pixels, more than"),
        ({"cls": b"3", "png": png_header(100_000, 100_000)}, "cannot be decoded .*10000000000 pix"),
        ({"cls": b"3"}, "has no image member"),
        ({"jpg": draw_image_file(1)}, "has no class member"),
        ({"cls": b"4", "jpg": draw_image_file(1)}, "has class 4 in the shard and 3 in the index"),
        ({"cls": b"three", "jpg": draw_image_file(1)}, "invalid literal"),
    ],
)
def test_bad_sample_is_refused_with_the_reason(members, reason):
    with pytest.raises(SampleError, match=reason):
        decode_sample(record("ant/1", **members), key="ant/1", label=3)


def test_bytes_of_another_sample_are_refused():
    with pytest.raises(SampleError, match="has bee/2 in its place"):
        decode_sample(record("bee/2", cls=b"3", jpg=draw_image_file(1)), key="ant/1", label=3)


@pytest.mark.parametrize(
    "suffix", ["pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "gz", "cbor"]
)
def test_members_that_could_run_code_are_not_read(suffix):
    bomb = pickle.dumps(Bomb())
    members = {"cls": b"3", "jpg": draw_image_file(1), suffix: bomb}
    assert decode_sample(record("ant/1", **members), key="ant/1", label=3).size == (29, 23)
    with pytest.raises(SampleError, match="no image member"):
        decode_sample(record("ant/1", **{"cls": b"3", suffix: bomb}), key="ant/1", label=3)


def grey_file(value_HW: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(value_HW).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_to_eight_bits(kind):
    value_HW = np.array([[0, 128, 129, 257], [32767, 32768, 65534, 65535]], dtype=np.uint16)
    image = open_image(grey_file(value_HW, kind))
    expected_HW = np.round(value_HW / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(image), np.repeat(expected_HW[..., None], 3, axis=2))


def test_sixteen_bit_colour_has_its_upper_eight_bits():
    raw = struct.pack(">6H", 0, 256, 65535, 32768, 513, 65280)
    head = b"P6 2 1 65535\n"
    expected = np.round(np.frombuffer(raw, ">u2") / 257).astype(int).reshape(1, 2, 3)
    assert np.abs(np.asarray(open_image(head + raw)).astype(int) - expected).max() <= 1


def test_float_values_up_to_one_are_multiplied_by_255():
    value_HW = np.linspace(0, 1, 52, dtype=np.float32).reshape(4, 13)
    grey_HW = np.asarray(open_image(grey_file(value_HW, "TIFF")))[..., 0]
    assert np.array_equal(grey_HW, np.floor(value_HW * np.float32(255) + np.float32(0.5)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_wide_values_up_to_255_are_kept(dtype):
    value_HW = np.arange(256, dtype=dtype).reshape(16, 16)
    assert np.array_equal(np.asarray(open_image(grey_file(value_HW, "TIFF")))[..., 0], value_HW)


@pytest.mark.parametrize(
    "value", [-1.0, 256.0, 4095.0, float("nan"), float("inf"), -5, 65536, 1 << 30]
)
def test_values_of_no_known_range_are_refused_with_the_remedy(value):
    dtype = np.int32 if isinstance(value, int) else np.float32
    value_HW = np.array([[0, 1], [2, value]], dtype=dtype)
    with pytest.raises(SampleError, match="of no known range; convert it to 8 bits"):
        open_image(grey_file(value_HW, "TIFF"))


def test_jpeg_of_very_many_scans_is_refused():
    """must be refused before it is decoded: a few megabytes of scans take an hour"""
    file = io.BytesIO()
    Image.new("RGB", (90, 90)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    assert open_image(data).size == (90, 90)
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(SampleError, match="more than 100 scans"):
        open_image(data[:-2] + 200 * last + data[-2:])


def test_postscript_is_refused():
    """must not reach the reader of PIL that starts Ghostscript"""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    with pytest.raises(SampleError, match="cannot be decoded"):
        open_image(script)


@pytest.mark.parametrize("junk", [b"", b"\0" * 1024, b"\xff" * 1536, b"x" * 700])
def test_bytes_that_are_not_a_tar_are_refused(junk):
    with pytest.raises(SampleError):
        decode_sample(junk, key="ant/1", label=3)


def outcome(data: bytes, key: str = "ant/1") -> bytes | str:
    """The pixels of a sample, or the reason why it is refused."""
    try:
        return decode_sample(data, key=key, label=3).tobytes()
    except SampleError as error:
        return re.sub("0x[0-9a-f]{6,}", "0x", str(error))  # webdataset names the stream


def odd_records() -> list[bytes]:
    """Records of one sample: damaged, cut off, and in forms that ``prepare`` does not write."""
    image = draw_image_file(1)
    good, draw = record("ant/1", cls=b"3", jpg=image), np.random.default_rng(3)
    records = [good, good[:-1], good[:-512], good[:1024], good + good, good + bytes(1024), b""]
    for at in [*range(0, 512, 3), *range(1024, 1536, 3), *draw.integers(0, len(good), 40)]:
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(draw.integers(0, 8))
        records.append(bytes(damaged))
        checksum = 256 + sum(damaged[:148]) + sum(damaged[156:512])
        damaged[148:156] = b"%06o\0 " % checksum  # damage that the checksum does not show
        records.append(bytes(damaged))
    for members in (
        {"cls": b"3", "jpg": image, "txt": b"text"},
        {"cls": b" 3\n", "jpg": image},
        {"cls": b"03", "jpg": image},
        {"bmp": draw_image_file(2, kind="BMP"), "cls": b"3"},
        {"cls": b"3", "JPG": image},
        {"cls": b"3", "seg.jpg": image},
        {"cls": b"3", "jpg": image, "png": draw_image_file(2, kind="PNG")},
    ):
        records.append(record("ant/1", **members))
    return records


def test_header_parse_gives_what_webdataset_gives(monkeypatch):
    """must have the same pixels and the same reasons for every record"""
    records = odd_records()
    found = [outcome(data) for data in records]
    assert sum(decoding._plain_image(data, "ant/1", 3) is not None for data in records) > 100
    monkeypatch.setattr(decoding, "_plain_image", lambda record, key, label: None)
    assert [outcome(data) for data in records] == found
    assert sum(isinstance(each, str) for each in found) > 100


@pytest.mark.parametrize(
    "key",
    [
        "ant",
        "a.b/c",
        "a/b.c",
        "__a/b",
        "__a__",
        "a/__b__",
        "a/",
        "über/1",
        "a\nb/c",
        "a" * 150,
        ".",
    ],
)
def test_every_key_is_found_as_webdataset_finds_it(monkeypatch, key):
    data = record(key, cls=b"3", jpg=draw_image_file(1))
    found = outcome(data, key)
    monkeypatch.setattr(decoding, "_plain_image", lambda record, key, label: None)
    assert outcome(data, key) == found


def test_sample_as_prepare_writes_it_needs_no_webdataset(monkeypatch):
    data = record("ant/1", cls=b"3", jpg=draw_image_file(1))
    monkeypatch.setattr(decoding, "DataPipeline", None)
    assert decode_sample(data, key="ant/1", label=3).size == (29, 23)
