"""A watched run is shown as it proceeds, until it has finished or its process has ended."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import DataError
from pipeline.inspection.progress import ProgressReader
from pipeline.inspection.watch import watch_run
from pipeline.output.results import read_results


@pytest.fixture(params=["local", "memory", "s3"])
def output(request, interrupted_run: Path, tmp_path: Path) -> Iterator[str]:
    """A copy of the interrupted run, whose process is this one."""
    if request.param == "s3":
        target = f"s3://{request.getfixturevalue('bucket').name}/run"
    else:
        target = str(tmp_path / "run")
        target = target if request.param == "local" else f"memory://{target}"
    copy_run(interrupted_run, target)
    own(target, host=socket.gethostname(), process=os.getpid())
    yield target
    storage.remove_folder(target)


def copy_run(source: Path, target: str) -> None:
    """Write all files of a run to another place."""
    for file in filter(Path.is_file, source.rglob("*")):
        name = file.relative_to(source).as_posix()
        storage.write_atomically(storage.join(target, name), file.read_bytes())


def own(output: str, *, host: str, process: int) -> None:
    """Name a start as the owner of an output."""
    content = {"start": "0", "host": host, "process": process, "since": "2026-01-01T00:00:00+00:00"}
    storage.write_atomically(storage.join(output, "owner.json"), json.dumps(content).encode())


def sleeping(*steps: Callable[[], object]) -> Callable[[float], None]:
    """A sleep that takes one of ``steps`` each time instead, and then must not be called."""
    left = list(steps)

    def sleep(seconds: float) -> None:
        assert seconds > 0
        left.pop(0)()

    return sleep


def without_time(text: str) -> list[str]:
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_watch_writes_a_line_per_change_and_ends_with_the_run(output, finished_run, capsys):
    def finish() -> None:
        for file in ("metrics.jsonl", "results.json"):
            data = (finished_run / file).read_bytes()
            storage.write_atomically(storage.join(output, file), data)

    steps = [lambda: None, lambda: None, finish]
    results = watch_run(output, stalled_s=1e9, sleep=sleeping(*steps))
    assert results == read_results(str(finished_run))
    first, second, *learned, last = without_time(capsys.readouterr().out)
    assert first.startswith("task 1 learned: ")
    assert second.startswith("task 2/3 epoch 1/1 step ") and " loss " in second
    assert [line[:14] for line in learned] == ["task 2 learned", "task 3 learned"]
    assert last.startswith("finished: 3 tasks learned, average accuracy ")


def test_watch_shows_what_the_run_does_between_its_snapshots(output, finished_run, capsys):
    """must follow progress.json while it is the newest file, and ignore that of an earlier start"""
    state = {"doing": "training", "task": 1, "n_tasks": 3, "n_epochs": 2}
    step = {"task": 1, "epoch": 1, "step": 7, "loss": 0.5, "images_per_second": 1234.5}

    def write(name: str, content: bytes) -> None:
        storage.write_atomically(storage.join(output, name), content)
        future = time.time() + next(later)
        if storage.is_local(output):
            os.utime(f"{output}/{name}", (future, future))

    later = itertools.count(10)
    now_training = json.dumps({**state, "last_step": {**step, "task_steps": 9}}).encode()
    now_testing = json.dumps({**state, "doing": "testing"}).encode()
    steps = [
        lambda: write("progress.json", now_testing),
        lambda: write("results.json", (finished_run / "results.json").read_bytes()),
    ]
    write("progress.json", now_training)
    watch_run(output, stalled_s=1e9, sleep=sleeping(*steps))
    _, training, testing, *_ = without_time(capsys.readouterr().out)
    assert training.startswith("task 2/3 epoch 2/2 step 8/9 loss 0.500  1,234 images/s")
    assert testing.startswith("task 2/3: testing")
    write("progress.json", now_training)
    assert ProgressReader(output).read().live is not None
    if storage.is_local(output):
        write("owner.json", (Path(output) / "owner.json").read_bytes())
        assert ProgressReader(output).read().live is None, "of a start that was killed"


def test_stalled_run_is_reported_once(output, finished_run, capsys):
    own(output, host="elsewhere", process=7)

    def finish() -> None:
        data = (finished_run / "results.json").read_bytes()
        storage.write_atomically(storage.join(output, "results.json"), data)

    watch_run(output, stalled_s=-1, sleep=sleeping(*[lambda: None] * 3, finish))
    stalls = [line for line in capsys.readouterr().out.splitlines() if "stalled" in line]
    assert len(stalls) == 1 and "process 7 on elsewhere, since 2026-01-01T00" in stalls[0]


def test_watch_ends_if_the_process_has_ended_on_this_host(interrupted_run, tmp_path):
    copy = Path(shutil.copytree(interrupted_run, tmp_path / "run"))
    own(str(copy), host=socket.gethostname(), process=2**22 + 1)  # above every process number
    long_ago = (datetime.now() - timedelta(hours=1)).timestamp()
    for file in copy.iterdir():
        os.utime(file, (long_ago, long_ago))
    with pytest.raises(DataError, match="has ended with 1 tasks learned; start the same command"):
        watch_run(str(copy), stalled_s=1e9, sleep=sleeping())


def test_only_a_run_is_watched(tiny_shards):
    with pytest.raises(DataError, match="is a data set, and --watch follows a run"):
        watch_run(tiny_shards, stalled_s=1e9, sleep=sleeping())


def test_estimate_takes_the_tasks_left_at_the_mean_of_those_learned(output):
    progress = ProgressReader(output).read()
    assert progress.results is not None and progress.tested is not None
    (stage,) = progress.results.diagnostics
    later = progress.tested + timedelta(seconds=0.25)
    seconds = stage.train_seconds + stage.test_seconds
    assert progress.seconds_left(later) == pytest.approx(max(0, 2 * seconds - 0.25))


def test_files_are_read_again_only_when_they_have_changed(output, monkeypatch):
    reader = ProgressReader(output)
    first = reader.read()
    monkeypatch.setattr("pipeline.storage.read_text", None)
    monkeypatch.setattr("pipeline.storage.read_range", None)
    assert reader.read() == first
    rounding = timedelta(seconds=1)  # object stores round up to full seconds
    assert first.updated is not None and first.updated <= datetime.now(timezone.utc) + rounding


def test_torn_last_line_and_missing_files_are_tolerated(output):
    url = storage.join(output, "metrics.jsonl")
    storage.write_atomically(url, storage.read_bytes(url) + b'{"kind": "step", "ta')
    assert ProgressReader(output).read().last_step is not None
    storage.remove(url)
    storage.remove(storage.join(output, "results.json"))
    progress = ProgressReader(output).read()
    assert (progress.last_step, progress.results, progress.n_learned) == (None, None, 0)
