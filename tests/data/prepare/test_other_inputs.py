"""Inputs of a hurried user: other spellings of a table, old archives, files with several images."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.data.index import read_index
from pipeline.data.prepare import folder_source, source_images
from pipeline.data.prepare.encoding import encode_image_file, has_further_images
from pipeline.data.prepare.folder_source import read_image_file
from pipeline.prepare import main
from tests.shards import draw_image_file

NAMES = [f"{split}/{name}/0.jpg" for split in ("train", "test") for name in ("ant", "bee")]
IMAGES = {name: draw_image_file(number) for number, name in enumerate(NAMES)}


def shard(source: Path, out: Path, *options: str) -> int:
    return main(["shard", "--source", str(source), "--out", str(out), "--jobs", "1", *options])


def write_tree(folder: Path) -> Path:
    for name, data in IMAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_table(folder: Path, name: str, header: str = "path,label,split", end: str = "") -> Path:
    write_tree(folder)
    rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in NAMES]
    table = folder / name
    table.write_text("\n".join([header, *rows, end]).replace(",", "\t" if "tsv" in name else ","))
    return table


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "A.TSV"])
@pytest.mark.parametrize("header", ["path,label,split", "Path,LABEL,Split"])
@pytest.mark.parametrize("end", ["", ",,"])
def test_table_of_any_spelling_is_read(tmp_path, name, header, end):
    table = write_table(tmp_path, name, header, end)
    assert shard(table, tmp_path / "out") == 0
    assert read_index(str(tmp_path / "out")).count("train") == {0: 1, 1: 1}


def test_missing_column_is_named_beside_those_that_are_there(tmp_path, capsys):
    assert shard(write_table(tmp_path, "a.csv", "file,label,set"), tmp_path / "out") == 2
    assert "has no column path, split, only file, label, set;" in capsys.readouterr().err


def test_zip_with_backslashes_of_windows_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in IMAGES.items():
            member = zipfile.ZipInfo(name.replace("/", "\\"))
            member.create_system = 0
            archive.writestr(member, data)
    assert shard(tmp_path / "a.zip", tmp_path / "out", "--strict") == 0
    assert read_index(str(tmp_path / "out")).count("test") == {0: 1, 1: 1}


def test_zip_member_of_windows_that_leaves_the_archive_is_refused(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("train\\..\\..\\evil.jpg")
        member.create_system = 0
        archive.writestr(member, b"x")
    assert shard(tmp_path / "a.zip", tmp_path / "out") == 2
    assert "leaves the archive" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["eval", "trainval"])
def test_folder_that_looks_like_a_split_is_named(tmp_path, capsys, name):
    source = write_tree(tmp_path / "in")
    (source / name / "ant").mkdir(parents=True)
    (source / name / "ant" / "0.jpg").write_bytes(draw_image_file(9))
    assert shard(source, tmp_path / "out") == 0
    remedy = f"--splits train=train,test={name}"
    assert remedy in capsys.readouterr().out
    assert shard(source, tmp_path / "out", "--overwrite", *remedy.split()) == 0
    assert read_index(str(tmp_path / "out")).count("test") == {0: 1, 1: 0}


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "AVIF", "MPO"])
def test_first_of_several_images_is_read_and_counted(tmp_path, capsys, kind):
    frames = [Image.open(io.BytesIO(draw_image_file(row))) for row in range(3)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    assert has_further_images(file.getvalue())
    assert not has_further_images(draw_image_file(1, kind="JPEG" if kind == "MPO" else kind))
    source = write_tree(tmp_path / "in")
    (source / "train" / "ant" / f"many.{kind.lower()}").write_bytes(file.getvalue())
    assert shard(source, tmp_path / "out") == 0
    assert "note: 1 files hold several images" in capsys.readouterr().out


def test_resumed_attempt_still_counts_first_images(tmp_path, monkeypatch, capsys):
    source = write_tree(tmp_path / "in")
    frames = [Image.open(io.BytesIO(draw_image_file(row))) for row in range(2)]
    path = source / "train" / "ant" / "0.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    (source / "test" / "bee" / "0.jpg").write_bytes(b"damaged")
    assert shard(source, tmp_path / "out", "--shard-size", "1") == 2
    unfinished = json.loads((tmp_path / "out" / "unfinished.json").read_text())
    assert unfinished["shards"] and unfinished["first_images"] == 1
    assert shard(source, tmp_path / "out", "--shard-size", "1") == 2  # the same work, once more
    assert "damaged" not in capsys.readouterr().out
    (source / "test" / "bee" / "0.jpg").write_bytes(draw_image_file(8))
    assert shard(source, tmp_path / "out", "--shard-size", "1") == 0
    assert "of them from an earlier attempt" in (out := capsys.readouterr().out)
    assert "note: 1 files hold several images" in out


def test_source_without_a_usable_image_is_refused(tmp_path, capsys):
    source = write_tree(tmp_path / "in")
    for name in NAMES:
        (source / name).write_bytes(b"no image")
    assert shard(source, tmp_path / "out", "--on-bad", "skip") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "none of its 4 images can be used (first: train/ant/0.jpg cannot be decoded" in error
    assert not (tmp_path / "out" / "index.json").exists()


def test_library_does_not_speak_of_odd_metadata():
    image = Image.open(io.BytesIO(draw_image_file(1, kind="PNG"))).convert("P")
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode_image_file(file.getvalue(), None)[0] == "png"


def test_remote_file_over_the_limit_is_never_fetched(monkeypatch):
    url = "memory://large/a.jpg"
    storage.write_atomically(url, bytes(1000))
    for module in (folder_source, source_images):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    fetched = []
    read_range = storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda *where: fetched.append(len(read_range(*where))) or b"x" * 101
    )
    with pytest.raises(SampleError, match="has 1,000 bytes; an image file may have 100"):
        read_image_file(url)
    assert fetched == [101]
