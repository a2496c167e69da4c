"""One start of a command, with every process that comes of it.

A variable in the environment marks them, so that one whose parents have gone is still found.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

MARK = "TPPT_CHAOS_START"

Process = psutil.Process

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
_INNER = "deepspeed.launcher.launch"  # what the front process `deepspeed` starts, once per node
_POLL_S = 0.05


class Start:
    """A command that was started, and what it says."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        self._mark = uuid.uuid4().hex
        self._begun = time.monotonic()
        with open(log, "xb") as file:
            self._front = psutil.Popen(
                list(command),
                env={**environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us alone
            )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._begun

    @property
    def said(self) -> str:
        """All output so far."""
        return self.log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._front.poll()

    def wait(self, limit_s: float) -> int | None:
        """Its exit status, or None if it has not ended in time."""
        until = time.monotonic() + limit_s
        while self.status is None and time.monotonic() < until:
            time.sleep(_POLL_S)
        return self.status

    def launcher(self) -> list[Process]:
        """The started process itself, while it runs."""
        return [self._front] if self.status is None else []

    def inner_launcher(self) -> list[Process]:
        """The process between it and the ranks; empty if there is none yet or any more."""
        return [child for child in _children(self._front) if _INNER in _command_line(child)]

    def ranks(self) -> list[Process]:
        """The ranks in order, as far as they run."""
        found = {}
        for inner in self.inner_launcher():
            for child in _children(inner):
                with contextlib.suppress(*_GONE):
                    # Between fork and exec it still looks like its parent, which has no rank.
                    found[int(child.environ().get("RANK", -1))] = child
        return [found[rank] for rank in sorted(found) if rank >= 0]

    def left(self) -> list[Process]:
        """Every process of this start that still runs; one that awaits its parent does not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(*_GONE):
                mine = process.environ().get(MARK) == self._mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait_until_left(self, limit_s: float) -> list[Process]:
        """What still runs once nothing does, or after ``limit_s``."""
        until = time.monotonic() + limit_s
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(4 * _POLL_S)
        return left

    def kill(self) -> None:
        """SIGKILL every process of this start, those included that start meanwhile."""
        while left := self.left():
            send(left, signal.SIGKILL)
            time.sleep(_POLL_S)
        self._front.wait()


def send(processes: Sequence[Process], number: signal.Signals) -> None:
    """Send a signal to each that is still there, without a pause between two."""
    for process in processes:
        with contextlib.suppress(*_GONE):
            process.send_signal(number)


def freeze(process: Process) -> bool:
    """Stop a process where it is; False if it is not there any more."""
    with contextlib.suppress(*_GONE):
        process.suspend()
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
        return process.status() == psutil.STATUS_STOPPED
    return False


def describe(process: Process) -> str:
    """A process for a report."""
    return f"{process.pid} {' '.join(_command_line(process))[:200]}"


def free_port() -> int:
    """A port of this machine that no one listens on.

    Not one that the kernel hands out by itself: between two starts it could give it to others.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _children(process: Process) -> list[Process]:
    with contextlib.suppress(*_GONE):
        return process.children()
    return []


def _command_line(process: Process) -> list[str]:
    with contextlib.suppress(*_GONE):
        return process.cmdline()
    return []
