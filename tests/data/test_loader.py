"""A loader worker that is killed or does not answer ends the stream with a sentence."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.data import loader as loader_module
from pipeline.data.index import read_index
from pipeline.data.plan import Layout
from pipeline.data.stream import ShardSource, eval_stream
from pipeline.data.transforms import build_transform
from pipeline.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tiny_shards):
    opened = ShardSource(read_index(tiny_shards), timeout_s=60.0)
    yield opened
    opened.close()


def stream(source):
    selection = source.index.select("train", list(range(7)))
    transform = build_transform("clip", 21)
    layout = Layout(workers=1)
    return eval_stream(source, selection, transform, batch_size=1, layout=layout)


def test_worker_that_stands_still_ends_the_stream_at_the_limit(source):
    """must kill it, and neither wait for ever nor leave it behind"""
    batches = stream(source)
    next(batches)
    (worker,) = source._loader._processes
    os.kill(worker.pid, signal.SIGSTOP)
    source._loader._timeout_s = 2.0
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(caught.value).startswith(
        "the loader workers gave no batch within 2 s (engine.timeout_s); /dev/shm has "
    )
    assert "set data.workers=0" in str(caught.value)
    worker.join(60)
    assert not worker.is_alive()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was killed by SIGKILL: the system probably had no memory left"),
        (signal.SIGBUS, "was killed by SIGBUS: /dev/shm is probably full"),
        (signal.SIGSEGV, "was killed by SIGSEGV: start the same command again"),
    ],
)
def test_killed_worker_is_explained(source, number, words):
    batches = stream(source)
    next(batches)
    (worker,) = source._loader._processes
    os.kill(worker.pid, number)
    with pytest.raises(DataError, match=f"loader worker {worker.pid} {words}"):
        list(batches)


_FULL = """
import sys
from pathlib import Path
from tests.data.test_loader import ShardSource, read_index, stream
from pipeline.errors import DataError
if __name__ == "__main__":
    source = ShardSource(read_index(sys.argv[1]), timeout_s=60.0)
    batches = stream(source)
    next(batches)
    with open("/dev/shm/other", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    try:
        list(batches)
    except DataError as error:
        print(error)
    source.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small /dev/shm")
def test_shared_memory_that_fills_up_during_a_run_is_named(tiny_shards, tmp_path):
    """must end at once, with one sentence and without a traceback"""
    script = tmp_path / "full.py"
    script.write_text(_FULL)
    mount = "mount -t tmpfs -o size=1m none /dev/shm && exec "
    command = f"{mount} {sys.executable} {script} {tiny_shards}"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", command],
        # Python's tracker of semaphores can warn when a process ends while a queue is being freed.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.match(r"/dev/shm \(.* free\) has no room for a batch; set data.work", done.stdout)
    assert done.stderr == ""


def test_slow_consumer_is_not_an_error(source, monkeypatch):
    """must limit the wait for a worker, not the time between two batches"""
    looks = itertools.count()  # of the thread that ends a wait at its limit
    late_s = 0.0

    def monotonic() -> float:
        if threading.current_thread().name == "loader limit":
            next(looks)
        return time.monotonic() + late_s

    clock = SimpleNamespace(monotonic=monotonic, sleep=time.sleep)
    monkeypatch.setattr(loader_module, "time", clock)
    monkeypatch.setattr(loader_module, "_POLL_S", 0.01)
    batches = stream(source)
    next(batches)
    late_s, before = 1000.0, next(looks)
    while next(looks) < before + 10:
        time.sleep(0.01)
    assert len(list(batches)) == len(source.index.select("train", list(range(7)))) - 1


def test_new_workers_have_more_time(source, monkeypatch):
    monkeypatch.setattr(loader_module, "_START_S", 300.0)
    source._loader._timeout_s = 0.01
    first = next(stream(source))
    assert first.image_BCHW.shape[0] == 1
