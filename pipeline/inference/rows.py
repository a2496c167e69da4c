"""Predictions as rows of a CSV or as lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import Literal, TextIO

from pipeline.inference.prediction import Prediction

Form = Literal["csv", "jsonl"]

_COLUMNS = ("class", "probability", "task")  # of each rank
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that starts so


class Rows:
    """Writes the best classes of each image, best first, with probability and task."""

    def __init__(
        self,
        file: TextIO,
        form: Form,
        *,
        classes: Sequence[str],
        task_of_class: Sequence[int],
        top: int,
        labelled: bool,
    ) -> None:
        self._file, self._form = file, form
        self._classes, self._task_of_class = classes, task_of_class
        self._labelled = labelled
        # Every form of a line end in a name is quoted.
        self._csv = csv.writer(file, lineterminator="\n")
        if form == "csv":
            ranks = range(1, min(top, len(classes)) + 1)
            columns = [f"{name}_{rank}" for rank in ranks for name in _COLUMNS]
            self._csv.writerow(["path", *(["label"] if labelled else []), *columns])

    def write(self, prediction: Prediction, label: str | None = None) -> None:
        """Write the row of one image."""
        best = [
            (self._classes[number], float(f"{probability:.6g}"), self._task_of_class[number])
            for number, probability in zip(
                prediction.classes, prediction.probabilities, strict=True
            )
        ]
        if self._form == "jsonl":
            labels = {"label": label} if self._labelled else {}
            top = [dict(zip(_COLUMNS, each, strict=True)) for each in best]
            row = {"path": prediction.image.name, **labels, "top": top}
            self._file.write(json.dumps(row) + "\n")
            return
        cells = [_cell(label or "")] if self._labelled else []
        for name, probability, task in best:
            cells += [_cell(name), f"{probability:g}", str(task)]
        self._csv.writerow([_path_cell(prediction.image.name), *cells])


def _path_cell(path: str) -> str:
    """A path that no spreadsheet takes for a formula, and that names the same file."""
    return f"./{path}" if path.startswith(_FORMULA) else path


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
