"""URLs of every kind behave alike, and no message shows a credential."""

from __future__ import annotations

import gc
import math
import os
import re
import subprocess
import sys
import threading
import uuid
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import storage, storage_errors
from pipeline.credentials import contains_credentials
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


def assert_written_now(url: str) -> None:
    """must have a time with its zone"""
    storage.write_atomically(url, b"one")
    written = storage.modified(url)
    assert written is not None
    assert abs(written - datetime.now(timezone.utc)) < timedelta(minutes=5)


def test_time_of_a_file_is_that_of_its_write(folder):
    assert_written_now(storage.join(folder, "file.bin"))
    with pytest.raises(StorageError, match="no such file"):
        storage.modified(storage.join(folder, "none"))


def test_time_of_an_object_is_that_of_its_write(bucket):
    assert_written_now(f"s3://{bucket.name}/file.bin")


def test_files_are_listed_below_a_folder(folder):
    for name in ("b", "a/c", "a/b"):
        storage.write_atomically(storage.join(folder, name), b"x")
    listed = storage.list_files(folder)
    assert [url.rpartition("/")[2] for url in listed] == ["b", "c", "b"]
    assert all(storage.read_bytes(url) == b"x" for url in listed)
    assert storage.list_files(storage.join(folder, "none")) == []


@pytest.fixture
def frequent_collections():
    """The garbage collector's callbacks, while it runs after every 50 new objects."""
    before, callbacks = gc.get_threshold(), list(gc.callbacks)
    gc.set_threshold(50)
    yield gc.callbacks
    gc.callbacks[:] = callbacks
    gc.set_threshold(*before)


def test_folder_in_memory_is_listed_while_another_thread_writes(frequent_collections):
    """A collection in the middle of the listing lets the other thread run."""
    folder = f"memory://{uuid.uuid4().hex}"
    for number in range(4000):  # Python keeps 2,000 free tuples; new ones start collections
        storage.write_atomically(f"{folder}/{number}", b"")
    writers = []

    def write_elsewhere(phase: str, info: object) -> None:
        if threading.current_thread() is not threading.main_thread() or len(writers) == 20:
            return
        url = f"{folder}/during/{len(writers)}"
        writers.append(threading.Thread(target=storage.write_atomically, args=(url, b"")))
        writers[-1].start()
        writers[-1].join(timeout=0.02)

    frequent_collections.append(write_elsewhere)
    assert len(storage.list_files(folder)) >= 4000
    frequent_collections.remove(write_elsewhere)
    for writer in writers:
        writer.join()
    assert len(storage.list_files(folder)) == 4000 + len(writers)


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


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_file_has_the_permissions_of_every_new_file(tmp_path, monkeypatch, mask):
    """must not change the umask meanwhile: that of a process belongs to all its threads"""
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
            storage.write_atomically(str(tmp_path / "file"), b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


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


@pytest.mark.parametrize("scheme", ["s3", "s3a", "S3"])
@pytest.mark.parametrize("secret", ["verysecret", "a/verysecret", "a@verysecret", "a//verysecret"])
def test_credentials_in_a_url_are_refused_and_not_shown(scheme, secret):
    with pytest.raises(StorageError, match="AWS_PROFILE") as caught:
        storage.read_bytes(f"{scheme}://key:{secret}@bucket/file")
    assert str(caught.value).startswith(f"{scheme}://bucket/file: the URL contains credentials")


@pytest.mark.parametrize(
    "url", ["s3://bucket/a:b@c", "s3://arn:aws:s3:eu-west-1:1:accesspoint/a/b@c", "gs://bucket/a@b"]
)
def test_name_of_a_file_is_no_credential(url):
    assert storage.redact(url) == url and not contains_credentials(url)


def test_no_message_shows_a_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    text = "GET https://me:hidden@host/a?X-Amz-Signature=abc failed, key verysecret"
    assert storage.scrub(text) == "GET https://host/a failed, key ***"
    assert storage.redact("s3://bucket/key?versionId=1") == "s3://bucket/key"
    assert storage.redact("/data/what?.tar") == "/data/what?.tar"


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_listing_of_a_bucket_is_never_an_old_one(bucket, scheme):
    """must show a file that another machine has written since the last listing"""
    url = f"{scheme}://{bucket.name}/folder"
    for count in (1, 2):
        bucket.access.file_system().pipe_file(f"{bucket.name}/folder/{count}", b"x")
        assert len(storage.list_files(url)) == len(storage.list_sizes(url)) == count
        assert storage.exists(f"{url}/{count}")


def test_public_bucket_is_read_without_credentials():
    """must follow the environment in every way of opening"""
    program = "from pipeline import storage; print(storage._filesystem('s3://bucket/key')[0].anon)"
    for value, expected in (("true", True), (None, False)):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FSSPEC")}
        environment |= {"FSSPEC_S3_ANON": value} if value else {}
        command = [sys.executable, "-c", program]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert (shown.stdout.strip().lower() == "true") is expected


def test_sizes_are_listed_below_a_folder(folder):
    for name, content in (("b", b"1"), ("a/c", b"123")):
        storage.write_atomically(storage.join(folder, name), content)
    sizes = storage.list_sizes(folder)
    assert {url.rpartition("/")[2]: size for url, size in sizes.items()} == {"b": 1, "c": 3}
    assert storage.list_sizes(storage.join(folder, "none")) == {}


# Each call of the module, on a URL.
CALLS = {
    "read": storage.read_bytes,
    "range": lambda url: storage.read_range(url, 0, 1),
    "write": lambda url: storage.write_atomically(url, b"x"),
    "list": storage.list_files,
    "look at": storage.size,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "OTHERKEY99"}, "the key OTHE… of AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, "of AWS_ACCESS_KEY_ID"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "no access key was found; set AWS_PROFILE",
        ),
    ],
)
def test_refused_key_is_named_by_its_variable(bucket, monkeypatch, changes, words, call):
    """must show which key was refused, and no secret"""
    url = f"s3://{bucket.name}/file"
    storage.write_atomically(url, b"content")
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    storage._instance.cache_clear()  # a process keeps its client
    with pytest.raises(StorageError) as caught:
        call(url)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "not-the-secret" not in str(caught.value) and "OTHERKEY99" not in str(caught.value)
    storage._instance.cache_clear()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bucket_that_does_not_exist_is_named(bucket, call):
    with pytest.raises(StorageError, match="there is no bucket 'no-bucket-of-that-name' at http"):
        call("s3://no-bucket-of-that-name/file")


def test_endpoint_that_refuses_is_named_early_before_a_run(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "_EARLY_S", 1.0)
    with storage.giving_up_early(), pytest.raises(StorageError) as caught:
        storage.read_bytes(f"s3://{bucket.name}/file")
    assert re.search(
        r"\d+ attempts in \d\d? s, the last failed with no server can be reached at "
        r"http://127.0.0.1:9 \(AWS_ENDPOINT_URL\); start the server",
        str(caught.value),
    )


def test_training_keeps_its_patience(monkeypatch):
    """must give up early only within the block"""
    limits = []

    def record(attempt, *, unreachable_s, **options):
        limits.append(unreachable_s)
        return attempt(1.0)

    monkeypatch.setattr(storage, "retry_until", record)
    with storage.giving_up_early():
        storage.exists("memory://patience")
    storage.exists("memory://patience")
    assert limits == [storage._EARLY_S, math.inf]


def test_long_cause_is_cut_between_two_words():
    words = " ".join(["refused"] * 200)
    shown = storage_errors.cause(OSError(f"https://me:hidden@host/{words}"))
    assert len(shown) < 320 and shown.endswith("refused …") and "hidden" not in shown


def test_content_over_the_limit_is_refused_and_not_fetched(folder):
    url = storage.join(folder, "large.json")
    storage.write_atomically(url, bytes(1000))
    assert storage.read_bytes(url, most=1000) == bytes(1000)
    for call in (storage.read_bytes, storage.read_text):
        with pytest.raises(StorageError, match="large.json: has more than 999 bytes, and no such"):
            call(url, most=999)
    storage.write_atomically(url, b"")
    assert storage.read_bytes(url, most=9) == b""


def test_server_that_knows_no_ranges_is_named(tmp_path):
    """must not give other bytes than those that are asked for"""
    (tmp_path / "shard.tar").write_bytes(b"0123456789")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/shard.tar"
        try:
            assert storage.read_range(url, 0, 4) == b"0123"
            assert storage.read_bytes(url, most=10) == b"0123456789"
            with pytest.raises(StorageError, match="instead of a part of it; use another server"):
                storage.read_range(url, 4, 8)
        finally:
            server.shutdown()


def test_attempt_has_the_time_that_its_bytes_need(bucket, monkeypatch):
    """must not cut off a large file that arrives, whatever the limit on retries is"""
    limits = []

    async def record(limit_s, call, *arguments, **options):
        limits.append(limit_s)
        return await call(*arguments, **options)

    monkeypatch.setattr(storage, "_within", record)
    monkeypatch.setattr(storage, "_SLOWEST_BYTES_PER_S", 1)
    url = f"s3://{bucket.name}/file"
    with storage.patience(5):
        storage.write_atomically(url, bytes(1000))
        assert storage.read_bytes(url, most=1000) == bytes(1000)
        assert storage.read_range(url, 0, 1000) == bytes(1000)
    assert len(limits) == 3 and all(1000 < limit <= 1006 for limit in limits)
