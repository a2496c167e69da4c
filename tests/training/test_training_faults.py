"""A launched run over a faulty network gives the tensors of a healthy run, or a clear error.

The run is launched as by a user, with ``deepspeed`` on two ranks. It reads from a real S3 server
through a proxy that injects faults.
"""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from pipeline.config import Config, dump_config
from pipeline.data.index import ShardIndex
from pipeline.data.prepare.copying import copy_data_set
from pipeline.distributed.world import World
from pipeline.errors import DataError
from pipeline.launching.command import (
    Devices,
    launch_command,
    launch_environment,
    on_this_host,
)
from pipeline.launching.ports import reserved_port
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute
from tests.chaos.comparison import read_run
from tests.interruptions import start_on_ranks
from tests.processes import left_after
from tests.ranks import run_ranks
from tests.services.fault_proxy import Exchange, Fault, Schedule, at_random
from tests.services.object_store import Bucket
from tests.shards import overwrite_byte
from tests.tiny import build_config

N_FAULTS = 100


@pytest.fixture
def served(tiny_shards: str, bucket: Bucket) -> ShardIndex:
    return copy_data_set(tiny_shards, f"{bucket.url}/shards")


def build_run(arch: str, index: ShardIndex, folder: Path, *, workers: int, epochs: int) -> Config:
    """A run of three tasks whose cache is too small for one task, so that images are refetched."""
    cache = {"folder": str(folder / "cache"), "limit_gb": 5e-5, "deadline_s": 600}
    data = {"index": index.url, "workers": workers, "train_transform": "random_crop"}
    return build_config(
        arch,
        index.url,
        output=str(folder / "run"),
        data=data | {"cache": cache},
        method={"name": "tppt_vt"},
        optim={"epochs": epochs},
    )


def launch(config: Config, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Launch a run on two ranks of this machine and wait for its end."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    devices = Devices(ranks=2)
    with reserved_port() as port:
        return subprocess.run(
            launch_command("config.yaml", on_this_host(devices, port)),
            cwd=folder,
            env=launch_environment(os.environ | environment, devices),
            capture_output=True,
            text=True,
            timeout=280,
        )


def survivable(schedule: Schedule) -> Schedule:
    """``schedule`` without the corruptions that a run cannot survive.

    A run rightly refuses bytes that are wrong twice in a row, and the bytes of the index itself
    have no checksum.
    """
    corrupted: set[tuple[str, str]] = set()

    def choose(exchange: Exchange) -> Fault | None:
        fault, asked = schedule(exchange), (exchange.path, exchange.extent)
        if fault is Fault.CORRUPT:
            is_shard = exchange.method == "GET" and ".tar" in exchange.path
            if not is_shard or asked in corrupted:
                fault = Fault.ERROR_503
            else:
                corrupted.add(asked)
        elif fault in (None, Fault.LATENCY):  # arrives complete
            corrupted.discard(asked)
        return fault

    return choose


@pytest.mark.slow
def test_a_run_with_a_hundred_faults_learns_the_same(
    tiny_arch, served, bucket, fault_proxy, tmp_path
):
    """must end with the same tensors and accuracy matrix as a run without a fault"""
    healthy, faulty = (
        build_run(tiny_arch, served, tmp_path / name, workers=0, epochs=4)
        for name in ("healthy", "faulty")
    )
    assert start_on_ranks(2, healthy, timeout_s=280)
    fault_proxy.pause_s = 0.05
    fault_proxy.schedule = survivable(at_random(11, dict.fromkeys(Fault, 0.055)))
    endpoint = bucket.access.through(fault_proxy.port).endpoint
    process = launch(faulty, tmp_path / "faulty", AWS_ENDPOINT_URL=endpoint)
    assert process.returncode == 0, process.stderr
    assert set(fault_proxy.injected) == set(Fault)
    assert sum(fault_proxy.injected.values()) >= N_FAULTS, fault_proxy.injected
    read_run(faulty.output).assert_equals(read_run(healthy.output))


def corrupt_second_task(index: ShardIndex) -> str:
    """Change a byte of a shard that the first task does not read; returns the URL of the shard."""
    label, number = 2, 0
    while label not in index.shards[number].class_counts:
        number += 1
    url = f"{index.url}/{index.shards[number].name}"
    overwrite_byte(url, index.shards[number].segments[0].offset + 900)
    return url


@pytest.mark.slow
def test_a_corrupted_shard_ends_the_launched_run_with_one_error(tiny_arch, served, tmp_path):
    """must leave no process behind, loader workers included"""
    url, mark = corrupt_second_task(served), uuid.uuid4().hex
    config = build_run(tiny_arch, served, tmp_path, workers=1, epochs=2)
    process = launch(config, tmp_path, MARK_OF_THIS_RUN=mark)
    assert process.returncode == 2, process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in process.stderr, process.stderr
    assert re.fullmatch(rf"error: rank \d: {url}: bytes .*, fetched twice; copy .*", errors[0])
    assert [file.name for file in (tmp_path / "run" / "tasks").iterdir()] == [
        "task-000.safetensors"
    ]
    assert left_after("MARK_OF_THIS_RUN", mark, seconds=60) == []


def error_of(world: World, config: Config) -> str:
    with pytest.raises(DataError) as caught:
        execute(check_run(config, world.world_size), world)
    return str(caught.value)


def test_a_corrupted_shard_is_named_on_every_rank(tiny_arch, served, tmp_path):
    """must not leave the other ranks waiting for the rank that found it"""
    url = corrupt_second_task(served)
    config = build_run(tiny_arch, served, tmp_path, workers=0, epochs=1)
    answers = run_ranks(error_of, 2, config, collective_s=None)
    assert answers[0] == answers[1]
    assert re.fullmatch(rf"rank \d: {url}: bytes .*, fetched twice; copy .*", answers[0])
