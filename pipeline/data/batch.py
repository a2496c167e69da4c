"""One batch of images: its request, its maker, its answer.

A request contains the addresses of its samples and the seed of their augmentation, so every process
answers it with the same pixels.

B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from pipeline.data.decoding import SampleError, decode_sample
from pipeline.data.pixel_cache import KeptPixels, PixelCache
from pipeline.data.reader import ShardReader
from pipeline.data.samples import Samples
from pipeline.data.transforms import Transform
from pipeline.errors import PipelineError, StorageError
from pipeline.rng import numpy_stream


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one rank: uint8, with their classes in the index and numbers in the data set.

    ``image_BCHW`` is None if the images were not asked for. ``wait_s`` is how long the consumer
    waited for the batch.
    """

    image_BCHW: torch.Tensor | None
    label_B: torch.Tensor
    sample_B: torch.Tensor
    wait_s: float = 0.0

    def without(self, rows: set[int]) -> Batch:
        """The batch except some of its rows."""
        kept = torch.tensor([row not in rows for row in range(len(self.label_B))], dtype=torch.bool)
        image_BCHW = None if self.image_BCHW is None else self.image_BCHW[kept]
        return Batch(image_BCHW, self.label_B[kept], self.sample_B[kept], self.wait_s)

    def overwrite(self, row: int, other: Batch) -> None:
        """Replace one row by the first row of ``other``, a sample of the same class."""
        self.sample_B[row] = other.sample_B[0]
        if self.image_BCHW is not None and other.image_BCHW is not None:
            self.image_BCHW[row] = other.image_BCHW[0]


@dataclass(frozen=True, eq=False)
class Request:
    """A batch to make; ``seed_path`` names its augmentation, and is empty if nothing is random."""

    samples: Samples
    transform: Transform
    seed_path: tuple[int | str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """The outcome of a request: a batch, blank in its ``bad`` rows (row → reason), or an error."""

    outcome: Batch | PipelineError
    bad: dict[int, str] = field(default_factory=dict)

    def batch(self) -> Batch:
        """The batch.

        Raises:
            PipelineError: the error that is the outcome instead.
        """
        if isinstance(self.outcome, PipelineError):
            raise self.outcome
        return self.outcome


class BatchMaker(Dataset[Answer]):
    """Answers requests: a map-style torch data set whose keys are requests.

    Small to pickle, and without state. ``pixels`` keeps the pixels of deterministic transforms.
    """

    def __init__(self, reader: ShardReader, *, pixels: PixelCache | None = None) -> None:
        self.reader = reader
        self._kept = KeptPixels(pixels, reader) if pixels else None

    def __getitem__(self, request: Request) -> Answer:
        samples, transform = request.samples, request.transform
        kept = None if transform.is_random else self._kept
        shape = len(samples), 3, transform.image_size, transform.image_size
        image_BCHW = torch.zeros(shape, dtype=torch.uint8)
        try:
            rows = [*range(len(samples))]
            rows = kept.load(samples, transform, image_BCHW) if kept else rows
            records = self.reader.read(samples.take(np.array(rows, dtype=np.int64)))
        except PipelineError as error:  # the loader would make a traceback's text of it
            return Answer(error)
        except OSError as error:  # a disk that fails
            where = error.filename or self.reader.place(int(samples.shard_S[0]))
            return Answer(StorageError(f"cannot read {where}: {error.strerror or error}"))
        bad = self._decode(request, rows, records, image_BCHW)
        if kept:
            good = [row for row in rows if row not in bad]
            kept.save(samples, transform, image_BCHW, good)
        label_B, sample_B = torch.from_numpy(samples.label_S), torch.from_numpy(samples.sample_S)
        return Answer(Batch(image_BCHW, label_B, sample_B), bad)

    def _decode(
        self,
        request: Request,
        rows: Sequence[int],
        records: Sequence[bytes],
        image_BCHW: torch.Tensor,
    ) -> dict[int, str]:
        """Fill ``rows`` from their bytes; a bad one is blank, and its reason is returned."""
        samples, bad = request.samples, dict[int, str]()
        for row, record in zip(rows, records, strict=True):
            try:
                label = self.reader.stored_label(samples, row)
                image = decode_sample(record, key=samples.keys[row], label=label)
                image_BCHW[row] = _transform(request, row, image)
            except SampleError as error:
                image_BCHW[row] = 0
                bad[row] = str(error)
        return bad


def _transform(request: Request, row: int, image: Image.Image) -> torch.Tensor:
    rng = None
    if request.seed_path:
        rng = numpy_stream(*request.seed_path, int(request.samples.sample_S[row]))
    return request.transform(image, rng)
