"""The server of the other tests is real: it stores objects and refuses wrong credentials."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import s3fs

from tests.services.object_store import Bucket, ObjectStore


def test_stored_object_is_read_and_listed(bucket: Bucket, object_store: ObjectStore):
    store = object_store.client
    store.pipe_file(f"{bucket.name}/a folder/ü.bin", b"0123456789")
    assert store.cat_file(f"{bucket.name}/a folder/ü.bin", start=3, end=7) == b"3456"
    assert store.find(bucket.name) == [f"{bucket.name}/a folder/ü.bin"]


def test_large_objects_are_sent_in_parts(bucket: Bucket, object_store: ObjectStore):
    store, content = object_store.client, bytes(range(251)) * 50_000
    with store.open(f"{bucket.name}/large", "wb", block_size=5 << 20) as file:
        for start in range(0, len(content), 1 << 20):
            file.write(content[start : start + (1 << 20)])
    assert store.info(f"{bucket.name}/large")["ETag"].strip('"').endswith("-3")
    assert store.cat_file(f"{bucket.name}/large") == content


def test_wrong_secret_is_refused(bucket: Bucket):
    intruder = replace(bucket.access, secret="wrong").file_system()
    with pytest.raises(PermissionError):
        intruder.pipe_file(f"{bucket.name}/x", b"x")


def test_environment_is_enough_for_a_subprocess(bucket: Bucket):
    program = f"import fsspec; fsspec.open('{bucket.url}/x', 'wb').open().close()"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert s3fs.S3FileSystem().ls(bucket.name) == [f"{bucket.name}/x"]


def test_each_test_has_an_empty_bucket(bucket: Bucket, object_store: ObjectStore):
    assert object_store.client.find(bucket.name) == []


def test_data_survive_a_kill_of_every_process(bucket: Bucket, object_store: ObjectStore):
    store = object_store.client
    store.pipe_file(f"{bucket.name}/x", b"before")
    object_store.kill()
    object_store.start()
    assert store.cat_file(f"{bucket.name}/x") == b"before"


def test_frozen_server_answers_after_it(bucket: Bucket, object_store: ObjectStore):
    store, hasty = object_store.client, bucket.access.file_system(timeout_s=0.5)
    store.pipe_file(f"{bucket.name}/x", b"x")
    with object_store.frozen("proxy"), pytest.raises(OSError):
        hasty.cat_file(f"{bucket.name}/x")
    assert store.cat_file(f"{bucket.name}/x") == b"x"
