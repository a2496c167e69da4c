"""MATLAB files as lines of text, against files that SciPy writes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.prepare.matlab_file import matlab_text
from pipeline.errors import DataError
from tests.fuzz import bounded_memory, count_refused


def matlab_file(variables: dict[str, Any], *, compressed: bool = True) -> bytes:
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def struct_array(fields: str, *rows: tuple[Any, ...]) -> np.ndarray:
    values = np.zeros((1, len(rows)), [(name, object) for name in fields.split()])
    values[0] = list(rows)
    return values


CARS = {
    "annotations": struct_array(
        "bbox_x1 class fname", (np.uint16(39), 14, "00001.jpg"), (np.uint16(1), 3, "00002.jpg")
    )
}


@pytest.mark.parametrize("compressed", [True, False])
def test_every_element_is_a_line(compressed):
    """must have numbers, texts, cells and structs, without the fields that are arrays"""
    variables = CARS | {
        "labels": np.array([[77, 5], [9, 1]], np.uint8),  # column by column
        "half": np.array([0.5]),
        "class_names": np.array([["AM General\n Hummer", "Aßø 日"]], object),
        "synsets": struct_array("id children words", (7, np.arange(3), "a, b")),
        "nothing": np.zeros((0, 0)),
    }
    text = matlab_text(matlab_file(variables, compressed=compressed), "labels.mat")
    assert text.splitlines() == [
        "annotations 1 bbox_x1=39 class=14 fname=00001.jpg",
        "annotations 2 bbox_x1=1 class=3 fname=00002.jpg",
        "labels 1 77",
        "labels 2 9",
        "labels 3 5",
        "labels 4 1",
        "half 1 0.5",
        "class_names 1 AM General Hummer",
        "class_names 2 Aßø 日",
        "synsets 1 id=7 words=a, b",
    ]


@pytest.mark.parametrize("kind", "i1 u1 i2 u2 i4 u4 i8 u8 f4 f8".split())
@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_of_every_type_and_byte_order_are_read(kind, order):
    values = np.array([[3, 100]], order + kind)
    assert matlab_text(matlab_file({"x": values}), "x.mat") == "x 1 3\nx 2 100"


def test_file_of_another_machine_is_read():
    """must follow the byte order that the header states, here written out by hand"""
    numbers = [6, 8, 6, 0, 5, 8, 1, 1]  # flags of class 6, dimensions 1 × 1
    matrix = b"".join(n.to_bytes(4, "big") for n in numbers)
    matrix += bytes([0, 1, 0, 1]) + b"x\0\0\0" + bytes([0, 2, 0, 4, 2, 1, 0, 0])  # 513 as uint16
    header = bytes(124) + b"\1\0MI" + b"".join(n.to_bytes(4, "big") for n in (14, len(matrix)))
    assert matlab_text(header + matrix, "x.mat") == "x 1 513"


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_file_is_refused_or_read(compressed):
    """must never crash the process, as SciPy's reader does"""
    good = matlab_file(CARS, compressed=compressed)
    name = f"MATLAB, compressed: {compressed}"
    assert count_refused(name, good, lambda data: matlab_text(data, "x.mat"), default=200)


@pytest.mark.parametrize("shape", [(1 << 20, 20), (1 << 20, 2)])
def test_bomb_is_refused(shape):
    data = matlab_file({"x": np.zeros(shape, np.uint8)})
    with bounded_memory("MATLAB", len(data)), pytest.raises(DataError, match="more than"):
        matlab_text(data, "x.mat")


@pytest.mark.parametrize("data", [b"", bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_other_file_is_refused_with_the_remedy(data):
    with pytest.raises(DataError, match=r"x\.mat: .*not a MATLAB file of level 5; .* -v7"):
        matlab_text(data, "x.mat")
