"""MATLAB files of level 5 as lines of text. Cars, Flowers and ImageNet have their labels in them.

Nothing in a file is executed. ``scipy.io.loadmat`` is not used: it crashes the process on files
that are damaged at random (SciPy 1.17.1, segmentation fault within 6,000 files).

Source: "MAT-File Format" of MathWorks, chapter "Level 5 MAT-File Format".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.data.prepare.source_images import file_errors_named
from pipeline.errors import DataError

SUFFIX = ".mat"

_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_CELL, _STRUCT, _CHAR = 1, 2, 4  # classes of matrices
_NUMERIC = range(6, 16)
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_LARGEST = 16 << 20  # bytes of a file after decompression; the known ones have at most 7 MB
_MOST_LINES = 1 << 20


def matlab_text(data: bytes, place: str) -> str:
    """The variables of a file, a line for each of their elements, which are counted from 1.

    A number or text is ``<variable> <position> <value>``; an element of a struct array is
    ``<variable> <position> <field>=<value> <field>=<value> …``, without the fields that are arrays.

    Raises:
        DataError: the file is damaged, too large, or of another level.
    """
    with file_errors_named(place, "download it again, or save it with MATLAB's option -v7"):
        lines: list[str] = []
        for name, values in _variables(data):
            if len(lines) + len(values) > _MOST_LINES:
                raise DataError(f"{place}: has more than {_MOST_LINES:,} values; it is no list")
            lines += [f"{name} {n} {_format(value)}" for n, value in enumerate(values, start=1)]
        return "\n".join(lines)


def _variables(data: bytes) -> Iterator[tuple[str, Sequence[Any]]]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None or struct.unpack(order + "H", data[124:126])[0] != 0x0100:
        raise ValueError("not a MATLAB file of level 5")
    left = _LARGEST
    for kind, content in _elements(memoryview(data)[_HEADER:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            content = memoryview(unpacker.decompress(content, left + 1))
            if not unpacker.eof and len(content) <= left:
                raise ValueError("cut off")
        left -= len(content)
        if left < 0:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        if kind == _COMPRESSED:
            kind, content = next(_elements(content, order))
        if kind == _MATRIX:
            yield _matrix(content, order)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each data element in ``data``."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(order + "II", data, position)
        start, end = position + 8, position + 8 + size
        if kind >> 16:  # a small element: four bytes of type and size, four of content
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
            end = position + 8
        if start + size > min(end, len(data)):
            raise ValueError("cut off")
        yield kind, data[start : start + size]
        position = end if kind == _COMPRESSED else end + -end % 8


def _matrix(data: memoryview, order: str) -> tuple[str, Sequence[Any]]:
    """Name and elements of an array, column by column; a text is one element."""
    if not len(data):
        return "", []
    (_, flags), _, (_, name), *parts = _elements(data, order)
    kind = struct.unpack(order + "I", flags[:4])[0] & 0xFF
    values: Any = []  # a sequence; of sparse arrays, objects and functions
    if kind in _NUMERIC and parts:
        type_, content = parts[0]
        values = np.frombuffer(content, order + _NUMBERS[type_])
    elif kind == _CHAR and parts:
        type_, content = parts[0]
        encoding = _TEXTS[type_]
        if encoding != "latin-1" and encoding != "utf-8":
            encoding += {"<": "-le", ">": "-be"}[order]
        values = [bytes(content).decode(encoding, "replace")]
    elif kind == _CELL:
        values = [_single(content, order) for _, content in parts]
    elif kind == _STRUCT:
        (_, length), (_, fields), *parts = parts
        size = struct.unpack(order + "i", length)[0]
        names = [bytes(n).split(b"\0")[0].decode() for n in _cut(fields, size)]
        elements = [_single(content, order) for _, content in parts]
        values = [dict(zip(names, row, strict=True)) for row in _cut(elements, len(names))]
    return bytes(name).decode("ascii"), values


def _single(data: memoryview, order: str) -> Any:
    """The only element of an array; None if it has more of them, or none."""
    _, values = _matrix(data, order)
    return values[0] if len(values) == 1 else None


def _cut(values: Any, size: int) -> Iterator[Any]:
    if size < 1 or len(values) % size:
        raise ValueError("a struct without its fields")
    return (values[start : start + size] for start in range(0, len(values), size))


def _format(value: Any) -> str:
    """One line; words are separated by single spaces."""
    if isinstance(value, dict):
        fields = {name: _format(each) for name, each in value.items()}
        return " ".join(f"{name}={text}" for name, text in fields.items() if text)
    if value is None:
        return ""
    text = value if isinstance(value, str) else f"{value:.17g}"
    return " ".join(text.split())
