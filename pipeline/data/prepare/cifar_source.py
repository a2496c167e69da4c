"""CIFAR-10 and CIFAR-100 as their authors publish them: folders of records of 32 × 32 pixels.

Nothing in them is executed: the Python files of CIFAR are pickles, and are read by an unpickler
that accepts arrays, bytes, numbers, lists and dictionaries, and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.data.prepare.folder_source import list_tree
from pipeline.data.prepare.source_images import (
    LeftOut,
    Listing,
    SourceImage,
    describe,
    file_errors_named,
)
from pipeline.data.prepare.splits import NOT_CHOSEN, SplitChoice
from pipeline.errors import DataError

_PIXELS = 3 * 32 * 32
_CIFAR_FILES = {  # per layout: class names, and the split of each data file
    "cifar-10-batches-bin": ("batches.meta.txt", "data_batch_{}.bin", "test_batch.bin"),
    "cifar-100-binary": ("fine_label_names.txt", "train.bin", "test.bin"),
    "cifar-10-batches-py": ("batches.meta", "data_batch_{}", "test_batch"),
    "cifar-100-python": ("meta", "train", "test"),
}
_AGAIN = "download and unpack it again"
_HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class CifarSource:
    """A folder of CIFAR-10 or CIFAR-100 as published by its authors; images become PNG files."""

    url: str
    layout: str

    def list_images(self, choice: SplitChoice) -> Listing:
        """Every image, named by its file and its row."""
        place, left_out = storage.redact(self.url), LeftOut()
        names, files = self._class_names(), self._data_files()
        assigned = choice.assign({split for split, _ in files}, place)
        choice.check_fraction(assigned.values(), place)
        images = []
        for split, name in files:
            labels, _ = _read_cifar(self.url, self.layout, name)
            for row, label in enumerate(labels.tolist()):
                if not 0 <= label < len(names):
                    raise DataError(f"{place}: {name} has unknown class {label}; {_AGAIN}")
                path = f"{PurePosixPath(name).stem}_{row:05d}.png"
                if split not in assigned:
                    left_out.add(NOT_CHOSEN, path)
                    continue
                final = choice.split_of(assigned[split], names[label], path)
                images.append(SourceImage(final, names[label], path, f"{name}#{row}"))
        known = {_CIFAR_FILES[self.layout][0], *(name for _, name in files)}
        for path, _ in list_tree(self.url, left_out):
            if path not in known:
                left_out.add("it is not a data file of CIFAR", path)
        return Listing(images, left_out)

    def read(self, image: SourceImage) -> bytes:
        """One row as a PNG file."""
        name, _, row = image.location.rpartition("#")
        _, pixels = _read_cifar(self.url, self.layout, name)
        planes = pixels[int(row)].reshape(3, 32, 32)
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(file, "PNG")
        return file.getvalue()

    def _class_names(self) -> list[str]:
        url = storage.join(self.url, _CIFAR_FILES[self.layout][0])
        if self.layout.endswith(("-bin", "-binary")):
            names = storage.read_text(url).split()
        else:
            meta = _unpickle(url)
            with file_errors_named(url, _AGAIN):
                entries = meta.get(b"fine_label_names", meta.get(b"label_names", ()))
                names = [name.decode() for name in entries]
        if not names or len(set(names)) != len(names):
            raise DataError(f"{storage.redact(url)}: does not name each class once; {_AGAIN}")
        return names

    def _data_files(self) -> list[tuple[str, str]]:
        _, train, test = _CIFAR_FILES[self.layout]
        numbers = range(1, 6) if "{}" in train else range(1)
        return [("train", train.format(number)) for number in numbers] + [("test", test)]


def find_cifar(url: str) -> CifarSource | None:
    """The CIFAR folder that is ``url``, or lies directly in it; None if there is none."""
    name = PurePosixPath(url.rstrip("/")).name
    if name in _CIFAR_FILES and _has_files(url, name):
        return CifarSource(url, name)
    for layout in _CIFAR_FILES:
        for folder in (url, storage.join(url, layout)):
            if _has_files(folder, layout):
                return CifarSource(folder, layout)
    return None


def refuse_archived_cifar(paths: Iterable[str], url: str) -> None:
    """Return if no path is in a folder of CIFAR.

    Raises:
        DataError: the archive contains CIFAR, which is read only from a folder.
    """
    for path in paths:
        if found := set(PurePosixPath(path).parts[:-1]) & set(_CIFAR_FILES):
            raise DataError(
                f"{storage.redact(url)}: contains CIFAR, which is read from a folder; "
                f"unpack it, and give the folder {min(found)} as --source"
            )


def _has_files(url: str, layout: str) -> bool:
    names, _, test = _CIFAR_FILES[layout]
    return all(storage.exists(storage.join(url, file)) for file in (names, test))


@lru_cache(maxsize=6)
def _read_cifar(url: str, layout: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and pixels of one data file; kept, since each image asks for its file."""
    place = storage.join(url, name)
    if layout.endswith(("-bin", "-binary")):
        label_bytes = 2 if layout == "cifar-100-binary" else 1
        data = np.frombuffer(storage.read_bytes(place), dtype=np.uint8)
        if len(data) % (label_bytes + _PIXELS):
            raise DataError(f"{storage.redact(place)}: is incomplete; {_AGAIN}")
        rows = data.reshape(-1, label_bytes + _PIXELS)
        return rows[:, label_bytes - 1].astype(np.int64), rows[:, label_bytes:]
    content = _unpickle(place)
    labels, pixels = content.get(b"fine_labels", content.get(b"labels")), content.get(b"data")
    # Nested lists are never converted to arrays: a small pickle can describe a huge one.
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
        or not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(label) is int and 0 <= label < 1000 for label in labels)
    ):
        raise DataError(
            f"{storage.redact(place)}: does not have a label and {_PIXELS} bytes for each image; "
            f"{_AGAIN}"
        )
    return np.asarray(labels, dtype=np.int64), pixels


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and numpy arrays; any other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise DataError(
                f"contains {module}.{name}, which a file of images does not need; "
                "refused, since it could run code"
            )
        return super().find_class(module, name)


def _unpickle(url: str) -> dict[bytes, Any]:
    data = storage.read_bytes(url)
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{storage.redact(url)}: {error}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{storage.redact(url)}: is not a CIFAR file ({describe(error)}); {_AGAIN}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{storage.redact(url)}: is not a CIFAR file; {_AGAIN}")
    return content
