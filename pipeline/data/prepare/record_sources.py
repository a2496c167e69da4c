"""Sources of images that are records of larger files: CIFAR's folders, Parquet tables.

Nothing in them is executed: the Python files of CIFAR are pickles, and are read by an unpickler
that accepts arrays, bytes, numbers, lists and dictionaries, and refuses everything else.
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.data.prepare.folder_sources import SPLIT_NAMES, SourceImage
from pipeline.errors import DataError

_PIXELS = 3 * 32 * 32
_CIFAR_FILES = {  # per layout: class names, and the split of each data file
    "cifar-10-batches-bin": ("batches.meta.txt", "data_batch_{}.bin", "test_batch.bin"),
    "cifar-100-binary": ("fine_label_names.txt", "train.bin", "test.bin"),
    "cifar-10-batches-py": ("batches.meta", "data_batch_{}", "test_batch"),
    "cifar-100-python": ("meta", "train", "test"),
}
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

    def list_images(self) -> list[SourceImage]:
        """Every image, named by its file and its row."""
        names = self._class_names()
        images = []
        for split, name in self._data_files():
            labels, _ = _read_cifar(self.url, self.layout, name)
            for row, label in enumerate(labels.tolist()):
                if label >= len(names):
                    raise DataError(f"{storage.redact(self.url)}: {name} has unknown class {label}")
                path = f"{PurePosixPath(name).stem}_{row:05d}.png"
                images.append(SourceImage(split, names[label], path, f"{name}#{row}"))
        return images

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
            return storage.read_text(url).split()
        meta = _unpickle(url)
        return [
            name.decode() for name in meta.get(b"fine_label_names", meta.get(b"label_names", ()))
        ]

    def _data_files(self) -> list[tuple[str, str]]:
        _, train, test = _CIFAR_FILES[self.layout]
        numbers = range(1, 6) if "{}" in train else range(1)
        return [("train", train.format(number)) for number in numbers] + [("test", test)]


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files with an image column and a label column, in the form of Hugging Face data sets.

    The name of a file gives its split (``train-00000-of-00002.parquet``). An image is a structure
    with ``bytes``, or plain bytes; the metadata of the label column may give class names.
    """

    url: str

    def list_images(self) -> list[SourceImage]:
        """One image per row."""
        images = []
        for url in _parquet_files(self.url):
            name = url.rpartition("/")[2]
            split = next((SPLIT_NAMES[s] for s in SPLIT_NAMES if name.startswith(s)), None)
            if split is None:
                raise DataError(
                    f"{storage.redact(url)}: its name does not start with a split; "
                    f"start it with one of {', '.join(SPLIT_NAMES)}"
                )
            labels = _parquet_labels(url)
            stem = name.removesuffix(".parquet")
            images += [
                SourceImage(split, label, f"{stem}_{row:07d}.img", f"{url}#{row}")
                for row, label in enumerate(labels)
            ]
        return images

    def read(self, image: SourceImage) -> bytes:
        """The image bytes of one row."""
        url, _, text = image.location.rpartition("#")
        row, group = int(text), 0
        while row >= (rows := _open_parquet(url).metadata.row_group(group).num_rows):
            row, group = row - rows, group + 1
        value = _parquet_images(url, group)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"{storage.redact(url)}: row {text} has no image bytes")
        return data


def cifar_layout(url: str) -> str | None:
    """The CIFAR layout of the folder, or None."""
    name = PurePosixPath(url.rstrip("/")).name
    if name in _CIFAR_FILES:
        return name
    for layout, (names, _, test) in _CIFAR_FILES.items():
        if all(storage.exists(storage.join(url, file)) for file in (names, test)):
            return layout
    return None


def is_parquet(url: str) -> bool:
    """Whether there are Parquet files at or below ``url``."""
    return bool(_parquet_files(url))


@lru_cache(maxsize=6)
def _read_cifar(url: str, layout: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and pixels of one data file; kept, since each image asks for its file."""
    place = storage.join(url, name)
    if layout.endswith(("-bin", "-binary")):
        label_bytes = 2 if layout == "cifar-100-binary" else 1
        data = np.frombuffer(storage.read_bytes(place), dtype=np.uint8)
        if len(data) % (label_bytes + _PIXELS):
            raise DataError(f"{storage.redact(place)}: is incomplete; download it again")
        rows = data.reshape(-1, label_bytes + _PIXELS)
        return rows[:, label_bytes - 1].astype(np.int64), rows[:, label_bytes:]
    content = _unpickle(place)
    labels = content.get(b"fine_labels", content.get(b"labels"))
    return np.asarray(labels, dtype=np.int64), np.asarray(content[b"data"], dtype=np.uint8)


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
    try:
        content = _ArraysOnly(io.BytesIO(storage.read_bytes(url)), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{storage.redact(url)}: {error}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{storage.redact(url)}: is not a CIFAR file ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{storage.redact(url)}: is not a CIFAR file")
    return content


def _parquet_files(url: str) -> list[str]:
    if url.endswith(".parquet"):
        return [url]
    return [file for file in storage.list_files(url) if file.endswith(".parquet")]


def _parquet_labels(url: str) -> list[str]:
    """The class of each row, by name if the file has class names."""
    file = _open_parquet(url)
    column = _label_column(url)
    values = file.read(columns=[column]).column(column).to_pylist()
    metadata = file.schema_arrow.metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(column, {}).get("names")
    if names and not all(isinstance(v, int) and 0 <= v < len(names) for v in values):
        raise DataError(f"{storage.redact(url)}: column {column} has values without a name")
    return [names[value] if names else str(value) for value in values]


def _label_column(url: str) -> str:
    columns = _open_parquet(url).schema_arrow.names
    for name in ("label", "labels", "fine_label", "class"):
        if name in columns:
            return name
    raise DataError(f"{storage.redact(url)}: has no column label, only {', '.join(columns)}")


def _image_column(url: str) -> str:
    columns = _open_parquet(url).schema_arrow.names
    for name in ("image", "img"):
        if name in columns:
            return name
    raise DataError(f"{storage.redact(url)}: has no column image, only {', '.join(columns)}")


@lru_cache(maxsize=4)
def _parquet_images(url: str, group: int) -> Any:
    """The image column of one row group; kept, since its other rows are read next."""
    column = _image_column(url)
    return _open_parquet(url).read_row_group(group, columns=[column]).column(column)


@lru_cache(maxsize=64)
def _open_parquet(url: str) -> Any:
    # Imported here, since pyarrow takes a second and only Parquet sources need it.
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(storage.open_file(url))
    except ArrowInvalid as error:
        raise DataError(f"{storage.redact(url)}: is not a Parquet file ({error})") from error
