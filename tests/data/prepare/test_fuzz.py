"""Damaged input of every format that `prepare` and the index read: refused, or read right.

With ``FUZZ_INPUTS=2000`` before the command, 2,000 inputs per format.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pipeline import storage
from pipeline.data.index import INDEX_NAME, read_index
from pipeline.data.prepare import archive_sources, cifar_source, parquet_source
from pipeline.data.prepare.encoding import encode_image_file
from pipeline.data.prepare.sharding import Recipe, write_shards
from tests.fuzz import count_refused
from tests.shards import draw_image_file, draw_samples, store

DEFAULT_INPUTS = 40

IMAGES = {
    f"{split}/{name}/{row}.png": draw_image_file(split == "test", name == "ant", row, kind="PNG")
    for split in ("train", "test")
    for name in ("ant", "bee")
    for row in range(2)
}


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in IMAGES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def zip_bytes(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in IMAGES.items():
            archive.writestr(name, data)
    return file.getvalue()


def parquet_bytes(compression: str) -> bytes:
    file = io.BytesIO()
    images = list(IMAGES.values())
    table = pyarrow.table(
        {"image": [{"bytes": data, "path": None} for data in images], "label": [0, 1] * 4}
    )
    pyarrow.parquet.write_table(table, file, compression=compression, row_group_size=3)
    return file.getvalue()


def cifar_pickle() -> bytes:
    pixel_N = np.random.default_rng(1).integers(0, 256, (4, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": pixel_N, b"fine_labels": [0, 1, 1, 0]}, protocol=2)


def cifar_records() -> bytes:
    return np.random.default_rng(1).integers(0, 2, (4, 3074), dtype=np.uint8).tobytes()


def prepare(source: Path, out: Path) -> None:
    """Prepare with --on-bad skip, then read the index."""
    write_shards(str(source), str(out), Recipe(on_bad_image="skip"), overwrite=True)
    read_index(str(out))


def write_in(folder: Path, name: str) -> Callable[[bytes], None]:
    """A reader that prepares ``folder`` with its input as the file ``name``."""

    def read(data: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        archive_sources._open_zip.cache_clear()
        cifar_source._read_cifar.cache_clear()
        parquet_source.open_parquet.cache_clear()
        is_file = name.endswith((".tar", ".zip", ".csv", ".jsonl"))
        prepare(folder / name if is_file else folder, folder.parent / "out")

    return read


def table_readers(folder: Path) -> dict[str, tuple[bytes, Callable[[bytes], None]]]:
    for name, data in IMAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    rows = [{"path": n, "label": n.split("/")[1], "split": n.split("/")[0]} for n in IMAGES]
    lines = ["path,label,split", *(",".join(row.values()) for row in rows)]
    return {
        "csv": ("\n".join(lines).encode(), write_in(folder, "list.csv")),
        "jsonl": ("\n".join(map(json.dumps, rows)).encode(), write_in(folder, "list.jsonl")),
    }


def index_reader(name: str) -> tuple[bytes, Callable[[bytes], None]]:
    """A reader of ``index.json``, or of a table whose hash the index gives right."""
    url = f"memory://{uuid.uuid4().hex}"
    index = store(url, draw_samples())
    index_url = storage.join(url, INDEX_NAME)
    table_url = storage.join(url, index.shards[0].table_name)
    content = json.loads(storage.read_bytes(index_url))

    def read(data: bytes) -> None:
        changed = data
        if name == "table":
            content["shards"][0]["table_sha256"] = hashlib.sha256(data).hexdigest()
            changed = json.dumps(content).encode()
            storage.write_atomically(table_url, data)
        storage.write_atomically(index_url, changed)
        for split in ("train", "test"):
            selection = read_index(url).select(split, [0])
            assert len(selection.keys) == len(selection)

    return storage.read_bytes(index_url if name == "index.json" else table_url), read


def image_reader(data: bytes) -> None:
    encode_image_file(data, 16)


FORMATS = [
    "tar", "zip-stored", "zip-deflated", "csv", "jsonl", "parquet-snappy",
    "parquet-zstd", "cifar-pickle", "cifar-binary", "index.json", "table",
    "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF",
]  # fmt: skip


def reader_of(name: str, folder: Path) -> tuple[bytes, Callable[[bytes], None]]:
    """A good input of a format, and the function that reads it."""
    kind, _, variant = name.partition("-")
    if name in ("csv", "jsonl"):
        return table_readers(folder)[name]
    if name in ("index.json", "table"):
        return index_reader(name)
    if kind == "tar":
        return tar_bytes(), write_in(folder, "x.tar")
    if kind == "zip":
        method = zipfile.ZIP_STORED if variant == "stored" else zipfile.ZIP_DEFLATED
        return zip_bytes(method), write_in(folder, "x.zip")
    if kind == "parquet":
        data = parquet_bytes(variant)
        (folder / "test-0.parquet").write_bytes(data)
        return data, write_in(folder, "train-0.parquet")
    if kind == "cifar":
        names, train, test = ("meta", "train", "test")
        data = cifar_pickle()
        (folder / names).write_bytes(pickle.dumps({b"fine_label_names": [b"ant", b"bee"]}, 2))
        if variant == "binary":
            names, train, test = ("fine_label_names.txt", "train.bin", "test.bin")
            data = cifar_records()
            (folder / "meta").unlink()
            (folder / names).write_text("ant\nbee\n")
        (folder / test).write_bytes(data)
        return data, write_in(folder, train)
    if name == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    return draw_image_file(3, size=(40, 30), kind=name), image_reader


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_input_is_refused_or_read(name, tmp_path, monkeypatch):
    """must hold for every input: no other error, no code that runs, no hang, bounded memory"""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "source"
    folder.mkdir()
    good, read = reader_of(name, folder)
    before = set(os.listdir(tmp_path)) | {"out"}
    assert count_refused(name, good, read, default=DEFAULT_INPUTS)
    assert set(os.listdir(tmp_path)) <= before
