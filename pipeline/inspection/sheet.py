"""A contact sheet: a row of images per class, below the name of the class.

N images, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import ConfigError
from pipeline.text import printable

MAX_PIXELS = 200_000_000  # of a sheet: 600 MB as RGB
_GAP = 4
_TEXT = 16  # pixels of the letters
_LEAST_SIDE = 128  # smaller images are enlarged by a whole factor, up to this side
# Fonts of usual systems, by their files. Pillow's own font has little more than ASCII.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, eq=False)
class SheetRow:
    """The images of one class: uint8, RGB; ``bad`` are rows that could not be decoded."""

    title: str
    image_NHW3: np.ndarray
    bad: frozenset[int] = frozenset()


def sheet_size(n_rows: int, n_columns: int, image_size: int) -> tuple[int, int]:
    """Width and height of a sheet of images of ``image_size`` pixels a side.

    Raises:
        ConfigError: it would have more than ``MAX_PIXELS``.
    """
    side = image_size * _zoom(image_size)
    width = max(1, n_columns) * (side + _GAP) + _GAP
    height = n_rows * (_TEXT + 3 * _GAP + side) + _GAP
    if width * height > MAX_PIXELS:
        raise ConfigError(
            f"the sheet would have {width:,} × {height:,} pixels, and it may have {MAX_PIXELS:,} "
            "in all; choose fewer --classes or a smaller --per-class"
        )
    return width, height


def draw_sheet(rows: Sequence[SheetRow], image_size: int) -> Image.Image:
    """The sheet of ``rows``, whose images have ``image_size`` pixels a side.

    A character that no font of this machine has is written as ``\\u1234``.

    Raises:
        ConfigError: as :func:`sheet_size`.
    """
    most = max((len(row.image_NHW3) for row in rows), default=0)
    width, height = sheet_size(len(rows), most, image_size)
    side = image_size * _zoom(image_size)
    height_of_row = _TEXT + 3 * _GAP + side
    sheet = Image.new("RGB", (width, height), "white")
    pen, fonts = ImageDraw.Draw(sheet), list(_fonts())
    for number, row in enumerate(rows):
        top = number * height_of_row + _GAP
        _write(pen, (_GAP, top), printable(row.title), fonts, width - 2 * _GAP)
        for column, image_HW3 in enumerate(row.image_NHW3):
            place = column * (side + _GAP) + _GAP, top + _TEXT + 2 * _GAP
            image = Image.fromarray(image_HW3).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, place)
            if column in row.bad:
                left, upper = place[0] + 2, place[1] + 2
                right, lower = left + side - 5, upper + side - 5
                pen.line((left, upper, right, lower), fill="red", width=2)
                pen.line((left, lower, right, upper), fill="red", width=2)
    return sheet


def _zoom(image_size: int) -> int:
    return max(1, _LEAST_SIDE // image_size)


def _fonts() -> Iterator[_Font]:
    for file in _FONTS:
        try:
            yield ImageFont.truetype(file, _TEXT)
        except OSError:  # this machine lacks it
            continue
    yield ImageFont.load_default(_TEXT)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    fonts: Sequence[_Font],
    width: int,
) -> None:
    """Write ``text`` with the font that lacks fewest of its characters, cut to ``width`` pixels."""
    font = min(fonts, key=lambda each: sum(not _has(each, letter) for letter in set(text)))
    text = "".join(
        letter if _has(font, letter) else letter.encode("ascii", "backslashreplace").decode()
        for letter in text
    )
    shown = text
    while shown and pen.textlength(shown + ("" if shown == text else "…"), font) > width:
        shown = shown[:-1]
    ellipsis = "" if shown == text else "…" if _has(font, "…") else "..."
    pen.text(place, shown + ellipsis, "black", font)


def _has(font: _Font, letter: str) -> bool:
    """Whether the font draws ``letter`` and not its sign for a character that it lacks."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return letter.isascii()
    missing, drawn = font.getmask("\U0010fffe"), font.getmask(letter)
    return letter == " " or (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))
