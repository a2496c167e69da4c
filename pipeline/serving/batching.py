"""Images of concurrent requests, classified together.

One thread runs the classifier, since two batches at the same time only slow each other down. While
it runs, the images of further requests gather; they are the next batch.

Axes: B images · K best classes of an image · C channels · H height · W width.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.inference import Classifier


class Batching(NamedTuple):
    """How images are gathered."""

    batch: int  # images, at most
    wait_s: float  # for further images, at most


class Scored(NamedTuple):
    """The best classes of one image, best first."""

    class_K: list[int]  # in class order
    probability_K: list[float]


class _Waiting(NamedTuple):
    image_CHW: Tensor
    top: int
    arrived: float  # time of the event loop
    scored: asyncio.Future[Scored]


class Batcher:
    """Classifies the images of one event loop; ``thread`` must be an executor of one thread."""

    def __init__(
        self,
        classifier: Classifier,
        thread: Executor,
        batching: Batching,
        *,
        n_expected: Callable[[], int],
        on_batch: Callable[[int], None],
    ) -> None:
        """``n_expected`` is the number of images that will be submitted soon or are waiting here.

        No time is spent on waiting when no further image is expected.
        """
        self.classifier = classifier
        self._thread = thread
        self._batching = batching
        self._n_expected = n_expected
        self._on_batch = on_batch
        self._waiting: list[_Waiting] = []
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None  # exists while an image is waiting

    async def classify(self, image_CHW: Tensor, top: int) -> Scored:
        """The ``top`` best classes of a preprocessed image."""
        loop = asyncio.get_running_loop()
        scored: asyncio.Future[Scored] = loop.create_future()
        self._waiting.append(_Waiting(image_CHW, top, loop.time(), scored))
        self._arrival.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await scored

    async def _run(self) -> None:
        size = self._batching.batch
        try:
            while self._waiting:
                await self._gather()
                batch, self._waiting = self._waiting[:size], self._waiting[size:]
                await self._answer(batch)
        finally:
            self._task = None

    async def _gather(self) -> None:
        """Wait until the batch is full, no further image is expected, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = self._waiting[0].arrived + self._batching.wait_s
        while len(self._waiting) < min(self._batching.batch, self._n_expected()):
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), deadline - loop.time())
            except asyncio.TimeoutError:
                return

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._score, batch)
        except Exception as error:  # each request of the batch reports it
            for each in batch:
                if not each.scored.done():
                    each.scored.set_exception(error)
            return
        self._on_batch(len(batch))
        for each, scored in zip(batch, results, strict=True):
            if not each.scored.done():  # else its request was cancelled
                each.scored.set_result(scored)

    def _score(self, batch: list[_Waiting]) -> list[Scored]:
        image_BCHW = torch.stack([each.image_CHW for each in batch])
        probability_BK, class_BK = self.classifier.top(image_BCHW, max(each.top for each in batch))
        rows = zip(batch, class_BK.tolist(), probability_BK.tolist(), strict=True)
        return [Scored(classes[: each.top], values[: each.top]) for each, classes, values in rows]
