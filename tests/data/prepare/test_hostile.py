"""Damaged files of every kind end in a sentence, and small files cannot fill the memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.data.index import read_index
from pipeline.data.prepare.archive_sources import ZipSource
from pipeline.data.prepare.encoding import encode_image_file, encode_rows
from pipeline.data.prepare.folder_source import read_image_file
from pipeline.data.prepare.listing import Row, read_classes, sort_rows
from pipeline.data.prepare.parallel import map_in_order
from pipeline.data.prepare.parquet_source import ParquetSource
from pipeline.data.prepare.source_images import SourceImage
from pipeline.data.prepare.splits import SplitChoice
from pipeline.errors import ConfigError, StorageError
from pipeline.prepare import main
from tests.fuzz import bounded_memory
from tests.shards import draw_image_file

IMAGES = {
    f"{split}/ant/{row}.jpg": draw_image_file(split == "test", row)
    for split in ("train", "test")
    for row in range(3)
}


def shard(source: Path, out: Path, *options: object) -> int:
    arguments = ["shard", "--source", source, "--out", out, "--jobs", 1, *options]
    return main([str(argument) for argument in arguments])


def write_zip(path: Path, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in IMAGES.items():
            archive.writestr(name, data)
        return archive.infolist()[1]


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in IMAGES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


# One damaged image never ends the command with --on-bad skip


def test_damaged_member_of_a_zip_costs_one_image(tmp_path, capsys):
    entry = write_zip(tmp_path / "x.zip")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    start = entry.header_offset + 30 + len(entry.filename) + 20
    data[start : start + 60] = bytes(60)
    (tmp_path / "x.zip").write_bytes(data)
    assert shard(tmp_path / "x.zip", tmp_path / "out") == 2
    assert "error: train/ant/1.jpg cannot be read" in (error := capsys.readouterr().err)
    assert "--on-bad skip" in error
    assert shard(tmp_path / "x.zip", tmp_path / "out", "--on-bad", "skip") == 0
    assert read_index(str(tmp_path / "out")).count("train") == {0: 2}
    table = " ".join(capsys.readouterr().out.split())
    assert "read 5 refused: it cannot be used as an image 1" in table


def test_encrypted_member_of_a_zip_costs_one_image(tmp_path):
    entry = write_zip(tmp_path / "x.zip")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[entry.header_offset + 6] |= 1
    place = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[place + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert shard(tmp_path / "x.zip", tmp_path / "out", "--on-bad", "skip") == 0


@pytest.mark.parametrize("name", ["gone.jpg", "folder.jpg", "nul\0.jpg", "x" * 300 + ".jpg"])
def test_file_of_a_table_that_cannot_be_read_costs_one_image(tmp_path, capsys, name):
    (tmp_path / "folder.jpg").mkdir()
    lines = []
    for path, data in IMAGES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
        lines.append(json.dumps({"path": path, "label": "ant", "split": path.split("/")[0]}))
    lines.append(json.dumps({"path": name, "label": "ant", "split": "train"}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert shard(tmp_path / "a.jsonl", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert shard(tmp_path / "a.jsonl", tmp_path / "out", "--on-bad", "skip") == 0


def test_damaged_row_group_of_parquet_costs_its_images(tmp_path, capsys):
    rng = np.random.default_rng(1)
    images = [draw_image_file(row, kind="PNG") for row in range(6)] + [rng.bytes(9)]
    for split in ("train", "test"):
        table = pyarrow.table({"image": images[: 6 + (split == "train")],
                               "label": ["ant"] * (6 + (split == "train"))})  # fmt: skip
        pyarrow.parquet.write_table(
            table, tmp_path / f"{split}.parquet", row_group_size=2, compression="zstd",
            use_dictionary=False,
        )  # fmt: skip
    file = tmp_path / "train.parquet"
    group = pyarrow.parquet.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    middle = group.data_page_offset + group.total_compressed_size // 2
    data[middle : middle + 140] = bytes(140)
    file.write_bytes(data)
    assert shard(tmp_path, tmp_path / "out", "--on-bad", "skip") == 0
    assert read_index(str(tmp_path / "out")).count("train") == {0: 4}
    assert "refused: it cannot be used as an image          3" in capsys.readouterr().out


# Archives


@pytest.mark.parametrize("where", ["header", "end", "boundary"])
def test_tar_that_is_damaged_or_cut_off_is_refused(tmp_path, capsys, where):
    """must hold in the middle too, where tarfile ends in silence"""
    write_tar(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        offset = tar.getmembers()[3].offset
    data = bytearray((tmp_path / "x.tar").read_bytes())
    if where == "header":
        data[offset + 10] ^= 1
    else:
        del data[offset + (700 if where == "end" else 0) :]
    (tmp_path / "x.tar").write_bytes(data)
    assert shard(tmp_path / "x.tar", tmp_path / "out") == 2
    assert "copy or download it again" in capsys.readouterr().err


def test_tar_whose_sizes_lead_back_ends(tmp_path, capsys):
    header = tarfile.TarInfo("train/ant/0.jpg").tobuf(tarfile.GNU_FORMAT)
    size = (-1024).to_bytes(12, "big", signed=True)
    header = header[:124] + size + header[136:148] + b" " * 8 + header[156:]
    total = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes((header[:148] + total + header[156:]) * 4 + bytes(10240))
    assert shard(tmp_path / "x.tar", tmp_path / "out") == 2
    assert "error: " in capsys.readouterr().err


def test_size_limit_is_asked_of_images_only(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in IMAGES.items():
            archive.writestr(name, data)
        for name in ("features.npy", "train/ant/big.jpg"):
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(300):
                    member.write(bytes(1 << 20))
    with bounded_memory("zip", (tmp_path / "x.zip").stat().st_size):
        assert shard(tmp_path / "x.zip", tmp_path / "out") == 2
        assert "train/ant/big.jpg has 314,572,800 bytes" in capsys.readouterr().err
        assert shard(tmp_path / "x.zip", tmp_path / "out", "--on-bad", "skip") == 0


# Bombs


def test_zip_member_that_hides_its_size_is_bounded(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("train/ant/0.jpg", "w", force_zip64=True) as member:
            for _ in range(600):
                member.write(bytes(1 << 20))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 1000)  # it claims 1,000 bytes
    path.write_bytes(data)
    with bounded_memory("zip that hides its size", len(data), 100 << 20):
        with pytest.raises(SampleError):
            ZipSource(str(path)).read(SourceImage("train", "ant", "0.jpg", "train/ant/0.jpg"))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_that_cannot_be_read_in_pieces_is_refused(tmp_path, capsys, method):
    """must hold, since 40 bytes of bzip2 can describe 45 MB"""
    write_zip(tmp_path / "x.zip", method)
    assert shard(tmp_path / "x.zip", tmp_path / "out") == 2
    assert "unpack the zip and give the folder" in capsys.readouterr().err


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", head), *chunks, (b"IEND", b""))
    )


def bomb(kind: str) -> bytes:
    zeros = zlib.compress(bytes(1 << 29), 1)
    if kind == "PNG, wide":
        return png(100_000, 100_000, (b"IDAT", zeros))
    if kind == "PNG, more pixels than it has":
        return png(64, 64, (b"IDAT", zeros))
    if kind == "PNG, text":
        return png(64, 64, (b"zTXt", b"a\0\0" + zeros), (b"IDAT", zlib.compress(bytes(64 * 193))))
    file = io.BytesIO()
    image = Image.new("L", (12_000, 12_000))
    if kind == "TIFF":
        image.save(file, "TIFF", compression="tiff_adobe_deflate")
    elif kind == "GIF":
        image.save(file, "GIF")
    elif kind == "WEBP":
        image.convert("RGB").save(file, "WEBP", lossless=True, method=0)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["PNG, wide", "PNG, more pixels than it has", "PNG, text", "TIFF", "GIF", "WEBP"],
)
def test_image_that_decompresses_to_gigabytes_is_bounded(kind):
    data = bomb(kind)
    with bounded_memory(kind, len(data)), contextlib.suppress(SampleError):
        encode_image_file(data, None)


def of_size(kind: str, width: int, height: int) -> bytes:
    """A small image file that claims to be ``width × height`` pixels large."""
    data = draw_image_file(1, kind=kind)
    sizes = {
        "JPEG": (b"\xff\xc0", 5, ">HH", (height, width)),
        "BMP": (b"BM", 18, "<ii", (width, height)),
        "AVIF": (b"ispe", 8, ">II", (width, height)),
        "HEIF": (b"ispe", 8, ">II", (width, height)),
        "PPM": (b"P6", 3, "5s1s5s", (b"%d" % width, b" ", b"%d" % height)),
    }
    mark, offset, form, values = sizes[kind]
    start = data.index(mark) + offset
    claimed = struct.pack(form, *values)
    length = len(b"29 23") if kind == "PPM" else len(claimed)
    return data[:start] + claimed + data[start + length :]


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "AVIF", "HEIF", "PPM"])
def test_image_that_claims_gigabytes_is_refused(kind):
    pillow_heif.register_heif_opener()
    data = of_size(kind, 60_000, 59_999)
    with bounded_memory(f"{kind} of a claimed size", len(data)), pytest.raises(SampleError):
        encode_image_file(data, None)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_compressed_tar_is_refused_unread(tmp_path, capsys, suffix):
    path = tmp_path / f"x.tar.{suffix}"
    with tarfile.open(path, f"w:{suffix}") as tar:
        member = tarfile.TarInfo("train/ant/0.jpg")
        member.size = 300 << 20
        tar.addfile(member, open("/dev/zero", "rb"))
    with bounded_memory(f"tar.{suffix}", path.stat().st_size, 50 << 20):
        assert shard(path, tmp_path / "out") == 2
    assert "a compressed archive cannot be read in place" in capsys.readouterr().err


@pytest.mark.parametrize("compression", ["zstd", "gzip", "snappy"])
def test_parquet_with_labels_of_gigabytes_is_refused(tmp_path, capsys, compression):
    label = pyarrow.array(["x" * (200 << 20), "y" * (200 << 20)])
    table = pyarrow.table({"image": [draw_image_file(1), draw_image_file(2)], "label": label})
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(table, path, compression=compression, use_dictionary=False)
    del table, label
    with bounded_memory(f"Parquet labels, {compression}", path.stat().st_size):
        assert shard(path, tmp_path / "out") == 2
    assert "labels of 419,430,4" in capsys.readouterr().err


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_that_repeats_one_large_value_is_bounded(tmp_path, as_struct):
    value = draw_image_file(1) + bytes(20 << 20)
    rows = 400  # 8 GB, in a file of a few kB
    indices = pyarrow.array([0] * rows, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([value], pyarrow.binary()))
    if as_struct:
        column = pyarrow.StructArray.from_arrays([column], ["bytes"])
    table = pyarrow.table({"image": column, "label": ["ant"] * rows})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", compression="zstd")
    del table, column
    source = ParquetSource(str(tmp_path / "train.parquet"))
    images = source.list_images(SplitChoice()).images
    rows_ = sort_rows(images[:8], read_classes(None, images)[1])
    kind = "Parquet, struct" if as_struct else "Parquet"
    with bounded_memory(kind, (tmp_path / "train.parquet").stat().st_size):
        assert len(list(encode_rows(source, rows_, resize=None, jobs=1))) == 8


def test_parquet_that_claims_a_billion_rows_is_refused(tmp_path, capsys):
    labels = pyarrow.array([1], pyarrow.int32()).take(pyarrow.array([0] * 3_000_000))
    table = pyarrow.table({"image": pyarrow.array([b""] * 3_000_000), "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", compression="zstd")
    assert shard(tmp_path / "train.parquet", tmp_path / "out") == 2
    assert "claims 3,000,000 rows in" in capsys.readouterr().err


def test_pickle_that_describes_a_huge_list_is_refused(tmp_path, capsys):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    nested: list[object] = [0] * 10
    for _ in range(9):
        nested = [nested] * 10
    for name, content in (
        ("meta", {b"fine_label_names": [b"ant"]}),
        ("train", {b"data": nested, b"fine_labels": nested}),
        ("test", {b"data": nested, b"fine_labels": nested}),
    ):
        (folder / name).write_bytes(pickle.dumps(content, 2))
    with bounded_memory("CIFAR, pickle", (folder / "train").stat().st_size):
        assert shard(folder, tmp_path / "out") == 2
    assert "does not have a label and 3072 bytes for each image" in capsys.readouterr().err


def test_negative_labels_of_cifar_are_refused(tmp_path, capsys):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"ant"]}, 2))
    content = {b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [-1]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(content, 2))
    assert shard(folder, tmp_path / "out") == 2
    assert "error: " in capsys.readouterr().err


# Tables


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'path,label,split\n"a.jpg,ant,train\nb.jpg,ant,test\n', "close every quote"),
        (b"path,label,split\na,b.jpg,ant,train\n", "line 2: has more fields than the first line"),
        (b"path,label,split\na.jpg,ant\n", "line 2: has no split"),
        (b"path,label,split\n", "lists no image"),
        (b"path,path,label,split\na,b,c,train\n", "has the column path twice"),
        (b"\xe9path,label,split\n", 'is not text in UTF-8 .* "CSV UTF-8"'),
        (b"path,label,split\n" + b"x" * 200_000 + b",ant,train\n", "cannot be read as CSV"),
        (b"path,label\na.jpg,ant\n", "no column split.*--test-fraction 0.2"),
        (b"", "has no column label, path, split"),
        (b"\0\0\0", "has no column label, path, split"),
    ],
)
def test_csv_that_cannot_be_read_is_explained(tmp_path, capsys, data, words):
    (tmp_path / "a.csv").write_bytes(data)
    assert shard(tmp_path / "a.csv", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_of_every_spreadsheet_is_read(tmp_path, newline, separator, encoding):
    rows = [["path", "label", "split"]]
    for path, data in IMAGES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
        rows.append([path, "über ant", path.split("/")[0].upper()])
    text = newline.join(separator.join(row) for row in rows) + newline
    (tmp_path / "a.Csv").write_bytes(text.encode(encoding))
    assert shard(tmp_path / "a.Csv", tmp_path / "out") == 0
    index = read_index(str(tmp_path / "out"))
    assert index.class_names == ("über ant",) and index.count("train") == {0: 3}


def test_backslashes_of_another_system_are_named(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("path,label,split\ntrain\\ant\\0.jpg,ant,train\n")
    assert shard(tmp_path / "a.csv", tmp_path / "out") == 2
    assert "write paths with / instead of \\" in capsys.readouterr().err


# Advice that leads to success


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.xz", "tar.bz2"])
def test_advice_about_a_compressed_tar_leads_to_success(tmp_path, capsys, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"ant", b"bee"]}, 2))
    for name in ("train", "test"):
        pixel_N = np.random.default_rng([name == "test"]).integers(0, 256, (4, 3072), np.uint8)
        content = {b"data": pixel_N, b"fine_labels": [0, 1, 0, 1]}
        (folder / name).write_bytes(pickle.dumps(content, 2))
    archive = tmp_path / f"cifar-100-python.{suffix}"
    mode = {"tgz": "gz"}.get(suffix, suffix.rpartition(".")[2])
    with tarfile.open(archive, f"w:{mode}") as tar:
        tar.add(folder, folder.name)
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        tar.add(folder, folder.name)
    folder.rename(tmp_path / "away")
    assert shard(tmp_path / "plain.tar", tmp_path / "out") == 2
    assert "unpack it, and give the folder cifar-100-python" in capsys.readouterr().err
    assert shard(archive, tmp_path / "out") == 2
    advice = re.search("`(.*)`, then --source (.*)\n", capsys.readouterr().err)
    subprocess.run(advice[1], shell=True, check=True)
    assert shard(Path(advice[2]), tmp_path / "out") == 0
    assert read_index(str(tmp_path / "out")).class_names == ("ant", "bee")


# The environment


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_process_is_explained():
    with pytest.raises(ConfigError, match="--jobs 2 was killed, probably for lack of memory"):
        list(map_in_order(die, range(4), jobs=2))


@pytest.mark.parametrize("jobs", [0, -1])
def test_number_of_processes_is_checked(tmp_path, capsys, jobs):
    assert shard(tmp_path, tmp_path / "out", "--jobs", jobs) == 2
    assert f"--jobs {jobs} is not a number of processes" in capsys.readouterr().err


def test_missing_folder_for_temporary_files_is_named(tmp_path, monkeypatch):
    table = pyarrow.table({"image": [draw_image_file(1)], "label": ["ant"]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    source = ParquetSource(str(tmp_path / "train.parquet"))
    image = source.list_images(SplitChoice()).images[0]
    with pytest.raises(StorageError, match="no folder for temporary files .*set TMPDIR"):
        list(encode_rows(source, [Row(image, 0, "a")], resize=None, jobs=1))


def test_dead_storage_ends_the_command_also_with_skip(tmp_path, monkeypatch):
    """must not leave out every image of a source that cannot be reached"""

    def fail(url: str, **options: object) -> bytes:
        raise StorageError("cannot read: no connection")

    monkeypatch.setattr(storage, "read_bytes", fail)
    monkeypatch.setattr(storage, "exists", fail)
    with pytest.raises(StorageError):
        read_image_file("s3://bucket/a.jpg")
