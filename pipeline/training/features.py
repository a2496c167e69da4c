"""Features of the frozen image tower, computed once per image, for every reader and purpose.

Axes: S samples of a selection · B images · V vision width · E joint width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.data.batch import Batch
from pipeline.data.index import Selection
from pipeline.data.plan import replacement_candidates
from pipeline.data.transforms import Transform
from pipeline.distributed.collectives import (
    gather_objects,
    raise_on_all_ranks,
    sum_over_ranks,
)
from pipeline.distributed.world import World
from pipeline.errors import DataError
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.training.transfer import without_waiting

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """Frozen features of a selection, the same on every rank; unusable samples are left out."""

    sample_S: Tensor  # dataset-wide sample numbers, ascending
    label_S: Tensor  # classes of the index
    features: ImageFeatures  # of S images

    def of(self, sample_B: Tensor) -> ImageFeatures:
        """The features of the samples with these numbers."""
        position_B = torch.searchsorted(self.sample_S, sample_B)
        position_B = without_waiting(position_B, self.features.joint_BE.device)
        return self.features.rows(position_B)

    def rows(self, rows: slice) -> tuple[ImageFeatures, Tensor]:
        """Some rows and their labels."""
        return self.features.rows(rows), self.label_S[rows]

    def usable(self, sample_B: Tensor, selection: Selection) -> Tensor:
        """``sample_B`` with each unusable sample replaced, by the rule of training on images.

        Raises:
            DataError: a class has no usable sample left.
        """
        if bool(torch.isin(sample_B, self.sample_S).all()):
            return sample_B
        known = set(self.sample_S.tolist())
        return torch.tensor(
            [n if n in known else self._replacement(n, selection, known) for n in sample_B.tolist()]
        )

    @staticmethod
    def _replacement(sample: int, selection: Selection, known: set[int]) -> int:
        candidates = selection.sample_S[replacement_candidates(selection, sample)].tolist()
        usable = next((number for number in candidates if number in known), None)
        if usable is None:
            raise DataError(
                f"{storage.redact(selection.index.url)}: no usable {selection.split} sample is "
                "left of one class; repair the data set"
            )
        return usable


class FrozenStore:
    """Computes frozen features, keeps them in memory and, if ``folder`` is given, beside the data.

    They are the same for every method, seed and class order, so runs over the same data can share
    a folder. :func:`key_of` names them. In memory a selection takes ``S × (2 V + E) × 4`` bytes.
    The images come as pixels, or as the tokens in front of block ``first_layer``.
    """

    def __init__(
        self, clip: FrozenClip, world: World, folder: str | None, *, first_layer: int = 0
    ) -> None:
        self._clip = clip
        self._world = world
        self._folder = folder
        self._first_layer = first_layer
        self._kept: dict[str, FrozenFeatures] = {}

    def get(
        self, selection: Selection, transform: Transform, share: Callable[[], Iterable[Batch]]
    ) -> FrozenFeatures:
        """Features of ``selection``; ``share()`` streams this rank's part if they must be made."""
        key = key_of(self._clip, selection, transform)
        if key not in self._kept:
            self._kept[key] = self._fetch(key) or self._compute(key, selection, share())
        return self._kept[key]

    def _fetch(self, key: str) -> FrozenFeatures | None:
        """The features as a run has written them; None unless every rank can read them."""
        if not self._folder:
            return None
        url = storage.join(self._folder, f"{key}.safetensors")
        with raise_on_all_ranks():
            found = self._read(url) if storage.exists(url) else None
        return found if all(gather_objects(found is not None)) else None

    def _read(self, url: str) -> FrozenFeatures | None:
        try:
            stored = from_safetensors(storage.read_bytes(url))
            columns = [stored[name] for name in ImageFeatures._fields]
            sample_S, label_S = stored["sample"], stored["label"]
        except (SafetensorError, KeyError):
            log.warning("%s: is damaged; these features are made again", storage.redact(url))
            return None
        features = ImageFeatures(*(column.to(self._clip.device) for column in columns))
        return FrozenFeatures(sample_S, label_S, features)

    def _compute(self, key: str, selection: Selection, share: Iterable[Batch]) -> FrozenFeatures:
        clip, device = self._clip, self._clip.device
        widths = clip.vision_width, clip.joint_width, clip.vision_width
        usable_S, columns = gather_columns(
            selection,
            share,
            lambda batch: in_equal_parts(pixels_of(batch), self._encode, part_images(device)),
            widths,
            device,
        )
        features = FrozenFeatures(
            torch.from_numpy(selection.sample_S)[usable_S],
            torch.from_numpy(selection.label_S)[usable_S],
            ImageFeatures(*columns),
        )
        if self._folder:
            self._write(self._folder, key, features)
        return features

    def _encode(self, image_BCHW: Tensor) -> ImageFeatures:
        return self._clip.encode_image(image_BCHW, first_layer=self._first_layer)

    def _write(self, folder: str, key: str, features: FrozenFeatures) -> None:
        tensors = {
            "sample": features.sample_S,
            "label": features.label_S,
            **{name: column.cpu() for name, column in features.features._asdict().items()},
        }
        url = storage.join(folder, f"{key}.safetensors")
        with raise_on_all_ranks():
            if self._world.is_main:
                storage.write_atomically(url, to_safetensors(tensors))


def key_of(clip: FrozenClip, selection: Selection, transform: Transform, *more: int) -> str:
    """The name of what the frozen image tower makes of a selection, in hex.

    It covers the weights, the type and kind of device of the towers, the images by the hash of
    their index, the transform, the sample numbers, the size of the parts, and ``more``.
    """
    digest = hashlib.sha256(np.ascontiguousarray(selection.sample_S).tobytes())
    towers = clip.sha256, str(clip.dtype), clip.device.type
    columns = ImageFeatures._fields
    origin = (*towers, columns, selection.index.sha256, transform, part_images(clip.device), *more)
    digest.update(repr(origin).encode())
    return digest.hexdigest()


def part_images(device: torch.device) -> int:
    """Images of one pass of the frozen tower: as many as a CPU core, or a GPU, is fastest with."""
    return 64 if device.type == "cuda" else 16


def in_equal_parts(
    image_BCHW: Tensor, compute: Callable[[Tensor], Sequence[Tensor]], size: int
) -> list[Tensor]:
    """The columns of ``compute``, which always gets ``size`` images.

    The last part is filled up with zeros. So the bits of a row do not depend on the number of other
    images: a matrix product of another shape may add in another order.
    """
    parts = []
    for part_BCHW in image_BCHW.split(size):
        n_images = len(part_BCHW)
        blank_BCHW = part_BCHW.new_zeros(size - n_images, *part_BCHW.shape[1:])
        columns = compute(torch.cat([part_BCHW, blank_BCHW]))
        parts.append([column[:n_images] for column in columns])
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def pixels_of(batch: Batch) -> Tensor:
    """The images of a batch of a stream with images: pixels, or tokens of the image tower."""
    assert batch.image_BCHW is not None, "the stream has no images"
    return batch.image_BCHW


@torch.no_grad()
def gather_columns(
    selection: Selection,
    share: Iterable[Batch],
    compute: Callable[[Batch], Sequence[Tensor]],
    widths: Sequence[int],
    device: torch.device,
) -> tuple[Tensor, list[Tensor]]:
    """Columns of all samples of a selection, in canonical order and the same on every rank.

    ``compute`` gives one tensor B×width of float32 per column for a batch of this rank's ``share``.
    Returns which samples were usable, ``usable_S``, and the columns of those. Only zeros are added
    to a value on its way, so its bits do not depend on the number of ranks.
    """
    sample_S = torch.from_numpy(selection.sample_S)
    seen_S = torch.zeros(len(selection), device=device)
    columns = [torch.zeros(len(selection), width, device=device) for width in widths]
    with raise_on_all_ranks():
        for batch in share:
            position_B = without_waiting(torch.searchsorted(sample_S, batch.sample_B), device)
            for column, value in zip(columns, compute(batch), strict=True):
                column[position_B] = value
            seen_S[position_B] = 1.0
    usable_S = sum_over_ranks(seen_S).bool()
    gathered = [sum_over_ranks(column)[usable_S] for column in columns]
    return usable_S.cpu(), gathered
