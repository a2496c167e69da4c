"""Requests to stop a run: SIGTERM, SIGUSR2, SIGINT (Ctrl-C), SIGHUP (the terminal has closed), or a
launcher that has gone.

A signal handler only notes the request. The training loop reads it once per step, where all ranks
agree, so that all ranks stop after the same step. A second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from pipeline.cli import CONTINUE, INTERRUPTED
from pipeline.distributed.launcher_watch import LauncherWatch
from pipeline.errors import Preempted

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)

_POLL_S = 0.5
_GRACE_S = 60.0  # longest time for the last snapshot of a rank without a launcher
_ONE_PRESS_S = 1.0  # a launcher may pass on the SIGINT that the terminal has sent to all processes


class StopRequest:
    """Whether this process was asked to stop, and the reason."""

    def __init__(self, *, how_to_continue: str = CONTINUE) -> None:
        self._reason: str | None = None
        self._how_to_continue = how_to_continue

    def listen(self) -> None:
        """Note the stop signals from now on, and watch the launcher; main thread only."""
        for number in STOP_SIGNALS:
            is_nohup = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if not is_nohup:
                signal.signal(number, self._note_signal)
        # The process that started this one may have blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        watch = LauncherWatch(os.environ)
        _end_at_second_interrupt(_ONE_PRESS_S if watch.has_launcher else 0.0)
        if watch.has_launcher:
            threading.Thread(target=self._follow, args=(watch,), daemon=True).start()

    @property
    def is_made(self) -> bool:
        """Whether this process was asked to stop."""
        return self._reason is not None

    def raise_if_requested(self) -> None:
        """Raise if this process was asked to stop.

        Raises:
            Preempted: it was; the message gives the reason.
        """
        if self._reason:
            raise Preempted(f"{self._reason}; {self._how_to_continue}")

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or f"stopped by {signal.Signals(number).name}"
        if number == signal.SIGHUP:
            _drop_output_to_terminal()

    def _follow(self, watch: LauncherWatch) -> None:
        """Ask to stop when a launcher has gone, and end a rank that does not stop in time."""
        while not watch.is_lost():
            time.sleep(_POLL_S)
        self._reason = "stopped because the launcher has gone"
        time.sleep(_GRACE_S)
        log.error("no step ended within %.0f s after the launcher had gone: leaving", _GRACE_S)
        os._exit(Preempted.exit_status)


def _drop_output_to_terminal() -> None:
    """Drop what is written to stdout and stderr if they are the terminal that has closed."""
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            with contextlib.suppress(OSError):  # it is not open
                if stat.S_ISCHR(os.fstat(stream).st_mode):  # isatty is false for a closed terminal
                    os.dup2(nowhere.fileno(), stream)


def _end_at_second_interrupt(one_press_s: float) -> None:
    """End this process at the second SIGINT, even while its main thread waits in a library.

    A SIGINT within ``one_press_s`` seconds after the first one belongs to the same press.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    # Python writes the number of each signal here, before the main thread can run a handler.
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    threading.Thread(target=_follow_interrupts, args=(receiver, one_press_s), daemon=True).start()


def _follow_interrupts(receiver: int, one_press_s: float) -> None:
    first: float | None = None
    while received := os.read(receiver, 1):
        handler = getattr(signal.getsignal(signal.SIGINT), "__func__", None)
        if received[0] != signal.SIGINT or handler is not StopRequest._note_signal:
            continue
        now = time.monotonic()
        if first is None:
            first = now
            if os.environ.get("RANK", "0") == "0":
                _write_line("interrupted: stopping at the next step; a second Ctrl-C ends at once")
        elif now - first >= one_press_s:
            _write_line("interrupted a second time: ended at once")
            os._exit(INTERRUPTED)


def _write_line(text: str) -> None:
    """Write to stderr at once: no other thread may hold it, and it may be closed."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def ignore_stop_signals() -> None:
    """Ignore stop signals while the process ends, so that none replaces its exit status."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals in all processes that are started within the block.

    A batch system signals every process of a job. A loader process that died of the signal would
    turn an orderly stop into an error.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # Python's helper process must not hear the signals either; its start unblocks some here.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
