"""Shards that a run reads are looked for before it, without reading them."""

from __future__ import annotations

import dataclasses
import shutil
import uuid

import pytest

from pipeline import storage
from pipeline.data.index import read_index
from pipeline.data.shard_check import check_shards
from pipeline.errors import DataError, StorageError


@pytest.fixture(params=["local", "memory", "s3"])
def shards(request, tiny_shards, tmp_path):
    """The shards of a copy of the tiny data set on each kind of storage."""
    if request.param == "s3":
        folder = f"s3://{request.getfixturevalue('bucket').name}/data"
    else:
        folder = str(tmp_path / "copy") if request.param == "local" else f"memory://{uuid.uuid4()}"
    for url in storage.list_files(tiny_shards):
        content = storage.read_bytes(url)
        storage.write_atomically(storage.join(folder, url.rpartition("/")[2]), content)
    return read_index(folder).shards


def test_complete_data_set_is_accepted(shards):
    check_shards(shards)


def test_missing_shard_is_named(shards):
    storage.remove(shards[1].url)
    with pytest.raises(DataError) as caught:
        check_shards(shards)
    assert f"1 of the {len(shards)} shards that the run reads are missing: {shards[1].name}; " in (
        str(caught.value)
    )


def test_missing_table_is_named(shards):
    """must hold before the run, which reads a table only when it needs a sample of the shard"""
    storage.remove(shards[1].table_url)
    with pytest.raises(DataError, match=f"1 of the .* tables .* missing: {shards[1].table_name}; "):
        check_shards(shards)


def test_shard_that_the_run_does_not_read_may_be_missing(shards):
    storage.remove(shards[1].url)
    check_shards([shard for shard in shards if shard != shards[1]])


def test_shard_of_another_size_is_named(shards):
    content = storage.read_bytes(shards[0].url)
    storage.write_atomically(shards[0].url, content[:-1])
    with pytest.raises(DataError, match=f"{shards[0].name} has .* bytes instead of"):
        check_shards(shards)


def test_one_listing_answers_for_all_shards(shards, monkeypatch):
    asked = []
    monkeypatch.setattr(storage, "size", lambda url: asked.append(url))
    check_shards(shards)
    assert asked == []


def test_storage_that_lists_nothing_is_asked_for_each_shard(shards, monkeypatch):
    def refuse(url: str) -> dict[str, int]:
        raise StorageError("403")

    for listing in (refuse, lambda url: {}):
        monkeypatch.setattr(storage, "list_sizes", listing)
        check_shards(shards)
        wrong = dataclasses.replace(shards[0], name="none.tar")
        with pytest.raises(DataError, match="missing: none.tar"):
            check_shards([*shards, wrong])


def test_dry_run_and_start_refuse_a_missing_shard(tiny_shards, tiny_arch, tmp_path, capsys):
    from pipeline.config import dump_config
    from pipeline.train import main
    from tests.tiny import build_config

    shutil.copytree(tiny_shards, tmp_path / "copy")
    config = build_config(tiny_arch, str(tmp_path / "copy"), output=str(tmp_path / "run"))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    next((tmp_path / "copy").glob("train*.tar")).unlink()
    assert main(["--config", str(tmp_path / "config.yaml"), "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "shards that the run reads are missing: train" in err
