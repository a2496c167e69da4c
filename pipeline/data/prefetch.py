"""Fetches segments ahead of the loader, in the order of the plan, in background threads.

There are two, so that one receives bytes while the other checks and writes its own. They fill at
most half of the cache ahead of the consumer, so they never evict a segment that is about to be
read. The ranks of a node follow nearly the same plan: each fetches the segments that no other rank
is fetching.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter

from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.shard import Segment
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

_THREADS = 2
GROUP_BYTES = 64 << 20  # fetched together, so that neighbours in a shard share one request


@dataclass(frozen=True)
class Need:
    """A segment and the first batch that reads it."""

    batch: int
    shard: RemoteShard
    segment: Segment


class Prefetcher:
    """Follows one plan at a time; a new plan replaces the old one."""

    def __init__(self, cache: SegmentCache) -> None:
        self._cache = cache
        self._ahead_bytes = cache.folder.limit_bytes // 2
        self._news = threading.Condition()
        self._needs: Sequence[Need] = ()
        self._ends = [0]  # bytes of the needs before each position
        self._plan = 0  # number of the plan, so that a thread notices a new one within a group
        self._next = 0  # the first need that was not fetched yet
        self._batch = 0  # the batch that the consumer has reached
        self._closed = False
        self._threads: list[threading.Thread] = []

    def follow(self, needs: Sequence[Need]) -> None:
        """Start to fetch ``needs``, which are in the order of their batches."""
        with self._news:
            self._needs, self._next, self._batch = needs, 0, 0
            self._ends = [*accumulate((need.segment.bytes for need in needs), initial=0)]
            self._plan += 1
            while len(self._threads) < _THREADS:
                thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
                thread.start()
                self._threads.append(thread)
            self._news.notify_all()

    def advance(self, batch: int) -> None:
        """Note that the consumer has reached ``batch``."""
        with self._news:
            self._batch = batch
            self._news.notify_all()

    def close(self) -> None:
        """End the threads after their present downloads."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            plan, needs = group
            wanted: dict[RemoteShard, list[Segment]] = {}
            for need in needs:
                wanted.setdefault(need.shard, []).append(need.segment)
            try:
                self._cache.fetch_all(wanted, wait=False)
            except PipelineError as error:
                # The loader will get the same error when it needs the segment, and report it.
                log.warning("fetching ahead stopped: %s", error)
                with self._news:
                    if plan == self._plan:
                        self._next = len(self._needs)

    def _next_group(self) -> tuple[int, list[Need]] | None:
        """Wait for the next needs; the plan's number and these, or ``None`` after ``close``."""
        with self._news:
            while not self._closed:
                group = self._within_reach()
                if group:
                    return self._plan, group
                self._news.wait()
        return None

    def _within_reach(self) -> list[Need]:
        """Take the next needs that may be in the cache ahead of the consumer."""
        first = bisect_left(self._needs, self._batch, key=attrgetter("batch"))
        start = stop = max(first, self._next)
        reach = self._ends[first] + self._ahead_bytes
        while (
            stop < len(self._needs)
            and self._ends[stop + 1] <= reach
            and self._ends[stop] - self._ends[start] <= GROUP_BYTES
        ):
            stop += 1
        self._next = stop
        return list(self._needs[start:stop])
