"""One start of a command, with all its processes.

A variable in their environment marks them, so that a process is found after its parents have ended.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from pipeline import events
from tests.processes import command, marked, running_after

MARK = "TPPT_CHAOS_START"

Process = psutil.Process

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
_INNER = "deepspeed.launcher.launch"  # the child of `deepspeed`, the parent of the ranks
_POLL_S = 0.05


class Start:
    """A started command, its log and its events."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        self.events = log.with_suffix(".events")
        self._mark = uuid.uuid4().hex
        self._started = time.monotonic()
        with open(log, "xb") as file:
            self._front = psutil.Popen(
                list(command),
                env={**environment, MARK: self._mark, events.VARIABLE: str(self.events)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach this program only
            )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def log_text(self) -> str:
        """All output so far."""
        return self.log.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while the command runs."""
        return self._front.poll()

    def wait(self, limit_s: float) -> int | None:
        """The exit status, or None if the command has not ended within ``limit_s`` seconds."""
        until = time.monotonic() + limit_s
        while self.status is None and time.monotonic() < until:
            time.sleep(_POLL_S)
        return self.status

    def launcher(self) -> list[Process]:
        """The started process itself; empty after its end."""
        return [self._front] if self.status is None else []

    def inner_launcher(self) -> list[Process]:
        """The process between the launcher and the ranks; empty if it does not run."""
        return [child for child in _children(self._front) if _INNER in command(child)]

    def ranks(self) -> list[Process]:
        """The running ranks, in order."""
        found = {}
        for inner in self.inner_launcher():
            for child in _children(inner):
                with contextlib.suppress(*_GONE):
                    # Between fork and exec it has the environment of its parent, without a rank.
                    found[int(child.environ().get("RANK", -1))] = child
        return [found[rank] for rank in sorted(found) if rank >= 0]

    def remaining(self) -> list[Process]:
        """Every running process of this start; zombies are not included."""
        return marked(MARK, self._mark)

    def wait_for_all(self, limit_s: float) -> list[Process]:
        """Wait for the end of every process; returns those that run after ``limit_s`` seconds."""
        return running_after(MARK, self._mark, seconds=limit_s)

    def kill(self) -> None:
        """Send SIGKILL to every process of this start, until no new one appears."""
        while remaining := self.remaining():
            send_signal(remaining, signal.SIGKILL)
            time.sleep(_POLL_S)
        self._front.wait()


def send_signal(processes: Sequence[Process], number: signal.Signals) -> None:
    """Send a signal to each running process, without a pause in between."""
    for process in processes:
        with contextlib.suppress(*_GONE):
            process.send_signal(number)


def freeze(process: Process) -> bool:
    """Stop a process with SIGSTOP; False if it has ended."""
    with contextlib.suppress(*_GONE):
        process.suspend()
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
        return process.status() == psutil.STATUS_STOPPED
    return False


def format_process(process: Process) -> str:
    """The process number and the command of a process, for the report."""
    return f"{process.pid} {command(process)[:200]}"


def _children(process: Process) -> list[Process]:
    with contextlib.suppress(*_GONE):
        return process.children()
    return []
