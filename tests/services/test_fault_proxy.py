"""An S3 client really meets each fault that the proxy injects."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
import s3fs
from botocore.exceptions import BotoCoreError, EndpointConnectionError

from tests.services.fault_proxy import Exchange, Fault, FaultProxy, at_random, in_turn
from tests.services.nodes import wait_until
from tests.services.object_store import Bucket, ObjectStore

# The errors of s3fs and of the two libraries below it.
CLIENT_ERRORS = (OSError, BotoCoreError, aiohttp.ClientError)
CONTENT = bytes(range(256)) * 250


@pytest.fixture(scope="module")
def client(object_store: ObjectStore, shared_fault_proxy: FaultProxy) -> s3fs.S3FileSystem:
    """A client behind the proxy that gives up at the first fault."""
    return object_store.access.through(shared_fault_proxy.port).file_system(timeout_s=2.5)


@pytest.fixture
def store(
    client: s3fs.S3FileSystem, object_store: ObjectStore, bucket: Bucket, fault_proxy: FaultProxy
) -> s3fs.S3FileSystem:
    """That client, with one object to read, and pauses longer than its timeout."""
    object_store.client.pipe_file(f"{bucket.name}/object", CONTENT)
    fault_proxy.pause_s = 5
    return client


def test_proxy_without_faults_changes_nothing(store, bucket: Bucket, fault_proxy: FaultProxy):
    with store.open(f"{bucket.name}/large", "wb", block_size=5 << 20) as file:
        file.write(CONTENT * 120)
    assert store.cat_file(f"{bucket.name}/large") == CONTENT * 120
    assert len(store.ls(bucket.name, refresh=True)) == 2
    assert fault_proxy.exchanges > 4 and not fault_proxy.injected


@pytest.mark.parametrize(
    "fault", [Fault.CUT, Fault.STALL, Fault.ERROR_500, Fault.ERROR_503, Fault.LATENCY]
)
def test_fault_breaks_one_read_and_not_the_next(store, bucket, fault_proxy, fault):
    fault_proxy.schedule = in_turn(fault, method="GET", path="/object")
    with pytest.raises(CLIENT_ERRORS):
        store.cat_file(f"{bucket.name}/object")
    assert store.cat_file(f"{bucket.name}/object") == CONTENT
    assert fault_proxy.injected == {fault: 1}


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.STALL, Fault.ERROR_503])
def test_client_with_retries_reads_through_a_fault(store, bucket, fault_proxy, fault, monkeypatch):
    monkeypatch.setattr(store, "retries", 3)
    fault_proxy.schedule = in_turn(fault, method="GET", path="/object")
    assert store.cat_file(f"{bucket.name}/object") == CONTENT


def test_second_reset_breaks_a_read(store, bucket: Bucket, fault_proxy: FaultProxy):
    """must be injected twice, since aiohttp itself repeats a GET or PUT after the first reset"""
    fault_proxy.schedule = in_turn(Fault.RESET, Fault.RESET, method="GET", path="/object")
    with pytest.raises(BotoCoreError):
        store.cat_file(f"{bucket.name}/object")
    assert store.cat_file(f"{bucket.name}/object") == CONTENT
    assert fault_proxy.injected == {Fault.RESET: 2}


def test_latency_below_the_timeout_only_delays(store, bucket: Bucket, fault_proxy: FaultProxy):
    fault_proxy.pause_s = 0.2
    fault_proxy.schedule = in_turn(Fault.LATENCY, method="GET", path="/object")
    start = time.monotonic()
    assert store.cat_file(f"{bucket.name}/object") == CONTENT
    assert time.monotonic() - start >= 0.2


def test_corruption_changes_one_byte_and_not_the_status(store, bucket, fault_proxy):
    fault_proxy.schedule = in_turn(Fault.CORRUPT, method="GET", path="/object")
    received = store.cat_file(f"{bucket.name}/object")
    assert len(received) == len(CONTENT)
    assert sum(a != b for a, b in zip(received, CONTENT, strict=True)) == 1


def test_refused_connections_end_after_the_pause(store, bucket, fault_proxy):
    fault_proxy.pause_s = 4
    fault_proxy.schedule = in_turn(Fault.REFUSED, method="GET", path="/object")
    for _ in range(2):
        with pytest.raises(EndpointConnectionError):
            store.cat_file(f"{bucket.name}/object")

    def answers() -> bool:
        with contextlib.suppress(EndpointConnectionError):
            return store.cat_file(f"{bucket.name}/object") == CONTENT
        return False

    assert wait_until(answers, timeout_s=60)


def test_writes_meet_faults_too(store, bucket: Bucket, fault_proxy: FaultProxy):
    fault_proxy.schedule = in_turn(Fault.ERROR_503, Fault.RESET, Fault.RESET, method="PUT")
    for _ in range(2):
        with pytest.raises(CLIENT_ERRORS):
            store.pipe_file(f"{bucket.name}/written", b"x")
    store.pipe_file(f"{bucket.name}/written", b"x")
    assert store.cat_file(f"{bucket.name}/written") == b"x"


def test_schedule_is_the_same_for_the_same_seed():
    rates = {Fault.RESET: 0.2, Fault.CUT: 0.3}
    exchanges = [Exchange(number, "GET", "/") for number in range(1000)]
    chosen = [at_random(7, rates)(exchange) for exchange in exchanges]
    assert chosen == [at_random(7, rates)(exchange) for exchange in exchanges]
    assert chosen != [at_random(8, rates)(exchange) for exchange in exchanges]
    assert 150 < chosen.count(Fault.RESET) < 250 and 250 < chosen.count(Fault.CUT) < 350


def test_many_readers_get_through_every_kind_of_fault(store, bucket, fault_proxy):
    fault_proxy.pause_s = 0.05
    fault_proxy.schedule = at_random(3, {fault: 0.04 for fault in Fault})

    def read(_: int) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(*CLIENT_ERRORS):
                if store.cat_file(f"{bucket.name}/object") == CONTENT:
                    return True
        return False

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(60)))
    assert set(fault_proxy.injected) == set(Fault)
