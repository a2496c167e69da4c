"""URLs of every kind behave alike, and no message shows a credential."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import pytest

from pipeline import storage
from pipeline.errors import StorageError


@pytest.fixture(params=["path", "file", "memory"])
def folder(request, tmp_path):
    """An empty folder of each local kind."""
    unique = uuid.uuid4().hex
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{unique}"}[
        request.param
    ]


def test_written_bytes_are_read_back(folder):
    url = storage.join(folder, "sub", "file.bin")
    assert not storage.exists(url)
    storage.write_atomically(url, b"one")
    storage.write_atomically(url, "zwölf".encode())
    assert storage.read_bytes(url) == "zwölf".encode()
    assert storage.read_text(url) == "zwölf"
    assert storage.read_range(url, 1, 2) == b"w"
    assert storage.read_range(url, 4, 99) == b"lf"[-2:]
    assert storage.size(url) == 6
    with storage.open_file(url) as file:
        assert file.read(2) == b"zw"
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_files_are_listed_below_a_folder(folder):
    for name in ("b", "a/c", "a/b"):
        storage.write_atomically(storage.join(folder, name), b"x")
    listed = storage.list_files(folder)
    assert [url.rpartition("/")[2] for url in listed] == ["b", "c", "b"]
    assert all(storage.read_bytes(url) == b"x" for url in listed)
    assert storage.list_files(storage.join(folder, "none")) == []


def test_failed_write_leaves_the_old_content_and_no_other_file(tmp_path, monkeypatch):
    url = str(tmp_path / "file")
    storage.write_atomically(url, b"old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_atomically(url, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert storage.read_bytes(url) == b"old"


def test_missing_file_is_named():
    with pytest.raises(StorageError, match="cannot read /no/such/file: there is no such file"):
        storage.read_bytes("/no/such/file")


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "shell:id", "simplecache::s3://b/k"])
def test_urls_with_programs_or_chains_are_refused(url):
    with pytest.raises(StorageError, match="refused"):
        storage.read_bytes(url)


def test_unknown_protocol_is_explained():
    with pytest.raises(StorageError, match="Protocol not known: nope"):
        storage.read_bytes("nope://x/y")


def test_credentials_in_a_url_are_refused_and_not_shown():
    with pytest.raises(StorageError, match="AWS_PROFILE") as caught:
        storage.read_bytes("s3://key:verysecret@bucket/file")
    assert "verysecret" not in str(caught.value)


def test_no_message_shows_a_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    text = "GET https://me:hidden@host/a?X-Amz-Signature=abc failed, key verysecret"
    assert storage.scrub(text) == "GET https://host/a failed, key ***"
    assert storage.redact("s3://bucket/key?versionId=1") == "s3://bucket/key"
    assert storage.redact("/data/what?.tar") == "/data/what?.tar"


def test_public_bucket_is_read_without_credentials():
    """must follow the environment in every way of opening"""
    program = "from pipeline import storage; print(storage._filesystem('s3://bucket/key')[0].anon)"
    for value, expected in (("true", True), (None, False)):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FSSPEC")}
        environment |= {"FSSPEC_S3_ANON": value} if value else {}
        command = [sys.executable, "-c", program]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert (shown.stdout.strip().lower() == "true") is expected
