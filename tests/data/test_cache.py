"""The cache of a node: each segment is downloaded once, verified, and kept within the limit."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data.cache import RemoteShard, SegmentCache, plan_spans
from pipeline.data.index import ShardIndex
from pipeline.data.prefetch import Need, Prefetcher
from pipeline.data.shard import Segment
from pipeline.data.stream import BatchPlan, ShardSource, eval_rows, eval_stream
from pipeline.data.transforms import build_transform
from pipeline.errors import DataError, StorageError
from tests.services.fault_proxy import Fault, FaultProxy, in_turn
from tests.services.object_store import Bucket
from tests.shards import draw_samples, overwrite_byte, store

CLIP = build_transform("clip", 13)


def cache_at(path: Path, limit_bytes: int = 1 << 30, deadline_s: float = 20) -> SegmentCache:
    return SegmentCache(path, limit_bytes=limit_bytes, deadline_s=deadline_s)


def remote(index: ShardIndex) -> list[RemoteShard]:
    return [RemoteShard(storage.join(index.url, s.name), s.segments) for s in index.shards]


def read(cache: SegmentCache, shard: RemoteShard, segment: Segment) -> bytes:
    with cache.opened(shard, segment) as file:
        return os.pread(file, segment.bytes + 1, 0)


def stored(shard: RemoteShard, segment: Segment) -> bytes:
    return storage.read_range(shard.url, segment.offset, segment.offset + segment.bytes)


@pytest.fixture
def index() -> ShardIndex:
    return store(f"memory://{uuid.uuid4().hex}", draw_samples())


def test_cached_segments_have_the_bytes_of_the_shard(index, tmp_path):
    cache = cache_at(tmp_path)
    for shard in remote(index):
        for segment in shard.segments:
            assert read(cache, shard, segment) == stored(shard, segment)
        assert cache.fetch(shard, shard.segments) == 0
    wanted = sum(segment.bytes for shard in index.shards for segment in shard.segments)
    assert cache.folder.used_bytes() == wanted


def test_equal_shard_names_of_two_data_sets_are_kept_apart(tmp_path):
    """must never train a task on images of another data set because two files have equal names"""
    cache = cache_at(tmp_path)
    batches = []
    for data_seed in (1, 2):
        url = f"memory://{uuid.uuid4().hex}/shards"
        index = store(url, draw_samples(data_seed=data_seed))
        local = store(str(tmp_path / str(data_seed)), draw_samples(data_seed=data_seed))
        pair = []
        for source in (ShardSource(index, cache=cache), ShardSource(local)):
            selection = source.index.select("train", range(5))
            stream = eval_stream(source, selection, batch_size=99, transform=CLIP)
            pair.append(next(stream).image_BCHW)
            source.close()
        assert pair[0].equal(pair[1])
        batches.append(pair[0])
    assert not batches[0].equal(batches[1])


def test_changed_shard_is_fetched_again(tmp_path):
    cache, url = cache_at(tmp_path), f"memory://{uuid.uuid4().hex}"
    for data_seed in (1, 2):
        shard = remote(store(url, draw_samples(data_seed=data_seed)))[0]
        assert read(cache, shard, shard.segments[0]) == stored(shard, shard.segments[0])


def test_requests_join_neighbours_over_small_gaps():
    stored = [Segment(0, 1, offset, 10, str(offset)) for offset in range(0, 100, 10)]

    def plan(*numbers: int, **limits: int) -> list[list[int]]:
        spans = plan_spans(stored, [stored[n] for n in numbers], **limits)
        return [[segment.offset // 10 for segment in span] for span in spans]

    assert plan(1, 2, 3) == [[1, 2, 3]]
    assert plan(1, 4, gap_bytes=20) == [[1, 2, 3, 4]]
    assert plan(1, 5, gap_bytes=20) == [[1], [5]]
    assert plan(0, 1, 2, 3, 4, span_bytes=20) == [[0, 1], [2, 3], [4]]
    assert plan(9, 0) == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert plan(9, 0, gap_bytes=0) == [[0], [9]]
    assert plan() == []


def test_segment_damaged_on_the_disk_is_fetched_again(index, tmp_path):
    source = ShardSource(index, cache=cache_at(tmp_path))
    selection = index.select("train", range(5))

    def pixels() -> object:
        return next(eval_stream(source, selection, batch_size=99, transform=CLIP)).image_BCHW

    expected = pixels()
    for file in tmp_path.glob("*.segment"):
        overwrite_byte(str(file), 2000)
    assert pixels().equal(expected)
    for file in tmp_path.glob("*.segment"):
        os.truncate(file, 700)
    assert pixels().equal(expected)
    source.close()


def test_shard_that_does_not_match_the_index_is_refused_after_a_second_fetch(index, tmp_path):
    overwrite_byte(storage.join(index.url, "train-000000.tar"), 900)
    shard = remote(index)[0]
    with pytest.raises(DataError, match=r"train-000000.tar: bytes 0 to .*fetched twice"):
        cache_at(tmp_path).fetch(shard, shard.segments)
    truncated = storage.read_bytes(shard.url)[:700]
    storage.write_atomically(shard.url, truncated)
    with pytest.raises(DataError, match="fetched twice"):
        cache_at(tmp_path).fetch(shard, shard.segments)
    assert cache_at(tmp_path).folder.used_bytes() == 0


def test_limit_holds_while_more_than_the_limit_is_read(index, tmp_path):
    total = sum(shard.bytes for shard in index.shards)
    largest = max(s.bytes for shard in index.shards for s in shard.segments)
    cache = cache_at(tmp_path, limit_bytes=max(total // 4, largest + 1))
    for _ in range(3):
        for shard in remote(index):
            for segment in shard.segments:
                assert read(cache, shard, segment) == stored(shard, segment)
                assert cache.folder.used_bytes() <= cache.folder.limit_bytes
    assert cache.folder.used_bytes() > cache.folder.limit_bytes // 3


def test_no_request_starts_after_one_has_failed(tmp_path, monkeypatch):
    """must end within one deadline, not one for each segment of a batch"""
    index = store(f"memory://{uuid.uuid4().hex}", draw_samples(), shard_bytes=1)
    asked = []

    def fail(url: str, *arguments: object, **options: object) -> bytes:
        asked.append(url)
        raise StorageError("no server can be reached")

    monkeypatch.setattr(storage, "read_range", fail)
    wanted = {shard: shard.segments for shard in remote(index)}
    with pytest.raises(StorageError, match="no server can be reached"):
        cache_at(tmp_path).fetch_all(wanted)
    assert 1 <= len(asked) <= 8 < len(wanted), "one for each thread at most"


# Fetching ahead


def wait_until(condition: object, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_fetching_ahead_follows_the_consumer(index, tmp_path):
    needs = [
        Need(number, shard, segment)
        for number, (shard, segment) in enumerate(
            (shard, segment) for shard in remote(index) for segment in shard.segments
        )
    ]
    size = max(need.segment.bytes for need in needs)
    cache = cache_at(tmp_path, limit_bytes=6 * size)
    prefetcher = Prefetcher(cache)
    prefetcher.follow(needs)

    def held() -> list[int]:
        return [n for n, need in enumerate(needs) if cache.holds(need.shard, need.segment)]

    ends = itertools.accumulate(need.segment.bytes for need in needs)
    half = [n for n, end in enumerate(ends) if end <= 3 * size]  # of the cache
    wait_until(lambda: held() == half)
    assert prefetcher._next == len(half) < len(needs), "no more before the consumer is further"
    prefetcher.advance(len(needs) - 1)
    wait_until(lambda: len(needs) - 1 in held())
    prefetcher.close()


def test_stream_fetches_the_upcoming_selection(index, tmp_path):
    cache = cache_at(tmp_path)
    source = ShardSource(index, cache=cache)
    this, other = index.select("train", [0]), index.select("train", [4])
    plan = BatchPlan(this, eval_rows(len(this), 4), CLIP)
    stream = source.batches(plan, workers=0, replace_bad=False, upcoming=[other])
    next(stream)
    shards = remote(index)
    wait_until(
        lambda: all(cache.holds(shards[s], shards[s].segments[g]) for s, g in other.segments)
    )
    untouched = index.select("train", [2])
    assert not any(cache.holds(shards[s], shards[s].segments[g]) for s, g in untouched.segments)
    source.close()


# On the real server


@pytest.fixture
def served(bucket: Bucket) -> ShardIndex:
    return store(f"{bucket.url}/shards", draw_samples(), shard_bytes=80_000)


@pytest.fixture
def proxied(
    bucket: Bucket, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """The proxy, through which every client now reaches the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.access.through(fault_proxy.port).endpoint)
    yield fault_proxy


def _fetch_all(
    environment: dict[str, str], folder: Path, shards: list[RemoteShard], barrier: object
) -> None:
    os.environ.update(environment)
    cache = cache_at(folder)
    barrier.wait(60)
    for shard in shards:
        cache.fetch(shard, shard.segments)


def _start(
    count: int, folder: Path, shards: list[RemoteShard]
) -> list[multiprocessing.process.BaseProcess]:
    """Processes that each fetch all shards, starting together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "webdataset", "s3fs"])
    barrier = context.Barrier(count + 1)
    arguments = (dict(os.environ), folder, shards, barrier)
    processes = [context.Process(target=_fetch_all, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    barrier.wait(60)
    return processes


def test_four_processes_fetch_a_segment_once(served, proxied, tmp_path):
    gets = []
    proxied.schedule = lambda exchange: gets.append(exchange.path)
    shards = remote(served)
    for process in _start(4, tmp_path, shards):
        process.join(60)
        assert process.exitcode == 0
    assert sorted(path.rpartition("/")[2].partition("?")[0] for path in gets) == sorted(
        shard.name for shard in served.shards
    )
    cache = cache_at(tmp_path)
    assert all(cache.fetch(shard, shard.segments) == 0 for shard in shards)


def test_kill_during_a_download_leaves_a_usable_cache(served, proxied, tmp_path):
    proxied.pause_s = 60
    proxied.schedule = in_turn(Fault.STALL, method="GET")
    shards = remote(served)
    (process,) = _start(1, tmp_path, shards)
    wait_until(lambda: proxied.injected[Fault.STALL] == 1)
    assert list(tmp_path.glob("*.part"))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache = cache_at(tmp_path)
    for shard in shards:
        for segment in shard.segments:
            data = read(cache, shard, segment)
            assert data == stored(shard, segment)
    assert not list(tmp_path.glob("*.part"))


def test_byte_damaged_on_the_network_is_fetched_again(served, proxied, tmp_path):
    shard = remote(served)[0]
    proxied.schedule = in_turn(Fault.CORRUPT, method="GET")
    assert cache_at(tmp_path).fetch(shard, shard.segments) > 0
    assert proxied.injected[Fault.CORRUPT] == 1
    proxied.schedule = in_turn(Fault.CORRUPT, Fault.CORRUPT, method="GET")
    with pytest.raises(DataError, match="fetched twice"):
        cache_at(tmp_path / "other").fetch(shard, shard.segments)


def test_error_at_the_deadline_names_shard_attempts_and_cause(served, proxied, tmp_path):
    proxied.schedule = lambda exchange: Fault.ERROR_503
    shard = remote(served)[0]
    with pytest.raises(StorageError) as caught:
        cache_at(tmp_path, deadline_s=2).fetch(shard, shard.segments)
    message = str(caught.value)
    assert re.search(rf"cannot read {shard.url}: \d+ attempts in \d+ s, the last", message)
    assert "injected by the test" in message
