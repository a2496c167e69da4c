"""Parquet tables with images, in the form of Hugging Face data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.data.prepare.folder_source import list_tree
from pipeline.data.prepare.source_images import (
    MAX_FILE_BYTES,
    LeftOut,
    Listing,
    SourceImage,
    describe,
    file_errors_named,
)
from pipeline.data.prepare.splits import NOT_CHOSEN, SplitChoice, split_in_name
from pipeline.errors import DataError, StorageError

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_BATCH_ROWS = 64
_BATCH_BYTES = 64 << 20
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files with an image column and a label column.

    The name of a file, or of a folder that contains it, gives its split:
    ``train-00000-of-00002.parquet``, ``default/train/0000.parquet``. An image is a structure with
    ``bytes``, or plain bytes; the metadata of the label column may give class names.
    """

    url: str

    def list_images(self, choice: SplitChoice) -> Listing:
        """One image per row; classes in the order of the metadata."""
        place, left_out = storage.redact(self.url), LeftOut()
        files = self._files(choice, left_out)
        assigned = choice.assign({split for split, _ in files}, place)
        choice.check_fraction(assigned.values(), place)
        names = [PurePosixPath(url).name for _, url in files]
        images: list[SourceImage] = []
        orders: set[tuple[str, ...]] = set()
        for split, url in files:
            if split not in assigned:
                left_out.add(NOT_CHOSEN, storage.redact(url))
                continue
            path = PurePosixPath(url)
            # Files of one name in two folders keep the folder in the names of their images.
            stem = path.stem if names.count(path.name) == 1 else f"{path.parent.name}-{path.stem}"
            labels, order = read_labels(url)
            orders |= {order} if order else set()
            for row, label in enumerate(labels):
                name = f"{stem}_{row:07d}.img"
                final = choice.split_of(assigned[split], label, name)
                images.append(SourceImage(final, label, name, f"{url}#{row}"))
        if len(orders) > 1:
            raise DataError(
                f"{place}: its files give different lists of class names; "
                "prepare files of one version of the data set"
            )
        order = orders.pop() if orders else None
        _refuse_other_classes(images, order)
        notes = [f"{name} became {split}" for name, split in assigned.items() if name != split]
        return Listing(images, left_out, order, tuple(notes))

    def _files(self, choice: SplitChoice, left_out: LeftOut) -> list[tuple[str, str]]:
        """The split and the URL of each Parquet file."""
        if is_parquet_name(self.url):
            files = [(PurePosixPath(self.url).as_posix(), self.url)]
        else:
            files = []
            for path, url in list_tree(self.url, left_out):
                if is_parquet_name(path):
                    files.append((path, url))
                else:
                    left_out.add("it is not a Parquet file", path)
        found, roots = [], set()
        for path, url in files:
            parts = PurePosixPath(path).parts
            splits = [split_in_name(part, choice.known) for part in reversed(parts)]
            depth = next((d for d, split in enumerate(splits) if split), None)
            if depth is None:
                raise DataError(
                    f"{storage.redact(url)}: neither its name nor a folder starts with a split; "
                    f"start one with {', '.join(choice.known)}, or give --splits"
                )
            roots.add("/".join(parts[: len(parts) - depth - 1]))
            found.append((splits[depth] or "", url))
        if len(roots) > 1:
            raise DataError(
                f"{storage.redact(self.url)}: has several data sets in "
                f"{', '.join(sorted(map(repr, roots)))}; give one of them as --source"
            )
        return found


def _refuse_other_classes(images: Sequence[SourceImage], order: tuple[str, ...] | None) -> None:
    """Return if each class is in ``order``, which another file may give than that of the image."""
    known = set(order or ())
    stray = next((image for image in images if known and image.folder not in known), None)
    if stray is not None:
        url, _, row = stray.location.rpartition("#")
        raise DataError(
            f"{storage.redact(url)}, row {row}: has the label {stray.folder[:40]!r}, which is not "
            f"one of the {len(known)} class names that another file gives; "
            "prepare files of one version of the data set"
        )


def is_parquet_name(path: str) -> bool:
    """Whether a file is called ``.parquet``."""
    return path.lower().endswith(".parquet")


def read_labels(url: str) -> tuple[list[str], tuple[str, ...] | None]:
    """The class of each row, and all class names in their order if the file has them.

    Raises:
        DataError: a row has no label, or one that is neither text nor a whole number.
    """
    place = storage.redact(url)
    file = open_parquet(url)
    with file_errors_named(url, f"it is not a complete Parquet file; {_AGAIN}"):
        rows, size = file.metadata.num_rows, storage.size(url)
        if not 0 <= rows <= size:  # an image needs at least one byte
            raise DataError(f"{place}: claims {rows:,} rows in {size:,} bytes; {_AGAIN}")
        column = find_column(file, url, _LABEL_COLUMNS)
        _refuse_large_labels(file, column, place)
        names = _class_names(file, column, place)
        values = [
            value
            for batch in file.iter_batches(batch_size=65536, columns=[column])
            for value in batch.column(0).to_pylist()
        ]
        if len(values) != rows:
            raise DataError(f"{place}: has {len(values):,} labels for {rows:,} rows; {_AGAIN}")
    return [_label(value, names, f"{place}, row {i}") for i, value in enumerate(values)], names


def _refuse_large_labels(file: Any, column: str, place: str) -> None:
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    size = max((_unpacked_bytes(group, column) for group in groups), default=0)
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{place}: has labels of {size:,} bytes in a row group, and {MAX_FILE_BYTES:,} are "
            "read; give short labels"
        )


def _unpacked_bytes(group: Any, column: str) -> int:
    """The bytes of a column in a row group before compression."""
    parts = (group.column(number) for number in range(group.num_columns))
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.split(".")[0] == column
    )


def read_image_bytes(url: str, wanted: Sequence[int]) -> Iterator[tuple[int, bytes | SampleError]]:
    """Row and image bytes, or the reason why it has none, for each row of ``wanted`` (ascending).

    Each row group is read once, in small batches. A damaged group costs only its own rows.
    """
    file = open_parquet(url)
    with file_errors_named(url, f"it is not a complete Parquet file; {_AGAIN}"):
        column = find_column(file, url, _IMAGE_COLUMNS)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    remaining, first = list(reversed(wanted)), 0
    for number, group in enumerate(groups):
        stop = first + group.num_rows
        try:
            for row, value in (
                _group_rows(file, number, column, first)
                if (remaining and remaining[-1] < stop)
                else ()
            ):
                if remaining and remaining[-1] == row:
                    yield remaining.pop(), _image_bytes(value)
        except StorageError:
            raise
        except Exception as error:  # pyarrow raises almost anything on damaged pages
            failure = SampleError(f"cannot be read ({describe(error)})")
            while remaining and remaining[-1] < stop:
                yield remaining.pop(), failure
        first = stop
    while remaining:
        yield remaining.pop(), SampleError("cannot be read (its row group is incomplete)")


def find_column(file: Any, url: str, names: Sequence[str]) -> str:
    """The first of ``names`` that is a column of ``file``.

    Raises:
        DataError: the file has none of them.
    """
    columns = file.schema_arrow.names
    for name in names:
        if name in columns:
            return name
    raise DataError(
        f"{storage.redact(url)}: has no column {' or '.join(names)}, only "
        f"{', '.join(columns) or 'none'}; rename the column"
    )


@lru_cache(maxsize=8)
def open_parquet(url: str) -> Any:
    """The open file. Repeated values are kept once, so that a small file cannot fill the memory.

    Raises:
        DataError: it is not a Parquet file.
    """
    # Imported here, since pyarrow takes a second and only Parquet sources need it.
    from pyarrow.parquet import ParquetFile

    with file_errors_named(url, f"it is not a Parquet file; {_AGAIN}"):
        schema = ParquetFile(storage.open_file(url)).schema_arrow
        repeated = [*_IMAGE_COLUMNS, *(f"{n}.bytes" for n in _IMAGE_COLUMNS), *_LABEL_COLUMNS]
        kept_once = [name for name in repeated if _is_text(schema, name)]
        return ParquetFile(storage.open_file(url), read_dictionary=kept_once, buffer_size=1 << 20)


def _is_text(schema: Any, name: str) -> bool:
    from pyarrow import types

    column, _, child = name.partition(".")
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    if child:
        if not types.is_struct(kind) or kind.get_field_index(child) < 0:
            return False
        kind = kind.field(kind.get_field_index(child)).type
    return types.is_binary(kind) or types.is_string(kind)


def _group_rows(file: Any, number: int, column: str, first: int) -> Iterator[tuple[int, Any]]:
    group = file.metadata.row_group(number)
    mean = max(1, _unpacked_bytes(group, column) // max(1, group.num_rows))
    if mean > MAX_FILE_BYTES:
        raise SampleError(f"has {mean:,} bytes; an image file may have {MAX_FILE_BYTES:,}")
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // mean))
    row = first
    for batch in file.iter_batches(batch_size=rows, row_groups=[number], columns=[column]):
        for value in batch.column(0):
            yield row, value
            row += 1


def _image_bytes(value: Any) -> bytes | SampleError:
    data = value.as_py()
    data = data.get("bytes") if isinstance(data, dict) else data
    if not isinstance(data, bytes):
        return SampleError("has no image bytes")
    if len(data) > MAX_FILE_BYTES:
        return SampleError(f"has {len(data):,} bytes; an image file may have {MAX_FILE_BYTES:,}")
    return data


def _class_names(file: Any, column: str, place: str) -> tuple[str, ...] | None:
    metadata = file.schema_arrow.metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(column, {}).get("names")
    if names is None:
        return None
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DataError(f"{place}: its metadata does not name each class once; correct it")
    return tuple(names) or None


def _label(value: Any, names: tuple[str, ...] | None, place: str) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if names and type(value) is int and 0 <= value < len(names):
        return names[value]
    if value is None:
        raise DataError(
            f"{place}: has no label; remove rows without a label, or leave their split out with "
            "--splits"
        )
    if names or type(value) not in (int, str):
        raise DataError(
            f"{place}: has the label {str(value)[:40]!r}, which is "
            + (f"not one of its {len(names)} class names" if names else "no text or whole number")
            + "; remove rows without a label, or leave their split out with --splits"
        )
    return str(value)
