"""The true classes of image files, and the accuracy of predictions beside them."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pipeline import storage
from pipeline.data.prepare.table_source import decode_text, read_csv_rows
from pipeline.errors import DataError
from pipeline.inference.images import ImageFile, place_of

BY_FOLDER = "folders"


@dataclass(frozen=True)
class Labels:
    """The class of each image by its place; without a table the name of its folder."""

    class_of: Mapping[str, str] | None = None

    def of(self, image: ImageFile) -> str | None:
        """The name of the class; None if it is not known."""
        if self.class_of is None:
            return image.folder or None
        return self.class_of.get(image.location)


def read_labels(source: str) -> Labels:
    """The labels that ``folders`` or a CSV with the columns path and class gives.

    Paths are relative to the CSV's folder.

    Raises:
        DataError: the CSV has another form, or gives an image two classes.
        StorageError: it cannot be read.
    """
    if source == BY_FOLDER:
        return Labels()
    place = storage.redact(source)
    text = decode_text(storage.read_bytes(source, most=storage.MAX_TEXT_BYTES), place)
    class_of: dict[str, str] = {}
    for line, row in read_csv_rows(text, place, ("path", "class")):
        path, name = (str(row[column] or "").strip() for column in ("path", "class"))
        if not path or not name:
            raise DataError(f"{place}, line {line}: has no path or no class; give both")
        location = _located(path, source)
        if class_of.setdefault(location, name) != name:
            raise DataError(
                f"{place}, line {line}: {path} has the class {name!r} here and "
                f"{class_of[location]!r} above; give an image one class"
            )
    if not class_of:
        raise DataError(f"{place}: lists no image; give a row with path and class each")
    return Labels(class_of)


def _located(path: str, table: str) -> str:
    if "://" in path or path.startswith("/"):
        return place_of(path)
    return place_of(storage.join(posixpath.dirname(table) or ".", path))


@dataclass
class Score:
    """Correct and tested images of each class that the classifier knows."""

    classes: Sequence[str]
    correct: Counter[int] = field(default_factory=Counter)  # by class number
    images: Counter[int] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)  # images by class name
    n_unlabelled: int = 0

    def __post_init__(self) -> None:
        self._numbers_of: dict[str, list[int]] = {}
        for spelled in (str, _spaced):
            found: dict[str, list[int]] = {}
            for number, name in enumerate(self.classes):
                found.setdefault(spelled(name), []).append(number)
            self._numbers_of = found | self._numbers_of

    def number_of(self, name: str) -> int | None:
        """The class of a name, in which an underscore may stand for a space; None if unknown.

        Raises:
            DataError: several classes have the name.
        """
        numbers = self._numbers_of.get(name) or self._numbers_of.get(_spaced(name), [])
        if len(numbers) > 1:
            raise DataError(
                f"--labels: {len(numbers)} classes of the run are called {name!r}; choose the "
                "classes of one task with --task"
            )
        return numbers[0] if numbers else None

    def add(self, label: str | None, predicted: int) -> None:
        """Count one image; of a class that the classifier does not know it counts apart."""
        if label is None:
            self.n_unlabelled += 1
            return
        number = self.number_of(label)
        if number is None:
            self.unknown[label] += 1
            return
        self.images[number] += 1
        self.correct[number] += number == predicted

    @property
    def micro(self) -> float | None:
        """The fraction of correct images; None without an image."""
        total = self.images.total()
        return self.correct.total() / total if total else None

    @property
    def macro(self) -> float | None:
        """The mean of the accuracies of the classes; None without an image."""
        accuracies = [self.correct[number] / n for number, n in self.images.items()]
        return fmean(accuracies) if accuracies else None


def _spaced(name: str) -> str:
    return name.replace("_", " ")
