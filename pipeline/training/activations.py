"""Activations below the first prompted layer, computed once per image and kept on a local disk.

The blocks below it are frozen and have no prompt. Their output is the same in every epoch, task,
run and method, so later looks at an image neither decode it nor run these blocks.

Axes: B images of this rank · S image tokens · V vision width.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import storage
from pipeline.data.batch import Batch
from pipeline.data.index import Selection
from pipeline.data.transforms import Transform
from pipeline.distributed.collectives import gather_objects, place_on_node, raise_on_all_ranks
from pipeline.distributed.world import World
from pipeline.model.backbone import FrozenClip
from pipeline.text import format_bytes
from pipeline.training.features import in_equal_parts, key_of, part_images, pixels_of

log = logging.getLogger(__name__)

FILE_IMAGES = 64  # a multiple of each size of a part
_FOLDER = "activations"  # below data.feature_cache
_CHECKSUM_BYTES = 4

# Streams the images of some rows of a selection, in batches of FILE_IMAGES.
Stream = Callable[[Sequence[np.ndarray]], Iterator[Batch]]


@dataclass(frozen=True, eq=False)
class KeptActivations:
    """The activations of a selection, memory-mapped from files of ``FILE_IMAGES`` images each."""

    sample_S: Tensor
    files: tuple[Tensor, ...]

    def of(self, sample_B: Tensor) -> Tensor:
        """The tokens ``token_BSV`` of the samples with these numbers, in host memory."""
        positions = torch.searchsorted(self.sample_S, sample_B).tolist()
        rows = [self.files[number // FILE_IMAGES][number % FILE_IMAGES] for number in positions]
        return torch.stack(rows)


class ActivationStore:
    """Makes and keeps the tokens in front of block ``first_layer``.

    The files lie in a folder per selection, :func:`key_of` being its name, below ``folder``, the
    local folder of ``data.feature_cache``. They take ``limit_bytes`` together at most, also with
    those of other runs, of which the longest unused go first. A file ends with its checksum. One
    that is absent, torn or damaged is made again. Nothing is kept of a selection that finds no
    room, or that has an unusable sample; it is then encoded from pixels, with the same bits.
    """

    def __init__(
        self,
        clip: FrozenClip,
        world: World,
        *,
        first_layer: int,
        folder: str | None,
        limit_bytes: int,
    ) -> None:
        self.first_layer = first_layer
        self._clip = clip
        self._world = world
        self._limit_bytes = limit_bytes
        self._place, self._n_on_node = place_on_node()
        self._kept: dict[str, KeptActivations | None] = {}
        self._reported: set[str] = set()
        self._folder: Path | None = None
        if folder and storage.is_local(folder):
            self._folder = Path(storage.local_path(folder)) / _FOLDER
        else:
            self._report("data.feature_cache is no local folder")

    def get(
        self, selection: Selection, transform: Transform, stream: Stream
    ) -> KeptActivations | None:
        """The activations of ``selection``, or None if they are not kept; a collective call.

        ``stream`` gives images that have to be encoded.
        """
        if transform.is_random or self._folder is None:
            return None
        key = key_of(self._clip, selection, transform, self.first_layer)
        if key not in self._kept:
            folder = self._folder / key
            is_kept = self._reserve(folder, len(selection)) and self._fill(
                folder, selection, stream
            )
            self._kept[key] = self._open(folder, selection) if is_kept else None
        return self._kept[key]

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """The tokens ``token_BSV`` of pixels, on the device of the towers."""
        compute = self._clip.lower_blocks
        image_BCHW = image_BCHW.to(self._clip.device)
        (token_BSV,) = in_equal_parts(
            image_BCHW,
            lambda part_BCHW: [compute(part_BCHW, self.first_layer)],
            part_images(self._clip.device),
        )
        return token_BSV

    def _fill(self, folder: Path, selection: Selection, stream: Stream) -> bool:
        """Make the files that are absent or damaged; whether all of them are there on every rank.

        First all ranks share the absent ones, then the ranks of a node those that it does not see,
        if each node has its own disk, or that are damaged.
        """
        world, n_files = self._world, -(-len(selection) // FILE_IMAGES)
        files = range(n_files)
        shared = np.array_split(files, world.world_size)[world.rank]
        made = self._make(
            folder, selection, [n for n in shared if not _file(folder, n).exists()], stream
        )
        own = np.array_split(files, self._n_on_node)[self._place]
        damaged = [n for n in own if n not in made and not self._is_good(folder, selection, n)]
        self._make(folder, selection, damaged, stream)
        is_complete = all(_file(folder, number).exists() for number in files)
        if all(gather_objects(is_complete)):
            return True
        self._report("some files could not be made, for lack of room or unusable samples")
        return False

    def _make(
        self, folder: Path, selection: Selection, files: Sequence[int], stream: Stream
    ) -> set[int]:
        """Make these files of a selection; the numbers of those that have all their images."""
        rows = [_rows(selection, number) for number in files]
        made = set()
        with raise_on_all_ranks():
            for number, wanted, batch in zip(
                files, rows, stream(rows) if rows else (), strict=True
            ):
                if len(batch.sample_B) == len(wanted):
                    token_BSV = self.encode(pixels_of(batch)).cpu().contiguous()
                    made |= {number} if _write(_file(folder, number), token_BSV) else set()
        return made

    def _is_good(self, folder: Path, selection: Selection, number: int) -> bool:
        """Whether a file has its size and its checksum."""
        size = len(_rows(selection, number)) * self._image_bytes
        try:
            data = memoryview(_file(folder, number).read_bytes())
        except OSError:
            return False
        return len(data) == size + _CHECKSUM_BYTES and data[size:] == _checksum(data[:size])

    def _open(self, folder: Path, selection: Selection) -> KeptActivations | None:
        """The activations, or None if another run has just removed them or memory refuses the map.

        A map stays valid when its file is removed.
        """
        files = []
        shape = self._clip.image_tokens, self._clip.vision_width
        for number in range(-(-len(selection) // FILE_IMAGES)):
            n_images = len(_rows(selection, number))
            name, size = str(_file(folder, number)), n_images * shape[0] * shape[1]
            try:
                flat = torch.from_file(name, shared=False, size=size, dtype=self._clip.dtype)
            except (OSError, RuntimeError) as error:  # torch has no error of its own for a map
                self._report(f"{name} cannot be mapped: {str(error).splitlines()[0]}")
                return None
            files.append(flat.view(n_images, *shape))
        return KeptActivations(torch.from_numpy(selection.sample_S), tuple(files))

    def _reserve(self, folder: Path, n_images: int) -> bool:
        """Whether the limit and the disk of every node have room for one more selection."""
        has_room = self._place > 0 or self._make_room(folder, n_images)
        if all(gather_objects(has_room)):
            return True
        needed = format_bytes(n_images * self._image_bytes)
        self._report(
            f"a selection of {n_images:,} images needs {needed}, and {folder.parent} has no room "
            "for it (data.activation_limit_gb)"
        )
        return False

    def _make_room(self, folder: Path, n_images: int) -> bool:
        """Remove the longest unused selections of other runs until there is room."""
        assert self._folder is not None
        needed = n_images * self._image_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            os.utime(folder)  # the time of its last use
            used = {each: _bytes_in(each) for each in self._folder.iterdir()}
            needed -= used.pop(folder)
            others = [each for each in used if each.name not in self._kept]
            for other in sorted(others, key=lambda each: each.stat().st_mtime):
                if sum(used.values()) + needed <= self._limit_bytes:
                    break
                shutil.rmtree(other, ignore_errors=True)
                del used[other]
            disk = os.statvfs(self._folder)
        except OSError as error:
            self._report(f"{error.filename or self._folder}: {error.strerror}")
            return False
        free = disk.f_bavail * disk.f_frsize
        return sum(used.values()) + needed <= self._limit_bytes and needed <= free

    @property
    def _image_bytes(self) -> int:
        clip = self._clip
        return clip.image_tokens * clip.vision_width * clip.dtype.itemsize

    def _report(self, reason: str) -> None:
        """Say once why something is not kept."""
        if reason not in self._reported and self._world.is_main:
            log.info("activations below layer %d are not kept: %s", self.first_layer, reason)
        self._reported.add(reason)


def _rows(selection: Selection, number: int) -> np.ndarray:
    """The rows of a selection that are in its file ``number``."""
    start = number * FILE_IMAGES
    return np.arange(start, min(start + FILE_IMAGES, len(selection)))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.bin"


def _write(file: Path, token_BSV: Tensor) -> bool:
    """Write a file so that nobody sees half of it; False if the disk refuses."""
    part = file.with_suffix(f".{os.getpid()}.part")
    data = token_BSV.view(torch.uint8).numpy().data.cast("B")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.write(_checksum(data))
        part.rename(file)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True


def _checksum(data: memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def _bytes_in(folder: Path) -> int:
    """Bytes of the files of a folder; another process may remove some meanwhile."""
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
