"""Streams from a real S3 server: the same pixels on any layout, through every fault."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from pipeline.data.cache import SegmentCache
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.plan import Layout
from pipeline.data.prepare.copying import copy_data_set
from pipeline.data.stream import ShardSource, eval_stream, train_stream
from pipeline.data.transforms import build_transform
from pipeline.errors import DataError
from pipeline.prepare import main
from tests.services.fault_proxy import Fault, FaultProxy, at_random
from tests.services.object_store import Bucket, ObjectStore
from tests.shards import CROP, draw_samples, overwrite_byte, plan_epoch, store, stream_digests


@pytest.fixture
def local(tmp_path: Path) -> ShardIndex:
    return store(str(tmp_path / "local"), draw_samples(), shard_bytes=80_000)


@pytest.fixture
def served(local: ShardIndex, bucket: Bucket) -> ShardIndex:
    return copy_data_set(local.url, f"{bucket.url}/shards")


@pytest.fixture
def proxied(bucket: Bucket, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The proxy, through which every client now reaches the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.access.through(fault_proxy.port).endpoint)
    return fault_proxy


def open_source(index: ShardIndex, folder: Path, **options: object) -> ShardSource:
    cache = SegmentCache(folder, limit_bytes=1 << 28, deadline_s=options.pop("deadline_s", 60.0))
    return ShardSource(index, cache=cache, **options)


def test_every_layout_gives_the_pixels_of_the_local_shards(local, served, tmp_path):
    expected = stream_digests(ShardSource(local))
    source = open_source(served, tmp_path / "cache")
    for workers in (0, 1, 2, 3):
        for world_size in (1, 2, 4, 8):
            assert stream_digests(source, Layout(0, world_size, workers)) == expected
    assert stream_digests(source, Layout(0, 4, 2), start_step=3) == expected[3:]
    source.close()


def test_shards_can_be_prepared_directly_in_the_store(bucket, tiny_images, tiny_shards):
    url = f"{bucket.url}/prepared"
    arguments = ["--shard-size", "60000", "--names", str(tiny_images / "names.json")]
    assert main(["shard", "--source", str(tiny_images), "--out", url, *arguments]) == 0
    assert read_index(url).sha256 == read_index(tiny_shards).sha256
    assert main(["verify", url, "--jobs", "1"]) == 0


def test_faults_of_every_kind_change_no_batch(local, served, proxied, tmp_path):
    """must give the batches of a network without faults"""
    proxied.pause_s = 0.1
    rates = dict.fromkeys(Fault, 0.07)
    proxied.schedule = at_random(3, rates)
    healthy = ShardSource(local)
    rounds = 0
    while sum(proxied.injected.values()) < 25 or set(proxied.injected) != set(Fault):
        source = open_source(served, tmp_path / f"cache{rounds}")
        assert stream_digests(source, epoch=rounds) == stream_digests(healthy, epoch=rounds)
        source.close()
        rounds += 1


def test_shard_corrupted_on_the_server_is_named_to_every_reader(served, tmp_path):
    overwrite_byte(f"{served.url}/{served.shards[0].name}", 900)
    for workers in (0, 1):
        source = open_source(served, tmp_path / f"cache{workers}")
        with pytest.raises(DataError, match=f"{served.shards[0].name}: bytes .* fetched twice"):
            stream_digests(source, Layout(workers=workers))
        source.close()


def test_stream_waits_until_a_server_restarts(local, served, object_store: ObjectStore, tmp_path):
    """must give the batches of a server that never stopped"""
    expected = stream_digests(ShardSource(local))
    object_store.stop()
    restart = threading.Timer(2, object_store.start)
    restart.start()
    source = open_source(served, tmp_path / "cache", deadline_s=90.0)
    try:
        assert stream_digests(source, Layout(workers=1)) == expected
    finally:
        restart.join()
        source.close()


READ_ALONE = """
import hashlib, sys
from pipeline.data.index import read_index
from pipeline.data.cache import SegmentCache
from pipeline.data.plan import Layout
from pipeline.data.stream import ShardSource, eval_stream
from pipeline.data.transforms import build_transform

index = read_index(sys.argv[1])
for workers in (0, 1):
    cache = SegmentCache(f"{sys.argv[2]}-{workers}", limit_bytes=1 << 28, deadline_s=5)
    stream = eval_stream(
        ShardSource(index, cache=cache), index.select("train", range(5)),
        batch_size=99, transform=build_transform("clip", 13), layout=Layout(workers=workers),
    )
    print(hashlib.sha256(next(stream).image_BCHW.numpy().tobytes()).hexdigest())
"""


def read_alone(url: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a new process, since fsspec reads its variables at import."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("AWS_ACC") and "SECRET" not in k
    }
    command = [sys.executable, "-c", READ_ALONE, url, str(cache)]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, timeout=120
    )


def test_public_bucket_is_streamed_without_credentials(
    local, served, bucket, object_store, tmp_path
):
    """must sign no request; Swift answers unsigned requests below another path"""
    anonymous = {
        "FSSPEC_S3_ANON": "true",
        "AWS_ENDPOINT_URL": f"{bucket.access.endpoint}/v1/AUTH_test",
    }
    refused = read_alone(served.url, tmp_path / "refused", **anonymous)
    assert refused.returncode != 0 and refused.stdout == ""
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("pipeline.errors.StorageError: cannot read s3://"), refused.stderr

    object_store.client.call_s3("put_bucket_acl", Bucket=bucket.name, ACL="public-read")
    shown = read_alone(served.url, tmp_path / "cache", **anonymous)
    selection, transform = local.select("train", range(5)), build_transform("clip", 13)
    (batch,) = eval_stream(ShardSource(local), selection, transform, batch_size=99)
    expected = hashlib.sha256(batch.image_BCHW.numpy().tobytes()).hexdigest()
    assert shown.stdout == f"{expected}\n{expected}\n", shown.stderr


def test_memory_and_descriptors_stay_flat_over_two_hundred_epochs(served, tmp_path):
    source = open_source(served, tmp_path / "cache")
    parent, usage = psutil.Process(), []
    for epoch in range(200):
        for _ in train_stream(source, plan_epoch(served, epoch), CROP, layout=Layout(workers=2)):
            pass
        if epoch % 20 == 19:
            family = [parent, *(p for p in parent.children(recursive=True) if _is_loader(p))]
            usage.append(
                (sum(p.memory_info().rss for p in family), sum(p.num_fds() for p in family))
            )
    source.close()
    (early_bytes, early_files), (late_bytes, late_files) = usage[1], usage[-1]
    assert late_files <= early_files + 2
    assert late_bytes - early_bytes < 8 << 20, [size >> 20 for size, _ in usage]


def _is_loader(process: psutil.Process) -> bool:
    return "multiprocessing" in " ".join(process.cmdline())
