"""From image files to predictions: files are decoded in threads while the model computes.

Axes: B images of a batch · K best classes of an image.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.decoding import SampleError
from pipeline.data.upright import open_upright
from pipeline.errors import ConfigError
from pipeline.inference.classifier import Classifier
from pipeline.inference.images import ImageFile

_MOST_THREADS = 4  # a file of the largest size takes half a gigabyte while it is decoded


class Prediction(NamedTuple):
    """The best classes of an image, best first; or the reason why it has none."""

    image: ImageFile
    classes: list[int] = []  # numbers in class order
    probabilities: list[float] = []
    problem: str = ""


def choose_device(name: str) -> torch.device:
    """The device of a name such as ``cuda:1``; ``auto`` is the GPU if there is one.

    Raises:
        ConfigError: torch does not know such a device, or this machine has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails where the device itself is missing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"--device {name!r} cannot be used ({reason}); give a device of this machine, such as "
            "cpu"
        ) from None
    return device


def classify(
    classifier: Classifier, images: Iterable[ImageFile], *, batch: int, top: int
) -> Generator[list[Prediction], None, None]:
    """Predictions of ``images`` in their order, at most ``batch`` at once.

    At most two batches of decoded images wait for the model.

    Raises:
        StorageError: the storage cannot be reached.
    """
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, "decoder")
    decode = partial(_decode, classifier)
    remaining = iter(images)
    waiting: deque[tuple[ImageFile, Future[Tensor | str]]] = deque()
    try:
        while True:
            for image in islice(remaining, 2 * batch - len(waiting)):
                waiting.append((image, pool.submit(decode, image)))
            if not waiting:
                return
            part = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            yield _predict(classifier, [(image, each.result()) for image, each in part], top)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode(classifier: Classifier, image: ImageFile) -> Tensor | str:
    """``image_CHW``, or a sentence about the file."""
    try:
        return classifier.preprocess(open_upright(image.read()))
    except SampleError as error:
        return str(error)


def _predict(
    classifier: Classifier, decoded: list[tuple[ImageFile, Tensor | str]], top: int
) -> list[Prediction]:
    usable = [pixels for _, pixels in decoded if isinstance(pixels, Tensor)]
    best: Iterator[tuple[list[int], list[float]]] = iter(())
    if usable:
        probability_BK, class_BK = classifier.top(torch.stack(usable), top)
        best = zip(class_BK.tolist(), probability_BK.tolist(), strict=True)
    return [
        Prediction(image, problem=pixels)
        if isinstance(pixels, str)
        else Prediction(image, *next(best))
        for image, pixels in decoded
    ]
