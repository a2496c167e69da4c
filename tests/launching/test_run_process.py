"""The launch of a run: its own devices and port, and the right reason of its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from pipeline import train
from pipeline.errors import DataError
from pipeline.events import VARIABLE, read_events
from pipeline.launching.command import (
    TRAIN,
    Devices,
    Place,
    hostfile_text,
    launch_command,
    launch_environment,
    on_this_host,
)
from pipeline.launching.ports import reserved_port
from pipeline.launching.run_process import Ended, RunProcess, how_it_ended
from tests.tiny import build_config

ROOT = Path(__file__).parents[2]
CONFIG = Path("/private/config.yaml")


def command(*nodes: Devices, node: int = 0) -> list[str]:
    place = Place(nodes, node, "10.0.0.1", 4711)
    return launch_command(CONFIG, place, hostfile=Path("/private/hostfile"))


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_gpus_of_a_run_are_named_by_their_numbers_on_the_node():
    words = command(Devices(2, (5, 7)))
    assert after(words, "--include") == "localhost:5,7"
    assert after(words, "--master_port") == "4711"
    assert not {"--num_gpus", "--num_accelerators"} & set(words), "they ignore which GPUs are ours"


def test_a_run_without_gpus_has_a_rank_for_each_core():
    assert after(command(Devices(3)), "--num_accelerators") == "3"


def test_every_node_of_a_run_is_given_the_devices_of_all():
    nodes = Devices(2, (0, 3)), Devices(2, (1, 2))
    first, second = command(*nodes), command(*nodes, node=1)
    assert after(second, "--include") == "node-0:0,3@node-1:1,2"
    assert after(second, "--node_rank") == "1" and after(second, "--master_addr") == "10.0.0.1"
    assert "--no_ssh" in second
    assert [a for a, b in zip(first, second, strict=True) if a != b] == ["0"]
    assert hostfile_text(Place(nodes, 0, "", 1)) == "node-0 slots=4\nnode-1 slots=3\n"
    assert "--include" not in command(Devices(2), Devices(2))


def test_the_environment_of_a_run_has_its_devices_and_no_variable_of_ray():
    before = {
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "RANK": "3",
        "MASTER_ADDR": "x",
        "RAY_AUTH_TOKEN": "secret",
        "TUNE_ORIG_WORKING_DIR": "/x",
        "AWS_PROFILE": "mine",
    }
    assert launch_environment(before, Devices(2, (2, 3), threads=4)) == {
        "CUDA_VISIBLE_DEVICES": "2,3",
        "OMP_NUM_THREADS": "4",
        "AWS_PROFILE": "mine",
    }
    on_cpu = launch_environment(before, Devices(2))
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == "" and on_cpu["DS_ACCELERATOR"] == "cpu"


def test_run_on_this_host_takes_overrides_and_the_devices_that_are_visible():
    """must leave to the environment which GPUs those are, and how many threads a rank has"""
    place = on_this_host(Devices(2, gpus=None, threads=None), 4711)
    words = launch_command("a.yaml", place, overrides=["seed=2", "output=x"], quiet=True)
    assert after(words, "--num_accelerators") == "2" and after(words, "--master_port") == "4711"
    assert words.index("--quiet") < words.index(str(TRAIN))
    assert words[-5:] == [str(TRAIN), "--config", "a.yaml", "seed=2", "output=x"]
    environment = {"CUDA_VISIBLE_DEVICES": "3,4", "OMP_NUM_THREADS": "7"}
    assert launch_environment(environment, place.devices) == environment


def test_runs_report_events_to_their_own_launcher_only():
    outer = {VARIABLE: "/outer"}
    assert VARIABLE not in launch_environment(outer, Devices(1))
    inner = launch_environment(outer, Devices(1), event_file=Path("/inner"))
    assert inner[VARIABLE] == "/inner"


def test_no_two_runs_on_a_host_have_the_same_port(monkeypatch):
    """must hold even where a port is drawn twice, and leave out ports that are in use"""
    with socket.socket() as taken:
        taken.bind(("", 0))
        used = taken.getsockname()[1]
        draws = iter([used, 21_111, 21_111, 22_222, 21_111])
        monkeypatch.setattr("random.SystemRandom.choice", lambda self, ports: next(draws))
        with reserved_port() as first, reserved_port() as second:
            assert (first, second) == (21_111, 22_222)
        with reserved_port() as again:
            assert again == 21_111


def ended(error: str, message: str, status: int, rank: int = 0) -> dict[str, Any]:
    """The event that ``EventLog.add_end`` writes."""
    return {"event": "ended", "rank": rank, "error": error, "message": message, "status": status}


LOST = ended("LostRankError", "rank 0 lost contact with the others: x", 1)
STOPPED = ended("Preempted", "stopped by SIGUSR2; start again", 75)
TAKEN_OVER = ended("TakenOverError", "owner.json: another start has taken over", 2)
NO_INDEX = ended("DataError", "data.index: gone", 2)
NO_MEMORY = ended("OutOfMemoryError", "CUDA out of memory. Tried 2 GiB", 1, rank=1)


@pytest.mark.parametrize(
    ("status", "events", "reason"),
    [
        (2, [NO_INDEX], "data.index: gone"),
        (247, [LOST, NO_INDEX], "data.index: gone"),
        (1, [LOST, NO_MEMORY], "OutOfMemoryError: CUDA out of memory. Tried 2 GiB"),
        (1, [NO_MEMORY, STOPPED], "OutOfMemoryError: CUDA out of memory. Tried 2 GiB"),
        (1, [{"event": "step", "rank": 0, "task": 0, "step": 1}], "exit status 1: the last line"),
    ],
)
def test_error_of_a_rank_is_the_reason_of_a_failed_run(status, events, reason):
    """must hold although the other ranks lose contact or are stopped, perhaps before it"""
    assert how_it_ended(status, events, "the last line") == Ended(reason)


@pytest.mark.parametrize(
    ("status", "events", "words"),
    [
        (1, [LOST, STOPPED], "lost contact with the others"),
        (75, [STOPPED], "stopped by SIGUSR2"),
        (0, [STOPPED], "stopped by SIGUSR2"),
        (2, [TAKEN_OVER], "another start has taken over"),
        (247, [], "a process of the run was killed"),
        (0, [], "a process of the run was killed"),
        (247, [NO_MEMORY], "a process of the run was killed"),
    ],
)
def test_killed_or_stopped_run_is_lost_and_may_be_resumed(status, events, words):
    """must not believe exit status 0 of a run without results: a killed launcher returns it"""
    found = how_it_ended(status, events, "the last line")
    assert found.lost and words in found.reason


def test_reason_of_a_failed_run_is_not_longer_than_a_table_can_show():
    [traceback] = [ended("RuntimeError", "word " * 1000, 1)]
    assert len(how_it_ended(1, [traceback], "").reason) <= 400


class Recorded(Exception):
    """Raised by a rank of a test."""


@pytest.mark.parametrize(
    ("error", "status"), [(DataError("data.index: gone"), 2), (Recorded("two\nlines"), 1)]
)
def test_rank_reports_the_error_that_ends_it(tmp_path, monkeypatch, error, status):
    """must report errors of other libraries too, and keep their traceback"""
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(VARIABLE, str(events))
    monkeypatch.setattr("pipeline.config.load_config", Mock(side_effect=error))
    monkeypatch.setattr("pipeline.distributed.preemption.StopRequest.listen", Mock())
    if status == 1:
        with pytest.raises(Recorded):
            train.main(["--config", "x.yaml"])
    else:
        assert train.main(["--config", "x.yaml"]) == status
    message = " ".join(str(error).split())
    assert read_events(events)[0] == [ended(type(error).__name__, message, status)]


def test_ended_run_reports_the_events_of_its_own_launch(tmp_path, monkeypatch):
    """must empty the event file, and append to the log, which an earlier launch may have left"""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    script = (
        "import os; from pipeline.errors import DataError; from pipeline.events import EventLog;"
        "print('a line'); EventLog(os.environ).add_end(DataError('gone'), 2); raise SystemExit(2)"
    )
    silent = "print('a line'); raise SystemExit(2)"
    place = on_this_host(Devices(1), 4711)
    config = build_config("local-dir:x", "x", output=str(tmp_path / "run"))
    reasons = []
    for source in (script, silent):
        command = [sys.executable, "-c", source]
        monkeypatch.setattr(
            "pipeline.launching.run_process.launch_command", lambda *a, c=command, **k: c
        )
        run = RunProcess(config, place)
        reasons.append(run.end().reason)
    run.keep_log(str(tmp_path / "run.log"))
    assert reasons == ["gone", "exit status 2: a line"]
    assert (tmp_path / "run.log").read_text() == "a line\n" * 2
    assert not list(tmp_path.glob("tppt-*/*-0"))


END_WITH_PARENT = str(ROOT / "pipeline/launching/end_with_parent.py")
SLEEPER = "import os,time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.fixture
def watched() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A parent, and the child of the program that it started with ``end_with_parent.py``."""
    starter = f"import subprocess,sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
    parent = (
        "import os,subprocess,sys\n"
        f"subprocess.run([sys.executable, '-I', {END_WITH_PARENT!r}, str(os.getpid()), "
        f"sys.executable, '-c', {starter!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    yield process, psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate(timeout=120)


def test_a_watched_program_ends_with_its_parent(watched):
    """must end with all its children, even when the parent is killed"""
    parent, grandchild = watched
    parent.send_signal(signal.SIGKILL)
    grandchild.wait(120)


def test_a_watched_program_ends_with_its_watcher(watched):
    _, grandchild = watched
    program, watcher = grandchild.parent(), grandchild.parent().parent()
    assert END_WITH_PARENT in watcher.cmdline()
    watcher.kill()
    program.wait(120)
    grandchild.kill()


def test_a_watcher_returns_the_status_of_its_program():
    words = [sys.executable, "-I", END_WITH_PARENT, str(os.getpid()), sys.executable, "-c"]
    assert subprocess.run([*words, "raise SystemExit(75)"]).returncode == 75
    killed = "import os; os.kill(os.getpid(), 9)"
    assert subprocess.run([*words, killed]).returncode == 128 + 9


def test_a_program_whose_parent_has_ended_is_not_started():
    words = [sys.executable, "-I", END_WITH_PARENT, "1", "/bin/true"]
    if os.getpid() == 1:
        pytest.skip("this is process 1")
    assert subprocess.run(words, capture_output=True).returncode == 1
