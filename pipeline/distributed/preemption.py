"""Being asked to stop: by SIGTERM, by SIGUSR2, or by a launcher that is no longer there.

A handler only notes the request. The training loop looks at it once a step, where all ranks agree,
so that every rank stops at the same step whoever was asked.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipeline.errors import Preempted

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

_LAUNCHER = re.compile(r"(.*/)?(deepspeed|torchrun)|(deepspeed|torch\.distributed)\.[\w.]+")
_DEEPSPEED = "CROSS_SIZE"  # a variable that DeepSpeed's launcher alone sets for its ranks
_INNER = "deepspeed.launcher.launch"  # starts the ranks; the front process `deepspeed` starts it
_POLL_S = 0.5
_GRACE_S = 60.0  # how long a rank without a launcher may take over its last snapshot


class StopRequest:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def listen(self, *more: signal.Signals) -> None:
        """Note the stop signals from now on, and watch the launcher; main thread only."""
        for number in (*STOP_SIGNALS, *more):
            signal.signal(number, self._note_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # whoever started this process
        launchers = _launchers(os.getppid())
        if launchers or _DEEPSPEED in os.environ:
            threading.Thread(target=self._watch, args=(launchers,), daemon=True).start()

    @property
    def is_made(self) -> bool:
        """Whether this process was asked to stop."""
        return self._reason is not None

    def raise_if_requested(self) -> None:
        """Do nothing unless this process was asked to stop.

        Raises:
            Preempted: it was.
        """
        if self._reason:
            raise Preempted(f"{self._reason}; start the same command again to go on")

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"

    def _watch(self, launchers: dict[int, str]) -> None:
        """Stop when a launcher has gone: no one would collect or end this process any more.

        DeepSpeed's front process, killed or sent SIGTERM, leaves its ranks running.
        """
        while not _lost_launcher(launchers):
            if any(_started(pid) != started for pid, started in launchers.items()):
                break
            time.sleep(_POLL_S)
        self._reason = "stopped because the launcher has gone"
        time.sleep(_GRACE_S)
        log.error("no step ended within %.0f s after the launcher had gone: leaving", _GRACE_S)
        os._exit(Preempted.exit_status)


def ignore_stop_signals() -> None:
    """One that comes while the process ends must not take the place of its exit status."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Processes started within the block do not hear the stop signals.

    A batch system signals every process of a job. A loader process that died of it would turn an
    orderly stop into a fault.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _launchers(pid: int) -> dict[int, str]:
    """The launchers above a process with their start times, nearest first; Linux only."""
    found: dict[int, str] = {}
    while pid > 1 and (started := _started(pid)):
        if not any(map(_LAUNCHER.fullmatch, _command_line(pid)[:5])):
            break
        found[pid] = started
        pid = int(_status(pid)[1])
    return found


def _lost_launcher(launchers: dict[int, str]) -> bool:
    """Whether a launcher of DeepSpeed's had gone, or was going, before it could be found.

    Its front process, its inner launcher and the ranks are of one process group. An inner launcher
    or a rank whose parent is of another group, and which does not lead its own, was adopted.
    """
    top = [os.getpid(), *launchers][-1]
    if _DEEPSPEED not in os.environ or (launchers and _INNER not in _command_line(top)):
        return False
    fields = _status(top)
    if not fields or fields[2] == str(top):
        return False
    parent = _status(int(fields[1]))
    return bool(parent) and parent[2] != fields[2]


def _started(pid: int) -> str | None:
    """When a process was started, in clock ticks; None if it has gone or awaits its parent."""
    fields = _status(pid)
    return fields[19] if fields and fields[0] not in ("Z", "X") else None


def _command_line(pid: int) -> list[str]:
    """The words that a process was started with; empty without such a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _status(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on; empty without such a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
