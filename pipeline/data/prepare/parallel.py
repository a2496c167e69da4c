"""``map`` over several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PRELOADED = ["torch", "PIL.Image", "webdataset"]  # what is slow to import, once for all processes


def usable_cores() -> int:
    """How many processes can run at once here."""
    return len(os.sched_getaffinity(0))


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, jobs: int
) -> Iterator[Result]:
    """``map(function, items)`` on ``jobs`` processes, with a bounded number of items under way.

    ``function`` and the items are pickled; with one job everything happens in this process.
    """
    if jobs <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    items = iter(items)
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    try:
        running = deque(pool.submit(function, item) for item in islice(items, 4 * jobs))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
