"""Batches of images, the same on any number of ranks and loader workers.

The way of one batch, here step 3 of an epoch with a global batch of 8 on 2 ranks, seen by rank 1:

1. plan.py        ``EpochPlan``: shuffle the selection; global batch 3 is places 24 to 31 of that
                  order, and the share of rank 1 is the last 4 of them
2. stream.py      ``BatchPlan``: turn the share into a ``Request``: addresses, transform, seed
3. loader.py      send the request to a loader worker; with ``workers=0`` answer it in this process
4. reader.py      read the bytes of each sample from a local shard, or from the node's cache
   cache.py       (download a segment if it is missing; prefetch.py downloads it ahead)
5. decoding.py    bytes → RGB image
   transforms.py  RGB image → uint8 pixels
                  (steps 4 and 5 are left out if pixel_cache.py has kept the pixels)
6. batch.py       ``BatchMaker``: stack the pixels into an ``Answer``, which marks bad samples
7. stream.py      ``ShardSource``: replace bad samples, yield the ``Batch``

The plan stays in the consuming process and the workers keep no state, so step 3 has the same
samples and the same pixels on any layout, also after a resume.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipeline import storage
from pipeline.data.batch import Answer, Batch, BatchMaker, Request
from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.index import Selection, ShardIndex
from pipeline.data.loader import Loader
from pipeline.data.pixel_cache import PixelCache
from pipeline.data.plan import ONE_PROCESS, EpochPlan, Layout, replacement_candidates
from pipeline.data.prefetch import Need, Prefetcher
from pipeline.data.reader import ShardReader
from pipeline.data.samples import Samples
from pipeline.data.transforms import Transform
from pipeline.errors import DataError

OnBadSample = Literal["fail", "skip"]


@dataclass(frozen=True)
class SkippedSample:
    """A sample that could not be used."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The requests of one stream, made on access: rows of ``selection``, by batch."""

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
    """The samples of an index, for one process: reader, loader workers, list of skipped samples.

    ``cache`` keeps the bytes of remote shards; local shards need none. ``pixels`` keeps decoded
    images. ``bad_sample_budget`` is the
    number of distinct samples that this process may skip, ``timeout_s`` the longest wait for a
    loader worker. Samples of a split that is closed in the index can neither be read nor fetched
    ahead.

    Raises:
        StorageError: the cache has no space, or its folder is not writable.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        cache: SegmentCache | None = None,
        pixels: PixelCache | None = None,
        on_bad_sample: OnBadSample = "fail",
        bad_sample_budget: int = 0,
        timeout_s: float = 600.0,
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
        self._maker = BatchMaker(self._reader, pixels=pixels)
        self._loader = Loader(self._maker, timeout_s=timeout_s)
        self._prefetcher = Prefetcher(cache) if cache else None
        self._streams = 0

    def batches(
        self,
        plan: BatchPlan,
        *,
        workers: int,
        replace_bad: bool,
        upcoming: Sequence[Selection] = (),
    ) -> Iterator[Batch]:
        """The batches of ``plan`` in order; meanwhile ``upcoming`` is fetched into the cache.

        A bad sample that may be skipped is replaced by another of its class, or else left out.
        Starting a stream ends the stream before it.

        Raises:
            DataError: a sample is bad and none may be skipped any more, or its split is closed.
            StorageError: a shard cannot be read.
        """
        self._streams += 1
        for selection in (plan.selection, *upcoming):
            for shard in selection.shard_numbers:
                self._reader.refuse_closed(shard)
        if workers and any(shard.url.startswith("memory:") for shard in self.index.shards):
            raise DataError(f"{self.index.url} exists in one process only; set data.workers to 0")
        if self._prefetcher:
            self._prefetcher.follow(_needs(self._reader.shards, plan, upcoming))
        return self._run(plan, self._loader.answers(plan, workers), replace_bad, self._streams)

    def close(self) -> None:
        """End the loader workers and the fetching ahead."""
        self._loader.close()
        if self._prefetcher:
            self._prefetcher.close()

    def _run(
        self, plan: BatchPlan, answers: Iterator[Answer], replace_bad: bool, stream: int
    ) -> Iterator[Batch]:
        for number in range(len(plan)):
            if self._streams != stream:
                raise RuntimeError("a newer stream has taken over the loader workers of this one")
            asked = time.perf_counter()
            answer = next(answers)
            batch = answer.batch()
            if answer.bad:
                refill = plan.selection if replace_bad else None
                batch = self._replace_bad(answer, plan[number], refill)
            if self._prefetcher:
                self._prefetcher.advance(number + 1)
            yield dataclasses.replace(batch, wait_s=time.perf_counter() - asked)

    def _replace_bad(self, answer: Answer, request: Request, refill: Selection | None) -> Batch:
        for row, reason in answer.bad.items():
            self._record_bad(request.samples, row, reason)
        batch = answer.batch()
        if refill is None:
            return batch.without(set(answer.bad))
        for row in answer.bad:
            self._replace(batch, row, request, refill)
        return batch

    def _record_bad(self, samples: Samples, row: int, reason: str) -> None:
        place, key = self._reader.place(int(samples.shard_S[row])), samples.keys[row]
        self.skipped[int(samples.sample_S[row])] = SkippedSample(place, key, reason)
        if self._budget < 0:
            remedy = "repair the data set, or set data.on_bad_sample to skip"
        elif len(self.skipped) > self._budget:
            spent = f"{len(self.skipped)} bad samples exceed data.bad_sample_budget"
            remedy = f"{spent}; repair the data set, or raise the budget"
        else:
            return
        raise DataError(f"{place}: sample {key} {reason}; {remedy}")

    def _replace(self, batch: Batch, row: int, request: Request, refill: Selection) -> None:
        """Fill a bad row with the first usable candidate: the same one on every layout."""
        for position in replacement_candidates(refill, int(request.samples.sample_S[row])):
            if int(refill.sample_S[position]) in self.skipped:
                continue
            samples = refill.take(np.array([position]))
            answer = self._maker[dataclasses.replace(request, samples=samples)]
            if not answer.bad:
                batch.overwrite(row, answer.batch())
                return
            self._record_bad(samples, 0, answer.bad[0])
        name = self.index.class_names[int(request.samples.label_S[row])]
        place = storage.redact(self.index.url)
        raise DataError(f"{place}: no usable {refill.split} sample is left of class {name}")


def train_stream(
    source: ShardSource,
    plan: EpochPlan,
    transform: Transform,
    *,
    start_step: int = 0,
    layout: Layout = ONE_PROCESS,
    upcoming: Sequence[Selection] = (),
) -> Iterator[Batch]:
    """This rank's shares of the global batches ``start_step``, ``start_step + 1``, … of one epoch.

    Raises:
        DataError: the epoch has no batch, the ranks cannot share it, or a sample is unusable.
        StorageError: a shard cannot be read.
    """
    selection, key = plan.selection, plan.key
    shares = plan.shares(layout, start_step=start_step)
    seed_path = ("augment", key.seed, key.task, key.epoch) if transform.is_random else ()
    batches = BatchPlan(selection, shares, transform, seed_path)
    # The rest of the selection comes first: this rank needs it in the next epoch.
    upcoming = (selection, *upcoming)
    return source.batches(batches, workers=layout.workers, replace_bad=True, upcoming=upcoming)


def plan_stream(
    plan: EpochPlan, *, start_step: int = 0, layout: Layout = ONE_PROCESS
) -> Iterator[Batch]:
    """The batches of ``train_stream`` without images: the same samples and labels.

    No sample is read, so bad samples are not replaced; ``replacement_candidates`` gives that rule.

    Raises:
        DataError: the epoch has no batch, or the ranks cannot share it.
    """
    selection, shares = plan.selection, plan.shares(layout, start_step=start_step)
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
) -> Iterator[Batch]:
    """This rank's batches of a selection; all ranks together have each sample exactly once.

    The batches are the same on any number of ranks, in canonical order, and a rank has consecutive
    ones: an image is always encoded in the same batch, since its last bits may depend on the size
    of the batch. Ranks may have different numbers of batches, including none.

    Raises:
        DataError: a sample is unusable.
        StorageError: a shard cannot be read.
    """
    plan = BatchPlan(selection, eval_rows(len(selection), batch_size, layout), transform)
    return source.batches(plan, workers=layout.workers, replace_bad=False)


def eval_rows(n_samples: int, batch_size: int, layout: Layout = ONE_PROCESS) -> list[np.ndarray]:
    """The rows of a selection in each batch of :func:`eval_stream`."""
    starts = np.array_split(np.arange(0, n_samples, batch_size), layout.world_size)[layout.rank]
    return [np.arange(start, min(start + batch_size, n_samples)) for start in starts]


def _needs(
    shards: Sequence[RemoteShard], plan: BatchPlan, upcoming: Sequence[Selection]
) -> list[Need]:
    """Every segment once, with the batch that reads it first; ``upcoming`` after the last batch."""
    parts = [*(plan.selection.place_S[rows] for rows in plan.batches)]
    parts += [selection.place_G for selection in upcoming]
    if not parts:  # a rank without a batch
        return []
    batch_of_part = np.minimum(np.arange(len(parts)), len(plan))
    place_of = np.concatenate(parts)
    batch_of = np.repeat(batch_of_part, [len(part) for part in parts])
    place_G, first_G = np.unique(place_of, return_index=True)
    batch_G, segments = batch_of[first_G], plan.selection.index.segments
    order_G = np.argsort(batch_G, kind="stable")
    place_G = place_G[order_G]
    columns = batch_G[order_G], segments.shard_G[place_G], segments.number_G[place_G]
    return [
        Need(batch, shards[shard], shards[shard].segments[number])
        for batch, shard, number in zip(*(column.tolist() for column in columns), strict=True)
        if not storage.is_local(shards[shard].url)
    ]
