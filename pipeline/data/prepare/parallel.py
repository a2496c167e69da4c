"""``map`` over several processes, and reports of progress."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

from pipeline import storage
from pipeline.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]  # called with the items done and the items in all

_PRELOADED = ["torch", "PIL.Image", "webdataset"]  # slow imports, done once for all processes


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, jobs: int
) -> Iterator[Result]:
    """``map(function, items)`` on ``jobs`` processes, with a limited number of items in work.

    ``function`` and the items are pickled; with one job all work is done in this process.

    Raises:
        ConfigError: the processes cannot be started, or the system killed one.
    """
    if jobs <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # while the server imports
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    items = iter(items)
    pool = ProcessPoolExecutor(jobs, context, _start_process, (storage.deadline_s(),))
    try:
        with _signals_held():  # a process whose start is interrupted writes a traceback
            running = deque(pool.submit(function, item) for item in islice(items, 4 * jobs))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(function, item) for item in islice(items, 1))
    except BrokenProcessPool as error:
        raise ConfigError(
            f"a process of --jobs {jobs} was killed, probably for lack of memory; "
            "give a smaller --jobs and start the same command again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_process(deadline_s: float) -> None:
    """Prepare a process of the pool."""
    # Ctrl-C reaches every process of the terminal; only the first one handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    storage.set_deadline(deadline_s)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM wait; this process handles them at its end."""
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if is_main and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for signal_number in received:
            signal.raise_signal(signal_number)
