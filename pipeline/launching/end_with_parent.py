"""Run a program that ends with whoever started it: ``python tether.py PID CMD …``; Linux only.

The kernel tells this process as soon as PID, its parent, has ended, however it did. Then the
program's ranks are asked for a last snapshot, and what is left of its process group is killed. Were
this process killed itself, the program would be too, and its ranks stop by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1
_GRACE_S = 20.0  # nobody waits any more, and the next start may come at any moment


def main(words: list[str]) -> int:
    """Start the program and wait for it; returns its exit status."""
    parent, *command = words
    # Handlers, since what is ignored would also be ignored by the program.
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, _leave_it_to_the_program)
    signal.signal(signal.SIGHUP, _end_group)
    os.setpgid(0, 0)
    _tell_when_parent_ends(signal.SIGHUP)
    if os.getppid() != int(parent):  # it ended before it could be watched
        sys.exit(f"process {parent} has ended; not starting {command[0]}")
    program = subprocess.Popen(
        command, preexec_fn=lambda: _tell_when_parent_ends(signal.SIGKILL)
    )  # one thread here: nothing can go wrong between fork and exec
    status = program.wait()
    return status if status >= 0 else 128 - status


def _tell_when_parent_ends(number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _leave_it_to_the_program(number: int, frame: FrameType | None) -> None:
    """A batch system signals every process of a job."""


def _end_group(number: int, frame: FrameType | None) -> None:
    """Ask every process of the group to end, then make it."""
    signal.signal(signal.SIGHUP, _leave_it_to_the_program)
    os.killpg(0, signal.SIGTERM)
    give_up = time.monotonic() + _GRACE_S
    while list(_others_of_group()) and time.monotonic() < give_up:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


def _others_of_group() -> Iterator[int]:
    """The living processes of this group but this one."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            state, _, group = file.read().rpartition(")")[2].split()[:3]
            if int(group) == os.getpgid(0) and int(name) != os.getpid() and state != "Z":
                yield int(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
