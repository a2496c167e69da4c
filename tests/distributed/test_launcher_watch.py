"""A rank notices that its launcher has gone; no other parent is a launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.distributed.launcher_watch import LauncherWatch

ROOT = Path(__file__).parents[2]

# Starts the command in its arguments and waits.
STARTER = """\
import subprocess, sys, time
subprocess.Popen(sys.argv[1:])
print("up", flush=True)
time.sleep(300)
"""
# A rank: answers each line on stdin with the state of its launcher.
RANK = """\
import os, sys
from pipeline.distributed.launcher_watch import LauncherWatch
watch = LauncherWatch(os.environ)
for line in sys.stdin:
    print(watch.has_launcher, watch.is_lost(), flush=True)
"""


class Chain:
    """A starter ``name`` in its own process group, and the rank below it."""

    def __init__(self, folder: Path, name: str, *words: str, variables: dict[str, str]) -> None:
        script = folder / name
        script.write_text(STARTER)
        rank = [sys.executable, "-c", RANK]
        self.starter = subprocess.Popen(
            [sys.executable, str(script), *words, *rank],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.starter.stdout.readline() == "up\n"

    def ask(self) -> str:
        """Whether the rank has a launcher, and whether it is lost."""
        self.starter.stdin.write("\n")
        self.starter.stdin.flush()
        return self.starter.stdout.readline().strip()


@contextmanager
def chain(folder: Path, name: str, *words: str, **variables: str) -> Iterator[Chain]:
    made = Chain(folder, name, *words, variables=variables)
    try:
        yield made
    finally:
        os.killpg(made.starter.pid, signal.SIGKILL)
        made.starter.communicate()


@pytest.mark.parametrize("name", ["deepspeed", "torchrun"])
def test_killed_launcher_is_lost(tmp_path, name):
    """must hold at once, while its own parent has not yet read its exit status"""
    with chain(tmp_path, name) as started:
        assert started.ask() == "True False"
        started.starter.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, started.starter.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(started.starter.pid).status() == psutil.STATUS_ZOMBIE
        assert started.ask() == "True True"


def test_other_parent_is_no_launcher(tmp_path):
    with chain(tmp_path, "my_script.py") as started:
        assert started.ask() == "False False"
        started.starter.send_signal(signal.SIGKILL)
        started.starter.wait(120)
        assert started.ask() == "False False"


def test_rank_of_deepspeed_that_was_adopted_has_lost_its_launcher(tmp_path):
    """must hold when the launcher went before the rank could find it"""
    with chain(tmp_path, "my_script.py", CROSS_SIZE="1") as started:
        assert started.ask() == "True False"  # the parent is in the group of the rank
        started.starter.send_signal(signal.SIGKILL)
        started.starter.wait(120)
        assert started.ask() == "True True"  # the new parent is not


def test_process_of_these_tests_has_no_launcher():
    watch = LauncherWatch({})
    assert not watch.has_launcher and not watch.is_lost()
