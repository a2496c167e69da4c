"""Every process of a start is found and ended."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.processes import Start, send_signal

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
if sys.argv[1] == "waits":
    child.wait()
"""  # noqa: E501


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Start]]:
    """Starts a command; no process of it remains after the test."""
    started = []

    def begin(*command: str) -> Start:
        log = tmp_path / f"{len(started)}.log"
        started.append(Start(command, environment={"PATH": os.environ["PATH"]}, log=log))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


def test_process_that_outlives_its_command_is_found_and_killed(start):
    command = start(sys.executable, "-c", PARENT, "leaves")
    other = start("sleep", "600")
    assert command.wait(60) == 0
    (orphan,) = command.wait_for_all(0.5)
    assert orphan.pid not in (os.getpid(), command._front.pid)
    command.kill()
    assert command.remaining() == []
    assert other.status is None


def test_command_is_killed_with_its_children(start):
    command = start(sys.executable, "-c", PARENT, "waits")
    while "up" not in command.log_text:
        assert command.wait(0.1) is None
    assert len(command.remaining()) == 2
    command.kill()
    assert command.status == -signal.SIGKILL and command.remaining() == []


def test_signal_to_an_ended_process_does_nothing(start):
    command = start("true")
    (front,) = command.launcher() or [command._front]
    command.wait(60)
    send_signal([front], signal.SIGKILL)
    assert command.status == 0 and command.launcher() == []
