"""One batch of pictures: what is asked for, who makes it, what comes back.

A request holds the addresses of its samples and the seed of their augmentation, so whoever answers
it, in whatever process, gives the same pixels.

B images, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image

from pipeline.data.decoding import SampleError, decode_sample
from pipeline.data.reader import ShardReader
from pipeline.data.samples import Samples
from pipeline.data.transforms import Transform
from pipeline.errors import PipelineError
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
        """The batch less some of its rows."""
        kept = torch.tensor([row not in rows for row in range(len(self.label_B))], dtype=torch.bool)
        image_BCHW = None if self.image_BCHW is None else self.image_BCHW[kept]
        return Batch(image_BCHW, self.label_B[kept], self.sample_B[kept], self.wait_s)


@dataclass(frozen=True, eq=False)
class Request:
    """One batch to be made; ``seed_path`` names its augmentation, empty where nothing is random."""

    samples: Samples
    transform: Transform
    seed_path: tuple[int | str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of a request: a batch, blank in its ``bad`` rows (row → reason), or an error."""

    batch: Batch | None = None
    bad: dict[int, str] = field(default_factory=dict)
    error: PipelineError | None = None


class BatchMaker:
    """Answers requests; small to pickle, without any state of its own.

    A mapping from requests to answers, since that is the form of a map-style torch data set.
    """

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
                label = self.reader.stored_label(samples, row)
                image = decode_sample(record, key=samples.keys[row], label=label)
                image_BCHW[row] = _transform(request, row, image)
            except SampleError as error:
                bad[row] = str(error)
        label_B, sample_B = torch.from_numpy(samples.label_S), torch.from_numpy(samples.sample_S)
        return Answer(Batch(image_BCHW, label_B, sample_B), bad)


def _transform(request: Request, row: int, image: Image.Image) -> torch.Tensor:
    rng = None
    if request.seed_path:
        rng = numpy_stream(*request.seed_path, int(request.samples.sample_S[row]))
    return request.transform(image, rng)
