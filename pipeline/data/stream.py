"""Batches of pictures, the same on any number of ranks and loader workers.

The plan lives in the consuming process; loader workers are stateless. A worker is sent a *request*
(the addresses of one batch and the seed of its augmentation) and returns the batch, so one set of
workers serves every epoch, task and evaluation of a run, and nothing about a batch depends on which
worker made it. ``workers=0`` answers the same requests in the consuming process.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.decoding import SampleError, decode_sample
from pipeline.data.index import Samples, Selection, ShardIndex
from pipeline.data.plan import Tail, epoch_order, global_batches, rank_slice
from pipeline.data.reader import ShardReader
from pipeline.data.transforms import Transform
from pipeline.errors import DataError, PipelineError
from pipeline.rng import numpy_stream

OnBadSample = Literal["fail", "skip"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures of one rank: ``image_BCHW`` uint8, ``label_B`` classes of the index, ``sample_B``
    numbers within the data set; ``wait_s`` is how long the consumer had to wait for it."""

    image_BCHW: torch.Tensor
    label_B: torch.Tensor
    sample_B: torch.Tensor
    wait_s: float = 0.0


@dataclass(frozen=True)
class SkippedSample:
    """A sample that could not be used."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True, eq=False)
class Request:
    """One batch to be made; ``seed_path`` names the augmentation, empty where nothing is random."""

    samples: Samples
    transform: Transform
    seed_path: tuple[int | str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of a request: a batch whose ``bad`` rows (row → reason) are blank, or an error."""

    batch: Batch | None = None
    bad: dict[int, str] = field(default_factory=dict)
    error: PipelineError | None = None


class ShardSource:
    """One process's way to the samples of an index: a reader, its loader workers, what was skipped.

    ``bad_sample_budget`` is how many distinct samples may be skipped before the run fails.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        on_bad_sample: OnBadSample = "fail",
        bad_sample_budget: int = 0,
        closed_splits: Iterable[str] = (),
    ) -> None:
        self.index = index
        self.skipped: dict[int, SkippedSample] = {}
        self._maker = _BatchMaker(ShardReader(index, closed_splits=tuple(closed_splits)))
        self._budget = bad_sample_budget if on_bad_sample == "skip" else -1
        self._feed = _Feed()
        self._loaders: dict[int, DataLoader[Answer]] = {}

    def batches(
        self, requests: Iterable[Request], *, workers: int, refill: Selection | None
    ) -> Iterator[Batch]:
        """The batch of each request, in order.

        A sample that may be skipped is replaced by the next of its class in ``refill``, or left out
        where ``refill`` is ``None``. Starting a new stream ends the one before.

        Raises:
            DataError: a sample cannot be used and the budget for such is spent.
            StorageError: a shard cannot be read.
        """
        sent: list[Request] = []
        answers = iter(self._answers(_remember(requests, sent), workers))
        while True:
            asked = time.perf_counter()
            answer = next(answers, None)
            if answer is None:
                return
            batch = self._mend(answer, sent.pop(0), refill)
            yield dataclasses.replace(batch, wait_s=time.perf_counter() - asked)

    def close(self) -> None:
        """End the loader workers."""
        self._loaders.clear()

    def _answers(self, requests: Iterator[Request], workers: int) -> Iterable[Answer]:
        if not workers:
            return map(self._maker.__getitem__, requests)
        if workers not in self._loaders:
            self._loaders[workers] = _build_loader(self._maker, self._feed, workers)
        self._feed.requests = requests
        return self._loaders[workers]

    def _mend(self, answer: Answer, request: Request, refill: Selection | None) -> Batch:
        if answer.error:
            raise answer.error
        for row, reason in answer.bad.items():
            self._note_bad(request.samples, row, reason)
        if not answer.bad:
            return answer.batch
        if refill is None:
            return _without(answer.batch, answer.bad)
        for row in answer.bad:
            self._replace(answer.batch, row, request, refill)
        return answer.batch

    def _note_bad(self, samples: Samples, row: int, reason: str) -> None:
        shard = self._maker.reader.shard_name(int(samples.shard_S[row]))
        key = samples.keys[row]
        self.skipped[int(samples.sample_S[row])] = SkippedSample(shard, key, reason)
        if len(self.skipped) > self._budget:
            remedy = (
                "mend the data set, or set data.on_bad_sample to skip"
                if self._budget < 0
                else f"{len(self.skipped)} bad samples exceed data.bad_sample_budget = {self._budget}"
            )
            raise DataError(f"{shard}: sample {key} {reason}; {remedy}")

    def _replace(self, batch: Batch, row: int, request: Request, refill: Selection) -> None:
        """Fill a bad row with the next usable sample of its class: the same one on every layout."""
        start = int(np.searchsorted(refill.sample_S, request.samples.sample_S[row]))
        same_class = np.flatnonzero(refill.label_S == request.samples.label_S[row])
        candidates = np.roll(same_class, -int(np.searchsorted(same_class, start, side="right")))
        for candidate in candidates:
            if int(refill.sample_S[candidate]) in self.skipped:
                continue
            samples = refill.take(np.array([candidate]))
            answer = self._maker[dataclasses.replace(request, samples=samples)]
            if answer.error:
                raise answer.error
            if not answer.bad:
                batch.image_BCHW[row] = answer.batch.image_BCHW[0]
                batch.sample_B[row] = answer.batch.sample_B[0]
                return
            self._note_bad(samples, 0, answer.bad[0])
        raise DataError(f"no usable sample is left of class {int(request.samples.label_S[row])}")


def train_stream(
    source: ShardSource,
    selection: Selection,
    *,
    seed: int,
    task: int,
    epoch: int,
    global_batch: int,
    tail: Tail,
    transform: Transform,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """This rank's slices of the global batches ``start_step``, ``start_step + 1``, … of one epoch.

    Raises:
        DataError: the batches cannot be made as asked, or a sample cannot be used.
        StorageError: a shard cannot be read.
    """
    order = epoch_order(selection, seed=seed, task=task, epoch=epoch)
    batches = global_batches(order, global_batch=global_batch, tail=tail)[start_step:]
    seed_path = ("augment", seed, task, epoch) if transform.is_random else ()
    requests = (
        Request(selection.take(rank_slice(batch, rank, world_size)), transform, seed_path)
        for batch in batches
    )
    return source.batches(requests, workers=workers, refill=selection)


def eval_stream(
    source: ShardSource,
    selection: Selection,
    *,
    batch_size: int,
    transform: Transform,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """This rank's samples in canonical order; over all ranks each sample comes exactly once.

    A rank's share is contiguous, and shares differ by at most one sample, so ranks may have
    different numbers of batches, and a rank none.

    Raises:
        DataError: a sample cannot be used.
        StorageError: a shard cannot be read.
    """
    share = np.array_split(np.arange(len(selection)), world_size)[rank]
    requests = (
        Request(selection.take(share[start : start + batch_size]), transform)
        for start in range(0, len(share), batch_size)
    )
    return source.batches(requests, workers=workers, refill=None)


class _BatchMaker(Dataset[Answer]):
    """Answers requests; the part of a source that lives in the loader workers."""

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader

    def __getitem__(self, request: Request) -> Answer:
        samples, size = request.samples, request.transform.image_size
        try:
            records = self.reader.read(samples)
        except PipelineError as error:  # as a value: the loader would wrap it in a traceback's text
            return Answer(error=error)
        image_BCHW = torch.zeros(len(samples), 3, size, size, dtype=torch.uint8)
        bad: dict[int, str] = {}
        for row, record in enumerate(records):
            try:
                image_BCHW[row] = _make_image(request, row, record)
            except SampleError as error:
                bad[row] = str(error)
        label_B, sample_B = torch.from_numpy(samples.label_S), torch.from_numpy(samples.sample_S)
        return Answer(Batch(image_BCHW, label_B, sample_B), bad)


class _Feed:
    """Hands the requests of the current stream to a loader that outlives many streams."""

    def __init__(self) -> None:
        self.requests: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.requests

    def __len__(self) -> int:
        raise TypeError("a feed has no length")


def _make_image(request: Request, row: int, record: bytes) -> torch.Tensor:
    samples = request.samples
    image = decode_sample(record, key=samples.keys[row], label=int(samples.label_S[row]))
    if not request.seed_path:
        return request.transform(image)
    return request.transform(image, numpy_stream(*request.seed_path, int(samples.sample_S[row])))


def _build_loader(maker: _BatchMaker, feed: _Feed, workers: int) -> DataLoader[Answer]:
    return DataLoader(
        maker,
        sampler=feed,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=2,
        persistent_workers=True,
        # fork is unsafe beside threads and s3fs; forkserver starts each worker from a clean process
        multiprocessing_context="forkserver",
        # its own, so that starting a stream draws nothing from the global generator
        generator=torch.Generator(),
    )


def _as_is(answer: Answer) -> Answer:
    return answer


def _remember(requests: Iterable[Request], sent: list[Request]) -> Iterator[Request]:
    for request in requests:
        sent.append(request)
        yield request


def _without(batch: Batch, rows: dict[int, Any]) -> Batch:
    kept = torch.tensor([row for row in range(len(batch.label_B)) if row not in rows], dtype=torch.long)
    return Batch(batch.image_BCHW[kept], batch.label_B[kept], batch.sample_B[kept])
