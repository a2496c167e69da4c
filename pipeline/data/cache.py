"""One copy per node of the segments that its ranks and loader workers read.

Decisions, with their cost:

- The unit is the segment (samples of one class, a few MiB), named by URL and sha256: shards of
  equal name in two data sets are different files, and so is a changed shard.
- The process that downloads a segment holds its lock, so it is downloaded once per node. A lock
  ends with its process, so a killed process blocks no other. No process waits for a lock while it
  holds others.
- Space is reserved before the download, so a full disk or a full cache is reported before any
  traffic. Bytes that do not match the index never get a name.
- Neighbouring segments share one request. A gap that costs less to read than a further request is
  read too, and its segments are kept: a task that needs most of a shard reads all of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import CacheConfig
from pipeline.data.cache_folder import POLL_S, BoundedFolder
from pipeline.data.shard import Segment
from pipeline.errors import DataError, StorageError

log = logging.getLogger(__name__)

GAP_BYTES = 1 << 20  # about the cost of a further request: 20 ms at 50 MB/s
SPAN_BYTES = 32 << 20  # the most that one request reads, and that one thread keeps in memory
_SMALL_SPAN_BYTES = 8 << 20  # of a fetch that has less than this for each thread
_THREADS = 8


@dataclass(frozen=True, eq=False)
class RemoteShard:
    """A shard that must be fetched: its place and all its segments."""

    url: str
    segments: Sequence[Segment]


class SegmentCache:
    """Segments in a local folder of at most ``limit_bytes``; small to pickle.

    ``deadline_s`` limits each wait: for the storage, for another process's download, for space.
    """

    def __init__(self, folder: str | Path, *, limit_bytes: int, deadline_s: float = 300.0) -> None:
        self.folder = BoundedFolder(folder, limit_bytes=limit_bytes, deadline_s=deadline_s)
        self._deadline_s = deadline_s

    @classmethod
    def of(cls, settings: CacheConfig) -> SegmentCache:
        """The cache that a configuration describes."""
        limit_bytes = int(settings.limit_gb * 1e9)
        return cls(settings.folder, limit_bytes=limit_bytes, deadline_s=settings.deadline_s)

    @contextmanager
    def opened(self, shard: RemoteShard, segment: Segment) -> Iterator[int]:
        """A file descriptor of the segment's bytes, fetched if missing, not evicted while open.

        Raises:
            StorageError: the segment cannot be fetched, or the cache has no space for it.
            DataError: the bytes at its URL do not match the index.
        """
        give_up = time.monotonic() + self._deadline_s
        while (file := self.folder.pin(_name(shard, segment))) is None:
            if time.monotonic() > give_up:
                raise StorageError(
                    f"{self.folder.path}: segments are evicted before they can be read; "
                    "raise data.cache.limit_gb"
                )
            if not self.fetch(shard, [segment]):
                time.sleep(POLL_S)  # another process is naming or evicting it now
        try:
            yield file
        finally:
            os.close(file)

    def fetch(self, shard: RemoteShard, segments: Sequence[Segment]) -> int:
        """Bring ``segments`` of one shard into the cache, as :meth:`fetch_all`."""
        return self.fetch_all({shard: segments})

    def fetch_all(
        self, wanted: Mapping[RemoteShard, Sequence[Segment]], *, wait: bool = True
    ) -> int:
        """Bring segments into the cache and mark them as used; the bytes downloaded here.

        Requests run in parallel; none starts after one has failed. If another process is
        downloading a segment, wait for it, unless ``wait`` is false.

        Raises:
            StorageError: a segment cannot be fetched, or the cache has no space for it.
            DataError: the bytes at the URL do not match the index.
        """
        missing = {
            shard: [s for s in segments if not self.folder.touch(_name(shard, s))]
            for shard, segments in wanted.items()
        }
        # Every thread gets a part, and one request must not fill a small cache.
        span_bytes = max(_SMALL_SPAN_BYTES, sum(map(_bytes, missing.values())) // _THREADS)
        span_bytes = min(SPAN_BYTES, span_bytes, self.folder.limit_bytes // 4)
        calls = [
            (shard, span, segments, wait)
            for shard, segments in missing.items()
            for span in plan_spans(shard.segments, segments, span_bytes=span_bytes)
        ]
        if len(calls) <= 1:
            return sum(self._fetch_span(*call) for call in calls)
        has_failed = threading.Event()

        def fetch(*call: Any) -> int:
            if has_failed.is_set():  # else each request would wait for the same server again
                return 0
            try:
                return self._fetch_span(*call)
            except BaseException:
                has_failed.set()
                raise

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch") as threads:
            jobs = [threads.submit(fetch, *call) for call in calls]
            return sum(job.result() for job in jobs)

    def holds(self, shard: RemoteShard, segment: Segment) -> bool:
        """Whether the segment is in the cache now."""
        return self.folder.holds(_name(shard, segment))

    def discard(self, shard: RemoteShard, segment: Segment) -> None:
        """Remove a segment whose bytes were damaged on the disk."""
        self.folder.remove(_name(shard, segment))

    def _fetch_span(
        self, shard: RemoteShard, span: Sequence[Segment], wanted: Sequence[Segment], wait: bool
    ) -> int:
        """Download all that no other process downloads, wait for the rest; bytes fetched here."""
        fetched = self._fetch_unclaimed(shard, span, wanted)
        give_up = time.monotonic() + self._deadline_s
        while wait and (left := [s for s in span if s in wanted and not self.holds(shard, s)]):
            if time.monotonic() > give_up:
                raise StorageError(
                    f"{storage.redact(shard.url)}: another process has been downloading a part "
                    f"of it for {self._deadline_s:.0f} s; raise data.cache.deadline_s"
                )
            time.sleep(POLL_S)
            fetched += self._fetch_unclaimed(shard, left, left)
        return fetched

    def _fetch_unclaimed(
        self, shard: RemoteShard, span: Sequence[Segment], wanted: Sequence[Segment]
    ) -> int:
        """Download from the start of ``span`` to the first segment that another process claims.

        In this order, the first of several processes takes the complete span. If each took every
        free segment, their requests would overlap.
        """
        with ExitStack() as claims:
            mine = []
            for segment in span:
                claim = self.folder.claim(_name(shard, segment))
                if claim is None:
                    break
                claims.callback(os.close, claim)
                if not self.holds(shard, segment):
                    mine.append(segment)
            while mine and mine[-1] not in wanted:
                mine.pop()
            while mine and mine[0] not in wanted:
                mine.pop(0)
            if not mine:
                return 0
            with self.folder.reserved([(_name(shard, s), s.bytes) for s in mine]) as files:
                start = mine[0].offset
                data = memoryview(self._download(shard, mine))
                for file, segment in zip(files, mine, strict=True):
                    offset = segment.offset - start
                    _write_all(file, data[offset : offset + segment.bytes])
                    self.folder.complete(_name(shard, segment), file)
            return len(data)

    def _download(self, shard: RemoteShard, segments: Sequence[Segment]) -> bytes:
        """The bytes from the first segment to the end of the last.

        Bytes that do not match the index are fetched once more, then refused.
        """
        start, stop = segments[0].offset, segments[-1].offset + segments[-1].bytes
        place = storage.redact(shard.url)
        for is_second in (False, True):
            data = storage.read_range(shard.url, start, stop, deadline_s=self._deadline_s)
            wrong = next((s for s in segments if _sha256(data, s, start) != s.sha256), None)
            if wrong is None:
                return data
            span = f"bytes {wrong.offset:,} to {wrong.offset + wrong.bytes:,}"
            if not is_second:
                log.warning("%s: %s do not match the index; fetching them again", place, span)
        raise DataError(
            f"{place}: {span} do not have the sha256 in the index, fetched twice; "
            "copy the shard again or prepare the data set again"
        )


def plan_spans(
    stored: Sequence[Segment],
    wanted: Sequence[Segment],
    *,
    gap_bytes: int = GAP_BYTES,
    span_bytes: int = SPAN_BYTES,
) -> list[list[Segment]]:
    """The segments of each request, in order: ``wanted``, and the small gaps between them."""
    chosen = {segment.offset for segment in wanted}
    spans: list[list[Segment]] = []
    gap: list[Segment] = []
    for segment in stored:
        if segment.offset not in chosen:
            gap.append(segment)
            continue
        near = _bytes(gap) <= gap_bytes
        if spans and near and _bytes([*spans[-1], *gap, segment]) <= span_bytes:
            spans[-1] += [*gap, segment]
        else:
            spans.append([segment])
        gap = []
    return spans


def _bytes(segments: Sequence[Segment]) -> int:
    return sum(segment.bytes for segment in segments)


def _name(shard: RemoteShard, segment: Segment) -> str:
    return hashlib.sha256(f"{shard.url}\n{segment.sha256}".encode()).hexdigest()[:40]


def _sha256(data: bytes, segment: Segment, start: int) -> str:
    offset = segment.offset - start
    return hashlib.sha256(memoryview(data)[offset : offset + segment.bytes]).hexdigest()


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]
