"""Run a program that ends with whoever started it: ``python tether.py PID CMD …``.

The kernel is asked, in the very process that becomes CMD, to kill it as soon as PID, its parent,
has ended. Asking between fork and exec of the parent instead would run Python in a copy of a
process with many threads, which may never return.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Become the program; never returns."""
    parent, *command = words
    if sys.platform == "linux":  # elsewhere nothing ends it but its own watching of the launcher
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before it could be asked
        sys.exit(f"process {parent} has ended; not starting {command[0]}")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
