"""Drawn data sets: any number of classes with different names, equal bytes each time."""

from __future__ import annotations

from pipeline.bench.drawn import class_names, write_drawn
from pipeline.data.index import read_index


def test_ten_thousand_classes_have_different_names():
    names = class_names(10_000)
    assert len(set(names)) == len(names) == 10_000
    assert class_names(5) == names[:5]


def test_drawn_images_are_a_data_set(tmp_path):
    write_drawn(str(tmp_path), [1, 3], [2, 1], side=21)
    index = read_index(str(tmp_path))
    assert index.count("train") == {0: 1, 1: 3} and index.count("test") == {0: 2, 1: 1}
    write_drawn(str(tmp_path / "again"), [1, 3], [2, 1], side=21)
    assert read_index(str(tmp_path / "again")).sha256 == index.sha256
