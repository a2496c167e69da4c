"""Batches of pictures, the same on any number of ranks and loader workers.

The plan lives in the consuming process; loader workers are stateless. A worker is sent one request
after another, so one set of workers serves every epoch, task and evaluation of a run, and nothing
about a batch depends on which worker made it. ``workers=0`` answers in the consuming process.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from pipeline import storage
from pipeline.data.batch import Answer, Batch, BatchMaker, Request
from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.index import Selection, ShardIndex
from pipeline.data.plan import ONE_PROCESS, EpochPlan, Layout, replacement_candidates
from pipeline.data.prefetch import Need, Prefetcher
from pipeline.data.reader import ShardReader
from pipeline.data.samples import Samples
from pipeline.data.transforms import Transform
from pipeline.distributed.preemption import STOP_SIGNALS, stop_signals_blocked
from pipeline.errors import DataError

OnBadSample = Literal["fail", "skip"]

# What a worker needs and is slow to import: loaded once, in the process that workers fork from.
_PRELOADED = ["torch.utils.data", "webdataset", "PIL.Image"]


@dataclass(frozen=True)
class SkippedSample:
    """A sample that could not be used."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The requests of one stream, made when they are looked at: rows of ``selection``, by batch."""

    selection: Selection
    batches: Sequence[np.ndarray]
    transform: Transform
    seed_path: tuple[int | str, ...] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Request:
        samples = self.selection.take(self.batches[number])
        return Request(samples, self.transform, self.seed_path)

    def __iter__(self) -> Iterator[Request]:
        return map(self.__getitem__, range(len(self)))


class ShardSource:
    """One process's way to the samples of an index: a reader, its loader workers, what was skipped.

    ``cache`` holds what remote shards give; local ones need none. ``bad_sample_budget`` is how many
    distinct samples this process may skip. No sample of a split that the index has closed can be
    read through it, or fetched ahead.

    Raises:
        StorageError: the cache has no room, or its folder cannot be written.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        cache: SegmentCache | None = None,
        on_bad_sample: OnBadSample = "fail",
        bad_sample_budget: int = 0,
    ) -> None:
        self.index = index
        self.skipped: dict[int, SkippedSample] = {}
        self._budget = bad_sample_budget if on_bad_sample == "skip" else -1
        if all(storage.is_local(shard.url) for shard in index.shards):
            cache = None
        if cache:
            open_shards = [s for s in index.shards if s.split not in index.closed_splits]
            cache.folder.check_room(sum(shard.bytes for shard in open_shards))
        self._reader = ShardReader(index, cache=cache)
        self._maker = BatchMaker(self._reader)
        self._prefetcher = Prefetcher(cache) if cache else None
        self._feed = RequestFeed()
        self._loaders: dict[int, DataLoader[Answer]] = {}
        self._workers: set[multiprocessing.process.BaseProcess] = set()
        self._streams = 0

    def batches(
        self,
        agenda: BatchPlan,
        *,
        workers: int,
        replace_bad: bool,
        upcoming: Sequence[Selection] = (),
    ) -> Iterator[Batch]:
        """The batches of ``agenda`` in order; meanwhile ``upcoming`` is fetched into the cache.

        A sample that may be skipped is replaced by the next of its class, or else left out.
        Starting a stream ends the one before.

        Raises:
            DataError: a sample cannot be used and the budget for such is spent, or one is of a
                split that is closed.
            StorageError: a shard cannot be read.
        """
        self._streams += 1
        for selection in (agenda.selection, *upcoming):
            for shard in np.unique(selection.shard_S).tolist():
                self._reader.refuse_closed(shard)
        if self._prefetcher:
            self._prefetcher.follow(_needs(self._reader.shards, agenda, upcoming))
        return self._run(agenda, self._answers(agenda, workers), replace_bad, self._streams)

    def close(self) -> None:
        """End the loader workers and the fetching ahead."""
        self._loaders.clear()
        for worker in self._workers:  # one that is still busy hears nothing gentler
            if worker.is_alive():
                worker.kill()
        if self._prefetcher:
            self._prefetcher.close()

    def _run(
        self, agenda: BatchPlan, answers: Iterator[Answer], replace_bad: bool, stream: int
    ) -> Iterator[Batch]:
        for number in range(len(agenda)):
            if self._streams != stream:
                raise RuntimeError("a newer stream has taken over the loader workers of this one")
            asked = time.perf_counter()
            answer = next(answers)
            if answer.error:
                raise answer.error
            batch = answer.batch
            if answer.bad:
                refill = agenda.selection if replace_bad else None
                batch = self._replace_bad(answer, agenda[number], refill)
            if self._prefetcher:
                self._prefetcher.advance(number + 1)
            yield dataclasses.replace(batch, wait_s=time.perf_counter() - asked)

    def _answers(self, agenda: BatchPlan, workers: int) -> Iterator[Answer]:
        if not workers:
            return map(self._maker.__getitem__, agenda)
        if any(shard.url.startswith("memory:") for shard in self.index.shards):
            raise DataError(f"{self.index.url} exists in one process only; set data.workers to 0")
        if workers not in self._loaders:
            self._loaders[workers] = _build_loader(self._maker, self._feed, workers)
        self._feed.requests = agenda
        before = {*multiprocessing.active_children()}
        with stop_signals_blocked():  # also the process that they are forked from
            answers = iter(self._loaders[workers])
        self._workers |= {*multiprocessing.active_children()} - before
        return answers

    def _replace_bad(self, answer: Answer, request: Request, refill: Selection | None) -> Batch:
        for row, reason in answer.bad.items():
            self._record_bad(request.samples, row, reason)
        if refill is None:
            return answer.batch.without(set(answer.bad))
        for row in answer.bad:
            self._replace(answer.batch, row, request, refill)
        return answer.batch

    def _record_bad(self, samples: Samples, row: int, reason: str) -> None:
        place, key = self._reader.place(int(samples.shard_S[row])), samples.keys[row]
        self.skipped[int(samples.sample_S[row])] = SkippedSample(place, key, reason)
        if self._budget < 0:
            remedy = "mend the data set, or set data.on_bad_sample to skip"
        elif len(self.skipped) > self._budget:
            remedy = f"{len(self.skipped)} bad samples exceed data.bad_sample_budget"
        else:
            return
        raise DataError(f"{place}: sample {key} {reason}; {remedy}")

    def _replace(self, batch: Batch, row: int, request: Request, refill: Selection) -> None:
        """Fill a bad row with the next usable sample of its class: the same one on every layout."""
        for position in replacement_candidates(refill, int(request.samples.sample_S[row])):
            if int(refill.sample_S[position]) in self.skipped:
                continue
            samples = refill.take(np.array([position]))
            answer = self._maker[dataclasses.replace(request, samples=samples)]
            if answer.error:
                raise answer.error
            if not answer.bad:
                batch.image_BCHW[row] = answer.batch.image_BCHW[0]
                batch.sample_B[row] = answer.batch.sample_B[0]
                return
            self._record_bad(samples, 0, answer.bad[0])
        name = self.index.class_names[int(request.samples.label_S[row])]
        place = storage.redact(self.index.url)
        raise DataError(f"{place}: no usable {refill.split} sample is left of class {name}")


def train_stream(
    source: ShardSource,
    epoch: EpochPlan,
    transform: Transform,
    *,
    start_step: int = 0,
    layout: Layout = ONE_PROCESS,
    upcoming: Sequence[Selection] = (),
) -> Iterator[Batch]:
    """This rank's shares of the global batches ``start_step``, ``start_step + 1``, … of one epoch.

    Raises:
        DataError: the batches cannot be made as asked, or a sample cannot be used.
        StorageError: a shard cannot be read.
    """
    selection, key = epoch.selection, epoch.key
    shares = epoch.shares(layout, start_step=start_step)
    seed_path = ("augment", key.seed, key.task, key.epoch) if transform.is_random else ()
    agenda = BatchPlan(selection, shares, transform, seed_path)
    # The rest of the selection first: the next epoch of this rank will want it.
    upcoming = (selection, *upcoming)
    return source.batches(agenda, workers=layout.workers, replace_bad=True, upcoming=upcoming)


def plan_stream(
    epoch: EpochPlan, *, start_step: int = 0, layout: Layout = ONE_PROCESS
) -> Iterator[Batch]:
    """The batches of ``train_stream`` with the same samples and labels, but without images.

    Reads no sample, so it replaces none: see ``plan.replacement_candidates``.

    Raises:
        DataError: the batches cannot be made as asked.
    """
    selection = epoch.selection
    shares = epoch.shares(layout, start_step=start_step)
    return (
        Batch(None, torch.from_numpy(selection.label_S[s]), torch.from_numpy(selection.sample_S[s]))
        for s in shares
    )


def eval_stream(
    source: ShardSource,
    selection: Selection,
    transform: Transform,
    *,
    batch_size: int,
    layout: Layout = ONE_PROCESS,
    upcoming: Sequence[Selection] = (),
) -> Iterator[Batch]:
    """This rank's batches of a selection; over all ranks each sample comes exactly once.

    The batches are the same on any number of ranks, in canonical order, and each rank has a run of
    them: an image is always encoded beside the same others, as its last bits may depend on how many
    they are. Ranks may have different numbers of batches, and a rank none.

    Raises:
        DataError: a sample cannot be used.
        StorageError: a shard cannot be read.
    """
    all_starts = np.arange(0, len(selection), batch_size)
    starts = np.array_split(all_starts, layout.world_size)[layout.rank]
    batches = [np.arange(start, min(start + batch_size, len(selection))) for start in starts]
    agenda = BatchPlan(selection, batches, transform)
    return source.batches(agenda, workers=layout.workers, replace_bad=False, upcoming=upcoming)


class RequestFeed:
    """Hands the requests of the present stream to a loader that outlives many streams."""

    requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)


def _build_loader(maker: BatchMaker, feed: RequestFeed, workers: int) -> DataLoader[Answer]:
    # fork is unsafe beside threads and s3fs; forkserver starts each worker from a clean process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return DataLoader(
        maker,
        sampler=feed,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=2,
        persistent_workers=True,
        multiprocessing_context=context,
        worker_init_fn=partial(_adopt, dict(os.environ)),
        # its own, so that starting a stream draws nothing from the global generator
        generator=torch.Generator(),
    )


def _adopt(environment: dict[str, str], worker: int) -> None:
    """Give a worker the environment of its consumer, not that of the process it was forked from.

    It heeds the stop signals of its consumer only, and ends with it: its parent, the server, would
    not.
    """
    os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the server may be older than this run
    for ending in (_end_with_consumer, _end_when_told):
        threading.Thread(target=ending, daemon=True).start()


def _end_with_consumer() -> None:
    """Wait until the consumer has ended, killed or not; then end this worker."""
    multiprocessing.parent_process().join()
    os._exit(0)


def _end_when_told() -> None:
    """End at a signal of the consumer, which waits for this worker before it ends itself.

    One that a batch system sends to every process of a job is the consumer's to answer.
    """
    consumer = multiprocessing.parent_process().pid
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != consumer:
        pass
    os._exit(0)


def _as_is(answer: Answer) -> Answer:
    return answer


def _needs(
    shards: Sequence[RemoteShard], agenda: BatchPlan, upcoming: Sequence[Selection]
) -> list[Need]:
    """Every segment once, with the batch that reads it first; ``upcoming`` after the last batch."""
    parts = [(agenda.selection, number, rows) for number, rows in enumerate(agenda.batches)]
    parts += [(selection, len(agenda), np.arange(len(selection))) for selection in upcoming]
    seen: dict[tuple[int, int], Need] = {}
    for selection, batch, rows in parts:
        pairs = np.stack([selection.shard_S[rows], selection.segment_S[rows]], axis=1)
        for shard, segment in np.unique(pairs, axis=0).tolist():
            if (shard, segment) not in seen and not storage.is_local(shards[shard].url):
                seen[shard, segment] = Need(batch, shards[shard], shards[shard].segments[segment])
    return list(seen.values())
