"""Loader workers: processes that answer requests, in order, for one stream after another.

Workers keep no state between requests, so the same workers serve every epoch, task and evaluation
of a run, and no batch depends on the worker that makes it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from pipeline.data.batch import Answer, BatchMaker, Request
from pipeline.distributed.preemption import STOP_SIGNALS, stop_signals_blocked

# Slow imports of a worker: done once, in the server process from which workers are forked.
_PRELOADED = ["torch.utils.data", "webdataset", "PIL.Image"]


class RequestFeed:
    """Hands the requests of the present stream to a loader that outlives many streams."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


class Loader:
    """Answers requests, in this process or in loader workers, which start with the first request.

    Each number of workers has separate workers, which stay until ``close``.
    """

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker
        self._feed = RequestFeed()
        self._loaders: dict[int, DataLoader[Answer]] = {}
        self._processes: set[BaseProcess] = set()

    def answers(self, requests: Iterable[Request], workers: int) -> Iterator[Answer]:
        """The answers in the order of ``requests``; ``workers=0`` makes them in this process.

        With workers, a new call ends the iterator of the call before it.
        """
        if not workers:
            return map(self._maker.__getitem__, requests)
        if workers not in self._loaders:
            self._loaders[workers] = _build_loader(self._maker, self._feed, workers)
        self._feed.requests = requests
        before = {*multiprocessing.active_children()}
        with stop_signals_blocked():  # for the workers and for the server that forks them
            answers = iter(self._loaders[workers])
        self._processes |= {*multiprocessing.active_children()} - before
        return answers

    def close(self) -> None:
        """End the workers."""
        self._loaders.clear()
        for process in self._processes:  # a busy worker does not react to anything milder
            if process.is_alive():
                process.kill()


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
        prefetch_factor=2,
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
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the server may be older than this run
    for ending in (_end_with_consumer, _end_at_signal_of_consumer):
        threading.Thread(target=ending, daemon=True).start()


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
