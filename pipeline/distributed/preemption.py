"""Requests to stop a run: SIGTERM, SIGUSR2, or a launcher that has gone.

A signal handler only notes the request. The training loop reads it once per step, where all ranks
agree, so that all ranks stop after the same step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.distributed.launcher_watch import LauncherWatch
from pipeline.errors import Preempted

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

_POLL_S = 0.5
_GRACE_S = 60.0  # longest time for the last snapshot of a rank without a launcher


class StopRequest:
    """Whether this process was asked to stop, and the reason."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def listen(self, *more: signal.Signals) -> None:
        """Note the stop signals from now on, and watch the launcher; main thread only."""
        for number in (*STOP_SIGNALS, *more):
            signal.signal(number, self._note_signal)
        # The process that started this one may have blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        watch = LauncherWatch(os.environ)
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
            raise Preempted(f"{self._reason}; start the same command again to continue")

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"

    def _follow(self, watch: LauncherWatch) -> None:
        """Ask to stop when a launcher has gone, and end a rank that does not stop in time."""
        while not watch.is_lost():
            time.sleep(_POLL_S)
        self._reason = "stopped because the launcher has gone"
        time.sleep(_GRACE_S)
        log.error("no step ended within %.0f s after the launcher had gone: leaving", _GRACE_S)
        os._exit(Preempted.exit_status)


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
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
