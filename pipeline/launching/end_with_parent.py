"""Run a program that ends with its starter: ``python end_with_parent.py PID COMMAND …``; Linux.

PID is the parent of this process. As soon as it has ended, for whatever reason, the kernel sends
this process a signal; it then asks the ranks of the program for a last snapshot and kills the rest
of its process group. If this process itself is killed, the program is killed too, and its ranks
stop by themselves.

It imports no module of the package, so that it starts at once under ``python -I``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil

_PR_SET_PDEATHSIG = 1
_GRACE_S = 20.0  # short, since the next start may come at any moment


def main(arguments: list[str]) -> int:
    """Start the program and wait for it; returns its exit status."""
    parent, *command = arguments
    # Handlers, since the program would inherit ignored signals.
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, _leave_to_program)
    signal.signal(signal.SIGHUP, _end_group)
    os.setpgid(0, 0)
    _request_signal_at_parent_end(signal.SIGHUP)
    if os.getppid() != int(parent):  # it ended before the request
        sys.exit(f"process {parent} has ended; not starting {command[0]}")
    program = subprocess.Popen(
        command, preexec_fn=lambda: _request_signal_at_parent_end(signal.SIGKILL)
    )  # safe, since this process has one thread
    status = program.wait()
    return status if status >= 0 else 128 - status


def _request_signal_at_parent_end(number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _leave_to_program(number: int, frame: FrameType | None) -> None:
    """Do nothing: a batch system signals every process of a job, the ranks too."""


def _end_group(number: int, frame: FrameType | None) -> None:
    """Ask every process of the group to end; kill the rest after the grace period."""
    signal.signal(signal.SIGHUP, _leave_to_program)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while _has_group_others() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


def _has_group_others() -> bool:
    """Whether another process of this group is alive."""
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            is_other = os.getpgid(process.pid) == os.getpgid(0) and process.pid != os.getpid()
            if is_other and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
