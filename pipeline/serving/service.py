"""The classifier that answers at the moment, and the images that wait for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from starlette.exceptions import HTTPException

from pipeline.inference import Classifier
from pipeline.serving.batching import Batcher, Batching, Scored
from pipeline.serving.metrics import Metrics
from pipeline.serving.uploads import decode_upload


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may use."""

    queue: int  # images that are uploaded, decoded, waiting or classified
    upload_bytes: int
    upload_s: float
    pixels: int


class Answer(NamedTuple):
    """The best classes of an image, and the classifier that found them."""

    classifier: Classifier
    scored: Scored


class Service:
    """Classifies uploaded images; a context manager that ends its threads."""

    def __init__(
        self, classifier: Classifier, source: str, limits: Limits, batching: Batching
    ) -> None:
        """``source`` is the name of the run in answers."""
        self.source = source
        self.limits = limits
        self.metrics = Metrics()
        self._batching = batching
        self._n_accepted = 0
        self._thread = ThreadPoolExecutor(1, "classifier")
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "decoder")
        self.use(classifier)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._decoders, self._thread):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def classifier(self) -> Classifier:
        """The classifier of new requests."""
        return self._batcher.classifier

    @property
    def is_full(self) -> bool:
        """Whether the next image would be refused."""
        return self._n_accepted >= self.limits.queue

    def use(self, classifier: Classifier) -> None:
        """Classify the images of later requests with ``classifier``; from any thread.

        Requests that have started keep the earlier one, also if they wait for its next batch.
        """
        self._batcher = Batcher(
            classifier,
            self._thread,
            self._batching,
            n_expected=lambda: self._n_accepted,
            on_batch=self.metrics.add_batch,
        )
        self.metrics.stage.set(classifier.stage)
        self.metrics.classes.set(len(classifier.classes))

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue for one image, from the start of its upload to its answer.

        Raises:
            HTTPException: 429, all places are taken.
        """
        if self.is_full:
            raise HTTPException(
                429,
                f"{self.limits.queue} images are waiting already; send it again in a second",
                {"Retry-After": "1"},
            )
        self._n_accepted += 1
        self.metrics.queue.set(self._n_accepted)
        try:
            yield
        finally:
            self._n_accepted -= 1
            self.metrics.queue.set(self._n_accepted)

    async def classify(self, data: bytes, top: int) -> Answer:
        """The ``top`` best classes of the image in an image file.

        Raises:
            HTTPException: 400, 413 or 415, see :func:`decode_upload`.
        """
        batcher = self._batcher  # also if another one comes while the image is decoded
        decoded = asyncio.get_running_loop().run_in_executor(
            self._decoders, decode_upload, data, self.limits.pixels, batcher.classifier.preprocess
        )
        return Answer(batcher.classifier, await batcher.classify(await decoded, top))
