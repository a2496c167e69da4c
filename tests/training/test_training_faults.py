"""A launched run over a faulty network learns the very tensors of a healthy one, or says why not.

The run is started as a user starts it, with ``deepspeed`` on two ranks, and reads from a real S3
server through a proxy that does harm.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.config import Config, dump_config
from pipeline.data.index import ShardIndex
from pipeline.data.prepare.copying import copy_data_set
from pipeline.distributed.world import World
from pipeline.errors import DataError
from pipeline.output.results import read_results
from pipeline.training.run import check_run, execute
from tests.processes import left_after
from tests.ranks import run_ranks
from tests.services.fault_proxy import Exchange, Fault, Schedule, at_random
from tests.services.object_store import Bucket, free_ports
from tests.shards import overwrite_byte
from tests.tiny import build_config

ROOT = Path(__file__).parents[2]
N_FAULTS = 200


@pytest.fixture
def served(tiny_shards: str, bucket: Bucket) -> ShardIndex:
    return copy_data_set(tiny_shards, f"{bucket.url}/shards")


def build_run(arch: str, index: ShardIndex, folder: Path, *, workers: int, epochs: int) -> Config:
    """Three tasks with a cache that never holds all images of one, so that they are refetched."""
    cache = {"folder": str(folder / "cache"), "limit_gb": 5e-5, "deadline_s": 120}
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
    """The run on two ranks of this machine, to its end."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    command = [launcher, "--num_accelerators", "2", "--master_port", str(free_ports(1)[0])]
    on_cpu = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(ROOT / "pipeline/train.py"), "--config", "config.yaml"],
        cwd=folder,
        env=os.environ | on_cpu | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def survivable(schedule: Schedule) -> Schedule:
    """``schedule``, but no answer is corrupted that the run has no means or no right to bear.

    Bytes that are wrong twice in a row are refused, as they should be, and of the index itself
    nothing says what its bytes must be.
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
        elif fault in (None, Fault.LATENCY):  # arrives whole
            corrupted.discard(asked)
        return fault

    return choose


@pytest.mark.slow
def test_a_run_under_two_hundred_faults_learns_the_same(
    tiny_arch, served, bucket, fault_proxy, tmp_path
):
    """must end with the very tensors and the very matrix of a run that met no fault"""
    endpoint = bucket.access.through(fault_proxy.port).endpoint
    outputs = []
    for name in ("healthy", "faulty"):
        if name == "faulty":
            fault_proxy.pause_s = 0.05
            fault_proxy.schedule = survivable(at_random(11, dict.fromkeys(Fault, 0.055)))
        config = build_run(tiny_arch, served, tmp_path / name, workers=0, epochs=8)
        process = launch(config, tmp_path / name, AWS_ENDPOINT_URL=endpoint)
        assert process.returncode == 0, process.stderr
        outputs.append(tmp_path / name / "run")

    assert set(fault_proxy.injected) == set(Fault)
    assert sum(fault_proxy.injected.values()) >= N_FAULTS, fault_proxy.injected
    healthy, faulty = (read_results(str(output)).content() for output in outputs)
    assert faulty["accuracy_matrix"] == healthy["accuracy_matrix"]
    names = [sorted(file.name for file in (output / "tasks").iterdir()) for output in outputs]
    assert names[0] == names[1] == [f"task-{task:03d}.safetensors" for task in range(3)]
    for name in names[0]:
        one, two = (load_file(output / "tasks" / name) for output in outputs)
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one), name


def corrupt_second_task(index: ShardIndex) -> str:
    """A byte of a shard is another from now on; the shard's URL, which the first task needs not."""
    label, number = 2, 0
    while label not in index.shards[number].class_counts:
        number += 1
    url = f"{index.url}/{index.shards[number].name}"
    overwrite_byte(url, index.shards[number].segments[0].offset + 900)
    return url


@pytest.mark.slow
def test_a_corrupted_shard_ends_the_launched_run_with_one_sentence(tiny_arch, served, tmp_path):
    """must leave no process behind, loader workers included"""
    url, mark = corrupt_second_task(served), uuid.uuid4().hex
    config = build_run(tiny_arch, served, tmp_path, workers=1, epochs=2)
    started = time.monotonic()
    process = launch(config, tmp_path, MARK_OF_THIS_RUN=mark)
    assert time.monotonic() - started < config.data.cache.deadline_s
    assert process.returncode == 2, process.stderr
    said = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in process.stderr, process.stderr
    assert re.fullmatch(rf"error: rank \d: {url}: bytes .*, fetched twice; copy .*", said[0])
    assert [file.name for file in (tmp_path / "run" / "tasks").iterdir()] == [
        "task-000.safetensors"
    ]
    assert left_after("MARK_OF_THIS_RUN", mark, seconds=10) == []


def error_of(world: World, config: Config) -> str:
    with pytest.raises(DataError) as caught:
        execute(check_run(config, world.world_size), world)
    return str(caught.value)


def test_a_corrupted_shard_is_named_on_every_rank(tiny_arch, served, tmp_path):
    """must not leave the other ranks waiting for the one that met it"""
    url = corrupt_second_task(served)
    config = build_run(tiny_arch, served, tmp_path, workers=0, epochs=1)
    answers = run_ranks(error_of, 2, config, collective_s=None)
    assert answers[0] == answers[1]
    assert re.fullmatch(rf"rank \d: {url}: bytes .*, fetched twice; copy .*", answers[0])
