"""Tables that list image files: CSV and JSONL with path, label and split."""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.data.prepare.folder_source import read_image_file
from pipeline.data.prepare.source_images import LeftOut, Listing, SourceImage, describe, printable
from pipeline.data.prepare.splits import NOT_CHOSEN, SplitChoice
from pipeline.errors import DataError
from pipeline.text import first_few

_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class TableSource:
    """A CSV with the columns path, label and split, or a JSONL with those fields.

    Paths are relative to the table's folder. With ``--test-fraction`` no split is needed.
    """

    url: str

    def list_images(self, choice: SplitChoice) -> Listing:
        """One image per row."""
        place = storage.redact(self.url)
        is_csv = self.url.lower().endswith((".csv", ".tsv"))
        text = decode_text(storage.read_bytes(self.url, most=storage.MAX_TEXT_BYTES), place)
        needed = ("path", "label") if choice.test_fraction else ("path", "label", "split")
        rows: list[tuple[int, str, str, str]] = []
        lines: dict[str, int] = {}
        for line, row in (read_csv_rows if is_csv else _json_rows)(text, place, needed):
            path, label, split = _checked_row(row, f"{place}, line {line}", needed)
            first = lines.setdefault(self._location(path), line)
            if first != line:
                raise DataError(
                    f"{place}, line {line}: {printable(path)} is listed twice, first in line "
                    f"{first}; list each image once"
                )
            rows.append((line, path, label, split))
        return self._listing(rows, choice, place)

    def read(self, image: SourceImage) -> bytes:
        """The bytes of the file that one row names."""
        try:
            return read_image_file(image.location)
        except SampleError as error:
            if "\\" not in image.path:
                raise
            raise SampleError(f"{error}; write paths with / instead of \\") from error

    def _location(self, path: str) -> str:
        if "://" in path:
            return path
        if path.startswith("/"):
            return posixpath.normpath(path)
        folder = self.url.rpartition("/")[0] or ("/" if self.url.startswith("/") else ".")
        if "://" in folder:
            return storage.join(folder, posixpath.normpath(path))
        return posixpath.normpath(storage.join(folder, path))

    def _listing(
        self, rows: list[tuple[int, str, str, str]], choice: SplitChoice, place: str
    ) -> Listing:
        if not rows:
            raise DataError(f"{place}: lists no image; give a row with path, label and split each")
        for line, _, _, split in rows:
            if choice.chosen is None and split and split.lower() not in choice.known:
                raise DataError(
                    f"{place}, line {line}: split {printable(split)!r} is not one of "
                    f"{', '.join(choice.known)}; rename it, or choose with --splits"
                )
        assigned = choice.assign({split for *_, split in rows if split}, place)
        choice.check_fraction(assigned.values(), place)
        images, left_out = [], LeftOut()
        for line, path, label, split in rows:
            if split and split not in assigned:
                left_out.add(NOT_CHOSEN, f"line {line}")
                continue
            final = choice.split_of(assigned.get(split, "train"), label, path)
            images.append(SourceImage(final, label, path, self._location(path)))
        notes = [f"{name} became {split}" for name, split in assigned.items() if name != split]
        return Listing(images, left_out, notes=tuple(notes))


def decode_text(data: bytes, place: str) -> str:
    """The text of a table, in UTF-8 or UTF-16.

    Raises:
        DataError: it has another encoding.
    """
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"  # "Unicode text" of Excel
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: is not text in UTF-8 (byte {error.start:,}: {error.reason}); "
            'save it as UTF-8, in Excel as "CSV UTF-8"'
        ) from None


def _checked_row(row: dict[str, Any], place: str, needed: tuple[str, ...]) -> tuple[str, str, str]:
    """Path, label and split of a row."""
    values = []
    for name in ("path", "label", "split"):
        value = row.get(name)
        if type(value) is int and name == "label":
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{place}: {name} {str(value)[:40]!r} is not text"
                + (" or a whole number" if name == "label" else "")
                + "; write it as text"
            )
        value = (value or "").strip()
        if not value and name in needed:
            raise DataError(f"{place}: has no {name}; give {', '.join(needed)}")
        values.append(value)
    return values[0], values[1], values[2]


def read_csv_rows(
    text: str, place: str, needed: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and fields of each row that is not empty; the columns ``needed`` must exist.

    Raises:
        DataError: a column is missing or there twice, or the text is not CSV.
    """
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = max(_DELIMITERS, key=lambda d: (len(set(needed) & _names(header, d)), d == ","))
    # newline=None: old spreadsheets end their lines with a carriage return alone
    lines = io.StringIO(text, newline=None)
    rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
    line = 1
    try:
        columns = [name.strip().lower() for name in rows.fieldnames or ()]
        missing = sorted(set(needed) - set(columns))
        if missing:
            raise DataError(
                f"{place}: has no column {', '.join(missing)}, "
                f"only {printable(first_few(rows.fieldnames or ['none']))}; "
                f"its first line must name the columns {', '.join(needed)}"
                + ("" if "split" not in missing else ", or give --test-fraction 0.2 instead of it")
            )
        twice = sorted(name for name in set(columns) & set(needed) if columns.count(name) > 1)
        if twice:
            raise DataError(f"{place}: has the column {twice[0]} twice; remove one of them")
        rows.fieldnames = columns
        for row in rows:
            line = rows.line_num
            if not any(row.values()):
                continue  # spreadsheets write empty rows as separators alone
            if None in row:
                raise DataError(
                    f"{place}, line {line}: has more fields than the first line names; "
                    "put quotes around a value that contains the separator"
                )
            yield line, row
    except csv.Error as error:
        raise DataError(
            f"{place}: cannot be read as CSV after line {line} ({describe(error)}); "
            "close every quote, and save it as CSV again"
        ) from None


def _names(header: str, delimiter: str) -> set[str]:
    return {name.strip().strip('"').lower() for name in header.split(delimiter)}


def _json_rows(
    text: str, place: str, needed: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place}, line {number}: is not JSON ({describe(error)}); "
                'write one object a line: {"path": "a.jpg", "label": "ant", "split": "train"}'
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{place}, line {number}: is not a JSON object; write one object a line"
            )
        yield number, row
