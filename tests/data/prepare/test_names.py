"""Class names and labels are checked where they enter; the order of classes is the natural one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.data.index import read_index
from pipeline.data.prepare.listing import read_classes, sort_folders
from pipeline.data.prepare.source_images import SourceImage
from pipeline.errors import DataError
from pipeline.prepare import main
from tests.shards import draw_image_file


def classes_of(*folders: str) -> tuple[list[str], list[str]]:
    return read_classes(None, [SourceImage("train", folder, "0.jpg") for folder in folders])


@pytest.mark.parametrize(
    "folders",
    [
        ("sea_lion", "sea lion"),
        ("Crane", "crane"),
        ("a  b", "a b"),
        ("caf\u00e9", "cafe\u0301"),
        ("cat &amp; dog", "cat & dog"),
        ("ox", "ox "),
    ],
)
def test_equal_names_of_two_classes_are_refused_with_both_folders(folders):
    with pytest.raises(DataError, match="have the same name for the text tower") as caught:
        classes_of("zebra", *folders)
    assert all(repr(folder) in str(caught.value) for folder in folders)
    assert "--names" in str(caught.value)


@pytest.mark.parametrize("folder", ["", " ", "_", "a\x00b", "\u200b"])
def test_blank_names_are_refused(folder):
    with pytest.raises(DataError, match="is blank or cannot be printed"):
        classes_of("ant", folder)


@pytest.mark.parametrize("name", ["نیم‌فاصله", "東京", "l'étoile №5", "C++"])
def test_names_of_other_scripts_are_kept(name):
    assert classes_of(name, "ant")[0].count(name) == 1


def test_names_in_a_list_are_checked_too(tmp_path):
    images = [SourceImage("train", folder, "0.jpg") for folder in ("n1", "n2")]
    names = tmp_path / "names.json"
    names.write_text(json.dumps([{"name": "crane", "folder": f} for f in ("n1", "n2")]))
    with pytest.raises(DataError, match="names.json: classes 'n1' and 'n2' have the same name"):
        read_classes(str(names), images)
    names.write_text(json.dumps([{"name": None, "folder": f} for f in ("n1", "n2")]))
    with pytest.raises(DataError, match="is not a JSON list"):
        read_classes(str(names), images)


@pytest.mark.parametrize(
    ("folders", "order"),
    [
        (["10", "9", "1", "100"], ["1", "9", "10", "100"]),
        (["-1", "3", "12"], ["-1", "3", "12"]),
        (["002", "010", "001"], ["001", "002", "010"]),
        (["10", "9", "ant"], ["10", "9", "ant"]),
        (["class10", "class9"], ["class10", "class9"]),
        (["b", "a", "B"], ["B", "a", "b"]),
    ],
)
def test_whole_numbers_are_sorted_by_value_and_others_as_text(folders, order):
    assert sort_folders(folders) == order


# Tables


def write_table(folder: Path, labels: list[Any]) -> Path:
    (folder / "0.jpg").write_bytes(draw_image_file(1))
    (folder / "1.jpg").write_bytes(draw_image_file(2))
    rows = [
        {"path": f"{i}.jpg", "label": label, "split": "train"} for i, label in enumerate(labels)
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "a.jsonl"


@pytest.mark.parametrize("label", [None, "", "  ", 1.5, float("nan"), True, [1], {"a": 1}])
def test_label_of_a_table_that_is_no_text_is_refused(tmp_path, capsys, label):
    source = write_table(tmp_path, ["ant", label])
    assert main(["shard", "--source", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "a.jsonl, line 2: " in capsys.readouterr().err


def test_spaces_around_a_label_do_not_make_another_class(tmp_path):
    source = write_table(tmp_path, ["ant", " ant "])
    assert main(["shard", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    assert read_index(str(tmp_path / "out")).class_names == ("ant",)


# Parquet


def write_parquet(folder: Path, labels: Any, names: list[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        images = [draw_image_file(split == "test", row) for row in range(len(labels))]
        table = pyarrow.table({"image": images, "label": labels})
        if names is not None:
            features = {"label": {"_type": "ClassLabel", "names": names}}
            text = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": text})
        pyarrow.parquet.write_table(table, folder / f"{split}-0.parquet")
    return folder


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0, None, 1], None, "test-0.parquet, row 1: has no label"),
        (["ant", None], None, "row 1: has no label"),
        ([0, -1], ["ant", "bee"], "row 1: has the label '-1', which is not one of its 2 class"),
        ([0, 2], ["ant", "bee"], "has the label '2'"),
        ([[0], [1]], None, r"has the label '\[0\]', which is no text or whole number"),
        ([0.5, 1.0], None, "has the label '0.5'"),
        ([True, False], None, "has the label 'True'"),
        ([0, 1], ["ant", "ant"], "does not name each class once"),
        ([0, 1], ["t_shirt", "t shirt"], "have the same name for the text tower"),
    ],
)
def test_label_of_parquet_that_names_no_class_is_refused(tmp_path, capsys, labels, names, words):
    source = write_parquet(tmp_path / "in", labels, names)
    assert main(["shard", "--source", str(source), "--out", str(tmp_path / "out")]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", ["owl", 2])
def test_label_of_parquet_that_another_file_does_not_name_is_refused(tmp_path, capsys, label):
    source = write_parquet(tmp_path / "in", [0, 1], ["ant", "bee"])
    table = pyarrow.table({"image": [draw_image_file(9)], "label": [label]})
    pyarrow.parquet.write_table(table, source / "test-0.parquet")
    assert main(["shard", "--source", str(source), "--out", str(tmp_path / "out")]) == 2
    words = f"test-0.parquet, row 0: has the label '{label}', which is not one of the 2 class names"
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "names", "order"),
    [
        ([2, 0, 1], ["owl", "newt", "asp"], ("owl", "newt", "asp")),
        ([2, 0, 2], ["owl", "newt", "asp"], ("owl", "asp")),
        ([10, 9, 100], None, ("9", "10", "100")),
        (["b", "a", "c"], None, ("a", "b", "c")),
        ([b"b", b"a", b"c"], None, ("a", "b", "c")),
    ],
)
def test_classes_of_parquet_keep_their_order(tmp_path, capsys, labels, names, order):
    source = write_parquet(tmp_path / "in", labels, names)
    assert main(["shard", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    assert read_index(str(tmp_path / "out")).class_names == order
    unused = "classes that the source names, without an image: 'newt'"
    assert (unused in capsys.readouterr().out) == (len(order) == 2)


def test_unlabelled_split_can_be_left_out(tmp_path):
    source = write_parquet(tmp_path / "in", [0, 1, 0], ["ant", "bee"])
    unlabelled = pyarrow.table({"image": [draw_image_file(9)], "label": [-1]})
    pyarrow.parquet.write_table(unlabelled, source / "test-0.parquet")
    images = [draw_image_file(7, row) for row in range(2)]
    table = pyarrow.table({"image": images, "label": ["ant", "bee"]})
    pyarrow.parquet.write_table(table, source / "validation-0.parquet")
    arguments = ["shard", "--source", str(source), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--splits", "train=train,test=validation"]) == 0
    assert read_index(str(tmp_path / "out")).count("test") == {0: 1, 1: 1}
