"""MNIST as its authors publish it: files of grey images and of labels, after a short header."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.data.prepare.folder_source import list_tree
from pipeline.data.prepare.source_images import LeftOut, Listing, SourceImage
from pipeline.data.prepare.splits import NOT_CHOSEN, SplitChoice
from pipeline.errors import DataError

_NAMES = {"train": "train", "test": "t10k"}  # of each split, in the names of its files
_FORMS = (  # images, labels: unpacked, unpacked by programs that write a dot, as published
    ("images-idx3-ubyte", "labels-idx1-ubyte"),
    ("images.idx3-ubyte", "labels.idx1-ubyte"),
    ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"),
)
_MARKS = {3: 2051, 1: 2049}  # first number of a file, by the number of its dimensions
_LARGEST = 512 << 20  # bytes of a file
_MOST_PIXELS = 1 << 20  # of an image
_AGAIN = "download it again"


@dataclass(frozen=True)
class MnistSource:
    """A folder with the four files of MNIST or of a set in its form; images become PNG files.

    ``files`` has the names of each split: images, labels.
    """

    url: str
    files: Mapping[str, tuple[str, str]]

    def list_images(self, choice: SplitChoice) -> Listing:
        """Every image, named by its file and its row; its class is its digit."""
        place, left_out = storage.redact(self.url), LeftOut()
        assigned = choice.assign(self.files, place)
        choice.check_fraction(assigned.values(), place)
        images = []
        for split, (image_file, label_file) in self.files.items():
            labels, pixels = _read(self.url, label_file, 1), _read(self.url, image_file, 3)
            if len(labels) != len(pixels):
                raise DataError(
                    f"{place}: {image_file} has {len(pixels):,} images and {label_file} "
                    f"{len(labels):,} labels; {_AGAIN}"
                )
            for row, label in enumerate(labels.tolist()):
                path = f"{image_file.partition('-')[0]}_{row:05d}.png"
                if split not in assigned:
                    left_out.add(NOT_CHOSEN, path)
                    continue
                final = choice.split_of(assigned[split], str(label), path)
                images.append(SourceImage(final, str(label), path, f"{image_file}#{row}"))
        known = {name for names in self.files.values() for name in names}
        for path, _ in list_tree(self.url, left_out):
            if path not in known:
                left_out.add("it is not a data file of MNIST", path)
        return Listing(images, left_out)

    def read(self, image: SourceImage) -> bytes:
        """One row as a PNG file."""
        name, _, row = image.location.rpartition("#")
        file = io.BytesIO()
        Image.fromarray(_read(self.url, name, 3)[int(row)]).save(file, "PNG")
        return file.getvalue()


def find_mnist(url: str) -> MnistSource | None:
    """The folder with the files of MNIST that is ``url`` or where torchvision leaves it."""
    for folder in (url, storage.join(url, "raw"), storage.join(url, "MNIST/raw")):
        for images, labels in _FORMS:
            files = {s: (f"{name}-{images}", f"{name}-{labels}") for s, name in _NAMES.items()}
            names = (name for pair in files.values() for name in pair)
            if all(storage.exists(storage.join(folder, name)) for name in names):
                return MnistSource(folder, files)
    return None


@lru_cache(maxsize=4)
def _read(url: str, name: str, dimensions: int) -> np.ndarray:
    """The array in a file; kept, since each image asks for its file.

    Raises:
        DataError: the header or the size is another one.
    """
    place = storage.join(url, name)
    data = storage.read_bytes(place, most=_LARGEST)
    if name.endswith(".gz"):
        data = _decompress(data, storage.redact(place))
    header = struct.Struct(f">{1 + dimensions}I")
    mark, *shape = header.unpack(data[: header.size]) if len(data) >= header.size else (0, 0)
    pixels = int(np.prod(shape[1:], dtype=object)) if shape else 0
    expected = header.size + shape[0] * pixels
    if mark != _MARKS[dimensions] or len(data) != expected or not 0 < pixels <= _MOST_PIXELS:
        raise DataError(f"{storage.redact(place)}: is not a complete file of MNIST; {_AGAIN}")
    return np.frombuffer(data, dtype=np.uint8, offset=header.size).reshape(shape)


def _decompress(data: bytes, place: str) -> bytes:
    """The content of a gzip file, at most ``_LARGEST`` bytes of it."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(data, _LARGEST)
    except zlib.error as error:
        raise DataError(f"{place}: is damaged ({error}); {_AGAIN}") from None
    if not unpacker.eof:
        raise DataError(f"{place}: is cut off, or larger than {_LARGEST:,} bytes; {_AGAIN}")
    return content
