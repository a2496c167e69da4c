"""Photos of phones and long strips: upright, converted where the training does not read them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from pipeline.data.decoding import SampleError, open_image
from pipeline.data.index import read_index
from pipeline.data.prepare.encoding import encode_image_file
from pipeline.prepare import main
from tests.shards import draw_image_file


def photo(kind: str, orientation: int | None = None, size: tuple[int, int] = (48, 32)) -> bytes:
    """A smooth image whose corners differ, with an EXIF orientation."""
    width, height = size
    x_W, y_H = np.linspace(0, 200, width), np.linspace(0, 200, height)
    pixel_HWC = np.stack(
        [np.tile(x_W, (height, 1)), np.tile(y_H[:, None], (1, width)), np.full(size[::-1], 90)], -1
    )
    options = {}
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif.tobytes()
    file = io.BytesIO()
    Image.fromarray(pixel_HWC.astype(np.uint8)).save(file, kind, quality=95, **options)
    return file.getvalue()


@pytest.fixture(autouse=True)
def heif():
    pillow_heif.register_heif_opener()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_is_stored_upright(kind, orientation):
    data = photo(kind, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    suffix, stored, tagged = encode_image_file(data, None)
    assert tagged == (orientation > 1)
    if orientation == 1:
        assert stored == data
    image = open_image(stored)
    assert image.size == upright.size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).max() < 12


def test_orientation_can_be_ignored():
    data = photo("JPEG", 6)
    assert encode_image_file(data, None, "ignore") == ("jpg", data, True)


def test_image_is_turned_before_it_is_resized():
    _, stored, _ = encode_image_file(photo("JPEG", 6, (90, 60)), 30)
    assert open_image(stored).size == (30, 45)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_unknown_orientation_is_no_orientation(orientation):
    data = photo("JPEG", orientation)
    assert encode_image_file(data, None) == ("jpg", data, False)


def test_damaged_exif_does_not_make_an_image_unusable():
    data = bytearray(photo("JPEG", 6))
    start = data.index(b"Exif")
    data[start + 6 : start + 20] = b"\xff" * 14
    assert encode_image_file(bytes(data), None)[1] == bytes(data)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [None, 6])
@pytest.mark.parametrize("choice", ["apply", "ignore"])
def test_formats_of_phones_become_jpeg(kind, orientation, choice):
    """must be upright in any case: their turn is a part of the format"""
    data = photo(kind, orientation)
    suffix, stored, tagged = encode_image_file(data, None, choice)
    image = open_image(stored)
    assert (suffix, tagged) == ("jpg", False)
    assert image.size == ((32, 48) if orientation else (48, 32))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).max() < 12


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_damaged_photo_is_refused(kind):
    with pytest.raises(SampleError, match="cannot be decoded"):
        encode_image_file(photo(kind)[:-100], None)


@pytest.mark.parametrize("size", [(40, 68_000), (68_000, 40)])
def test_strip_that_is_too_long_for_jpeg_is_stored_as_png(size):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(file, "PNG")
    suffix, stored, _ = encode_image_file(file.getvalue(), 39)
    image = open_image(stored)
    assert suffix == "png" and min(image.size) == 39 and max(image.size) > 64_000


def test_index_and_table_say_what_was_done_with_orientations(tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "in" / split / "ant").mkdir(parents=True)
        place = tmp_path / "in" / split / "ant"
        (place / "a.heic").write_bytes(photo("HEIF", 6, (64, 48) if split == "test" else (48, 64)))
        (place / "b.jpg").write_bytes(photo("JPEG", 8, (60, 40) if split == "test" else (40, 60)))
        (place / "c.jpg").write_bytes(draw_image_file(split == "test"))
    for choice, words in (("apply", "applied"), ("ignore", "ignored")):
        out = tmp_path / choice
        arguments = ["shard", "--source", str(tmp_path / "in"), "--out", str(out), "--jobs", "1"]
        assert main([*arguments, "--orientation", choice]) == 0
        assert read_index(str(out)).orientation == words
        assert "note: 2 images" in capsys.readouterr().out
        assert main(["verify", str(out), "--jobs", "1"]) == 0


def test_resumed_attempt_still_knows_of_orientations(tmp_path, monkeypatch):
    from pipeline import storage
    from pipeline.data.prepare.sharding import Recipe, write_shards

    for split in ("train", "test"):
        for number in range(3):
            place = tmp_path / "in" / split / "ant"
            place.mkdir(parents=True, exist_ok=True)
            data = photo("JPEG", 6 if (split, number) == ("train", 0) else None, (40 + number, 30))
            (place / f"{number}.jpg").write_bytes(data)
    write = storage.write_atomically

    def stop(url: str, data: bytes, **options: object) -> None:
        if Path(url).name == "test-000000.tar":
            raise KeyboardInterrupt
        write(url, data, **options)

    recipe = Recipe(shard_bytes=13_000)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            write_shards(str(tmp_path / "in"), str(tmp_path / "out"), recipe)
    outcome = write_shards(str(tmp_path / "in"), str(tmp_path / "out"), recipe)
    assert outcome.resumed > 0 and outcome.index.orientation == "applied"
