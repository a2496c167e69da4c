"""Sources on a real S3 server: a fault of the network never costs an image."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pipeline import storage
from pipeline.data.index import read_index
from pipeline.data.prepare.archive_sources import _open_zip
from pipeline.data.prepare.parquet_source import open_parquet
from pipeline.prepare import main
from tests.services.fault_proxy import Fault, FaultProxy, Schedule
from tests.services.object_store import Bucket
from tests.shards import draw_image_file


def write_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for split in ("train", "test"):
            for row in range(3):
                archive.writestr(f"{split}/ant/{row}.jpg", draw_image_file(row, split == "test"))
    return folder / "photos.zip"


def write_parquet(folder: Path) -> Path:
    for split in ("train", "test"):
        images = [draw_image_file(row, split == "test") for row in range(3)]
        table = pyarrow.table({"image": images, "label": ["ant"] * 3})
        pyarrow.parquet.write_table(table, folder / f"{split}-0.parquet")
    return folder


@pytest.fixture(params=[write_zip, write_parquet])
def source(request, bucket: Bucket, tmp_path: Path) -> str:
    """The URL of a source in the store."""
    written = request.param(tmp_path)
    url = storage.join(bucket.url, written.name)
    if written.is_file():
        storage.write_atomically(url, written.read_bytes())
    else:
        for file in written.iterdir():
            storage.write_atomically(storage.join(url, file.name), file.read_bytes())
    return url


@pytest.fixture
def proxied(bucket: Bucket, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The proxy, through which every client now reaches the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.access.through(fault_proxy.port).endpoint)
    return fault_proxy


def prepare(source: str, out: Path, *options: str) -> int:
    _open_zip.cache_clear()  # as in a new process
    open_parquet.cache_clear()
    arguments = ["shard", "--source", source, "--out", str(out), "--jobs", "1", *options]
    return main([*arguments, "--on-bad", "skip"])


def fail_reads(fault: Fault, *numbers: int) -> Schedule:
    """Inject ``fault`` into the reads of these numbers, counted over all reads of a source."""
    reads = itertools.count()
    return lambda exchange: fault if exchange.extent and next(reads) in numbers else None


@pytest.mark.parametrize("fault", [Fault.ERROR_503, Fault.CUT])
def test_fault_of_the_network_costs_no_image(source, proxied, tmp_path, fault):
    """must not leave out images as damaged, whichever read fails"""
    reads = []
    proxied.schedule = lambda exchange: reads.append(exchange) if exchange.extent else None
    assert prepare(source, tmp_path / "expected") == 0
    expected = read_index(str(tmp_path / "expected")).sha256
    assert len(reads) >= 3
    for number in range(len(reads)):
        proxied.schedule = fail_reads(fault, number)
        out = tmp_path / f"out-{number}"
        assert prepare(source, out) == 0
        assert proxied.injected[fault] == number + 1
        assert read_index(str(out)).sha256 == expected


def test_server_that_stays_away_is_no_damage_of_the_images(source, proxied, tmp_path, capsys):
    proxied.schedule = lambda exchange: Fault.ERROR_503 if exchange.extent else None
    assert prepare(source, tmp_path / "out", "--deadline", "0") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot read {source}") and "attempts in" in error
