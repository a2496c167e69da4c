"""Loader workers: processes that answer requests, in order, for one stream after another.

Workers keep no state between requests, so the same workers serve every epoch, task and evaluation
of a run, and no batch depends on the worker that makes it. A worker that is killed or does not
answer in time ends the stream with an error that gives the reason.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.data.batch import Answer, BatchMaker, Request
from pipeline.data.shared_memory import BATCHES_PER_WORKER, SHARED_MEMORY, free_bytes
from pipeline.distributed.preemption import STOP_SIGNALS, stop_signals_blocked
from pipeline.errors import DataError
from pipeline.text import format_bytes

# Slow imports of a worker: done once, in the server process from which workers are forked.
_PRELOADED = ["torch.utils.data", "webdataset", "PIL.Image"]
_START_S = 60.0  # for the first answer of new workers, in addition to the limit of every answer
_POLL_S = 0.5
_NO_ROOM = 71  # exit status of a worker that cannot hand over a batch
_MOMENT_S = 1.0  # from the broken connection of a killed process to its exit status
_SIGNALS = {
    signal.SIGKILL: "the system probably had no memory left; lower data.workers, or free memory",
    signal.SIGBUS: f"{SHARED_MEMORY} is probably full; set data.workers=0, or enlarge it "
    "(docker run --shm-size=8g)",
}


class RequestFeed:
    """Hands the requests of the present stream to a loader that outlives many streams."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class Loader:
    """Answers requests, in this process or in loader workers, which start with the first request.

    Each number of workers has separate workers, which stay until ``close``.
    """

    def __init__(self, maker: BatchMaker, *, timeout_s: float = 600.0) -> None:
        self._maker = maker
        self._timeout_s = timeout_s
        self._feed = RequestFeed()
        self._loaders: dict[int, DataLoader[Answer]] = {}
        self._processes: set[BaseProcess] = set()
        self._thread: threading.Thread | None = None
        self._give_up = math.inf  # when the present wait ends
        self._is_late = False
        self._is_closed = threading.Event()

    def answers(self, requests: Iterable[Request], workers: int) -> Iterator[Answer]:
        """The answers in the order of ``requests``; ``workers=0`` makes them in this process.

        With workers, a new call ends the iterator of the call before it.

        Raises:
            DataError: a worker was killed, or gave no answer within the limit.
        """
        if not workers:
            return map(self._maker.__getitem__, requests)
        limit_s = self._timeout_s
        if workers not in self._loaders:
            self._loaders[workers] = _build_loader(self._maker, self._feed, workers)
            limit_s += _START_S
        self._feed.requests = requests
        before = {*multiprocessing.active_children()}
        # Blocked for the workers and for the server that forks them.
        with stop_signals_blocked(), self._limited(limit_s):
            answers = iter(self._loaders[workers])
        self._processes |= {*multiprocessing.active_children()} - before
        return self._awaited(answers, limit_s)

    def close(self) -> None:
        """End the workers."""
        self._is_closed.set()
        self._loaders.clear()
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:  # a busy worker does not react to anything milder
            if process.is_alive():
                process.kill()

    def _awaited(self, answers: Iterator[Answer], limit_s: float) -> Iterator[Answer]:
        while True:
            with self._limited(limit_s):
                answer = next(answers, None)
            if answer is None:
                return
            yield answer
            limit_s = self._timeout_s

    @contextmanager
    def _limited(self, limit_s: float) -> Iterator[None]:
        """Within the block, explain the end of a worker; kill all of them after ``limit_s``."""
        self._watch()
        self._give_up = time.monotonic() + limit_s
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:  # the last two from a broken connection
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise DataError(_no_room("the queues of the loader workers")) from error
            if not self._has_dead_worker():
                raise
            raise DataError(_late(limit_s) if self._is_late else self._death()) from error
        finally:
            self._give_up = math.inf

    def _watch(self) -> None:
        """Start the thread that ends a wait at its limit: torch then notices the dead workers."""

        def follow() -> None:
            while not self._is_closed.wait(_POLL_S):
                if time.monotonic() > self._give_up:
                    self._is_late |= all(process.exitcode is None for process in self._processes)
                    self._kill()

        if self._thread is None:
            self._thread = threading.Thread(target=follow, name="loader limit", daemon=True)
            self._thread.start()

    def _has_dead_worker(self) -> bool:
        """Whether a worker has ended, or ends within a moment."""
        give_up = time.monotonic() + _MOMENT_S
        while not any(process.exitcode is not None for process in self._processes):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.05)
        return True

    def _death(self) -> str:
        """Why a worker has ended."""
        ended = [process for process in self._processes if process.exitcode is not None]
        for process in ended:
            number = -(process.exitcode or 0)
            if number > 0:
                name = signal.Signals(number).name
                reason = _SIGNALS.get(signal.Signals(number), "start the same command again")
                return f"loader worker {process.pid} was killed by {name}: {reason}"
        if any(process.exitcode == _NO_ROOM for process in ended):
            return _no_room("a batch")
        statuses = ", ".join(f"{p.pid} with status {p.exitcode}" for p in ended) or "one"
        return (
            f"a loader worker ended by itself ({statuses}); its error is in the log above; "
            "set data.workers=0 to see it in this process"
        )


def _late(limit_s: float) -> str:
    """The error for a wait that has reached its limit."""
    room = free_bytes()
    full = "" if room is None else f"{SHARED_MEMORY} has {format_bytes(room)} free; "
    return (
        f"the loader workers gave no batch within {limit_s:g} s (engine.timeout_s); {full}"
        "look for their errors in the log above; enlarge that folder (docker run --shm-size=8g), "
        "set data.workers=0, or raise engine.timeout_s if the storage is slow"
    )


def _no_room(thing: str) -> str:
    """The error for loader workers that cannot be started, or cannot hand over a batch."""
    room = free_bytes()
    left = "" if room is None else f" ({format_bytes(room)} free)"
    return (
        f"{SHARED_MEMORY}{left} has no room for {thing}; set data.workers=0, or enlarge it "
        "(docker run --shm-size=8g), or remove files of other programs from it"
    )


def _build_loader(maker: BatchMaker, feed: RequestFeed, workers: int) -> DataLoader[Answer]:
    # fork is unsafe beside threads and s3fs; forkserver starts each worker from a clean process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return DataLoader(
        maker,
        sampler=feed,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=BATCHES_PER_WORKER,
        persistent_workers=True,
        multiprocessing_context=context,
        worker_init_fn=partial(_set_up_worker, dict(os.environ)),
        # a separate generator, so that starting a stream draws nothing from the global one
        generator=torch.Generator(),
    )


def _unchanged(answer: Any) -> Any:
    return answer


def _set_up_worker(environment: dict[str, str], worker: int) -> None:
    """Give a worker the environment of its consumer, not that of the server that forked it.

    The worker obeys stop signals only if its consumer sends them, and ends when the consumer ends.
    Its parent, the server, does not see to either.
    """
    os.environ.update(environment)
    Queue._on_queue_feeder_error = staticmethod(_end_without_room)  # type: ignore[attr-defined]
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the server may be older than this run
    for ending in (_end_with_consumer, _end_at_signal_of_consumer):
        threading.Thread(target=ending, daemon=True).start()


def _end_without_room(error: Exception, batch: object) -> None:
    """End this worker at a batch that cannot be handed over; its consumer would wait for it."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        os._exit(_NO_ROOM)
    traceback.print_exception(error)
    os._exit(1)


def _end_with_consumer() -> None:
    """End this worker as soon as the consumer has ended, in whatever way."""
    _consumer().join()
    os._exit(0)


def _end_at_signal_of_consumer() -> None:
    """End this worker at a signal of the consumer, which waits for it before it ends itself.

    A batch system sends its signal to every process of a job; only the consumer answers that one.
    """
    consumer = _consumer().pid
    while True:
        received = signal.sigwaitinfo(STOP_SIGNALS)
        if received is not None and received.si_pid == consumer:
            os._exit(0)


def _consumer() -> BaseProcess:
    """The process that asked for this worker."""
    consumer = multiprocessing.parent_process()
    assert consumer is not None, "a worker has a parent"
    return consumer
