"""The start of a run on a large data set: its time, and its memory on a node of several ranks.

The data set has an index and tables, and shards without content: a start reads no image.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from pipeline.bench.drawn import class_names
from pipeline.bench.settings import BenchConfig
from pipeline.data.index import INDEX_NAME, format_index
from pipeline.data.plan import ONE_PROCESS
from pipeline.data.shard import Segment, Shard
from pipeline.output.identity import identify
from pipeline.training.checked_run import check_run

_SEGMENT_SAMPLES = 80  # of 100 KB each: 8 MiB
_SAMPLE_BYTES = 100 << 10
_TEST_SHARE = 20  # one shard of so many is one of the test split
_MEMORY = Path("/proc/self/smaps_rollup")


def write_large(folder: Path, *, shards: int, samples: int, classes: int) -> None:
    """Write the index and the tables of ``shards`` shards of ``samples`` samples each."""
    written = []
    n_test = max(1, shards // _TEST_SHARE)
    for split, count in (("train", shards - n_test), ("test", n_test)):
        label_S = np.arange(count * samples) * classes // (count * samples)
        for number in range(count):
            part_S = label_S[number * samples : (number + 1) * samples]
            written.append(_write_shard(folder, f"{split}-{number:06d}", part_S))
    names = class_names(classes)
    (folder / INDEX_NAME).write_bytes(format_index(names, names, written))


def _write_shard(folder: Path, stem: str, label_S: np.ndarray) -> Shard:
    rows = range(len(label_S))
    table = {
        "key": [f"{label:05d}/{stem}-{row}" for row, label in enumerate(label_S.tolist())],
        "offset": [row * _SAMPLE_BYTES for row in rows],
        "size": [_SAMPLE_BYTES] * len(rows),
        "crc32": [*rows],
        "image_sha256": ["0" * 64] * len(rows),
    }
    data = json.dumps(table, separators=(",", ":")).encode()
    (folder / f"{stem}.json").write_bytes(data)
    size = len(rows) * _SAMPLE_BYTES
    (folder / f"{stem}.tar").touch()
    os.truncate(folder / f"{stem}.tar", size)  # takes no space
    cuts = {0, *range(0, len(rows), _SEGMENT_SAMPLES), *(np.flatnonzero(np.diff(label_S)) + 1)}
    starts = sorted(map(int, cuts))
    segments = tuple(
        Segment(
            label=int(label_S[start]),
            samples=stop - start,
            offset=start * _SAMPLE_BYTES,
            bytes=(stop - start) * _SAMPLE_BYTES,
            sha256=hashlib.sha256(f"{stem} {start}".encode()).hexdigest(),
        )
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)
    )
    table_sha256 = hashlib.sha256(data).hexdigest()
    split = stem.partition("-")[0]
    return Shard(f"{stem}.tar", split, len(rows), size, "0" * 64, table_sha256, segments)


def start_together(config: BenchConfig, ranks: int) -> tuple[float, int]:
    """Seconds until the last of ``ranks`` processes has its first batch, and their memory in bytes.

    The memory is what all of them together take in addition to their imports; a page that several
    share counts once.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(ranks)]
    processes = [context.Process(target=_start, args=(config, there)) for _, there in pipes]
    for process in processes:
        process.start()
    for here, _ in pipes:
        here.recv()  # its imports are done
    started = time.perf_counter()
    for here, _ in pipes:
        here.send("go")
    for here, _ in pipes:
        here.recv()
    elapsed = time.perf_counter() - started
    for here, _ in pipes:  # all are there while their memory is measured
        here.send("measure")
    size = sum(here.recv() for here, _ in pipes)
    for here, _ in pipes:
        here.send("end")
    for process in processes:
        process.join()
    return elapsed, size


def _start(config: BenchConfig, pipe: Connection) -> None:
    """What each rank does before its first step, without the model."""
    before = _memory_bytes()
    pipe.send("imported")
    pipe.recv()
    run = check_run(config, 1)
    identify(config, run.index, run.tasks, "")
    sum(map(run.data.expected_steps, run.tasks))
    plan = run.data.epoch(run.tasks[0], 0)
    plan.selection.take(plan.shares(ONE_PROCESS)[0])
    pipe.send("started")
    pipe.recv()
    pipe.send(_memory_bytes() - before)
    pipe.recv()


def _memory_bytes() -> int:
    """The memory of this process; a page that n processes share counts as 1/n."""
    found = re.search(r"^Pss:\s*(\d+) kB", _MEMORY.read_text(), flags=re.MULTILINE)
    assert found, f"{_MEMORY} has no Pss"
    return 1024 * int(found[1])
