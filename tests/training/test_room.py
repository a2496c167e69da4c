"""The dry run refuses outputs that cannot be written, full disks and too little shared memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import storage
from pipeline.config import dump_config
from pipeline.data import shared_memory
from pipeline.train import main
from tests.tiny import build_config


@pytest.fixture
def dry_run(tiny_arch, tiny_shards, tmp_path, capsys):
    """Status and error of a dry run with some settings."""

    def run(**sections: object) -> tuple[int, str]:
        config = build_config(
            tiny_arch, tiny_shards, **{"output": str(tmp_path / "run"), **sections}
        )
        (tmp_path / "config.yaml").write_text(dump_config(config))
        before = sorted(tmp_path.rglob("*"))
        status = main(["--config", str(tmp_path / "config.yaml"), "--dry-run"])
        assert sorted(tmp_path.rglob("*")) == before  # it writes nothing
        return status, capsys.readouterr().err

    return run


def settings_with(place: str) -> list[dict[str, object]]:
    return [
        {"output": place},
        {"snapshot": {"folder": place}},
        {"data": {"feature_cache": place}},
    ]


def test_new_folders_are_accepted(dry_run, tmp_path):
    for sections in settings_with(str(tmp_path / "a" / "b")):
        assert dry_run(**sections) == (0, "")


def test_file_in_the_place_of_a_folder_is_refused(dry_run, tmp_path):
    (tmp_path / "file").write_text("x")
    for sections in settings_with(str(tmp_path / "file")) + settings_with(
        str(tmp_path / "file" / "inside")
    ):
        status, err = dry_run(**sections)
        assert status == 2 and "file is a file; choose another folder" in err
        assert err.count("\n") == 1


def test_folder_that_cannot_be_written_is_refused(dry_run, monkeypatch):
    for sections in settings_with("/proc/none"):
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/proc")
        status, err = dry_run(**sections)
        assert status == 2 and "/proc cannot be written by this user" in err


def test_full_disk_is_refused_with_the_figures(dry_run, monkeypatch, tmp_path):
    full = SimpleNamespace(f_bavail=100, f_frsize=4096, f_favail=5, f_files=9)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    status, err = dry_run()
    assert status == 2
    assert f"output: the disk of {tmp_path} has 409.6 kB and 5 files free, and the run needs" in err


def test_disk_without_free_file_names_is_refused(dry_run, monkeypatch):
    full = SimpleNamespace(f_bavail=10**9, f_frsize=4096, f_favail=0, f_files=9)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    status, err = dry_run()
    assert status == 2 and "and 0 files free" in err


def test_small_shared_memory_is_refused(dry_run, monkeypatch):
    monkeypatch.setattr(shared_memory, "free_bytes", lambda folder: 10_000)
    assert dry_run(data={"workers": 0})[0] == 0
    status, err = dry_run(data={"workers": 2})
    assert status == 2 and "/dev/shm has 10.0 kB free" in err and "data.workers=0" in err


def test_bucket_of_the_output_must_exist(dry_run, bucket):
    assert dry_run(output=f"s3://{bucket.name}/run") == (0, "")
    for sections in settings_with("s3://no-bucket-of-that-name/run"):
        status, err = dry_run(**sections)
        assert status == 2 and "there is no bucket 'no-bucket-of-that-name'" in err


def test_cache_that_cannot_be_written_is_refused(dry_run, bucket, tiny_shards, tmp_path):
    for file in Path(tiny_shards).iterdir():
        bucket_file = f"s3://{bucket.name}/data/{file.name}"
        storage.write_atomically(bucket_file, file.read_bytes())
    (tmp_path / "file").write_text("x")
    data = {"index": f"s3://{bucket.name}/data", "cache": {"folder": str(tmp_path / "file")}}
    status, err = dry_run(data=data)
    assert status == 2 and "set data.cache.folder to a writable local folder" in err
