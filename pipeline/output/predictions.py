"""``predictions.jsonl``: one line per tested image of the last stage, in canonical order.

The order is that of the tasks, and within a task that of the shards and their samples. Images that
could not be used are left out. The bytes do not depend on the number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import storage
from pipeline.errors import DataError
from pipeline.text import first_problem

NAME = "predictions.jsonl"
TOP = 5  # classes of each line
DECIMALS = 6  # of a probability
_MAX_BYTES = 4 << 30
_Number = Annotated[int, Field(ge=0)]


class Prediction(NamedTuple):
    """How one image was classified after the last task that was learned.

    ``task`` (from 0) is the task that tests the image. ``label`` and the classes of ``top`` are
    class numbers, in class order. ``top`` has the most probable classes, at most five, the
    predicted one first.
    """

    key: str
    shard: str
    task: _Number
    label: _Number
    top: tuple[tuple[_Number, float], ...]


_LINE = TypeAdapter(Prediction)


def format_predictions(predictions: Iterable[Prediction]) -> bytes:
    """The content of the file."""
    return "".join(f"{json.dumps(each._asdict())}\n" for each in predictions).encode()


def read_predictions(output: str) -> list[Prediction]:
    """The predictions in the folder or URL ``output``; empty if the run has written none.

    ``predictions_sha256`` in the results is the hash of the file.

    Raises:
        StorageError: the file cannot be read.
        DataError: a line is not a prediction.
    """
    url = storage.join(output, NAME)
    if not storage.exists(url):
        return []
    lines = storage.read_text(url, most=_MAX_BYTES).splitlines()
    return [_parse(line, f"{storage.redact(url)}: line {n}") for n, line in enumerate(lines, 1)]


def _parse(line: str, place: str) -> Prediction:
    try:
        return _LINE.validate_json(line, strict=True)
    except ValidationError as error:
        raise DataError(
            f"{place}: is not a prediction ({first_problem(error)}); restore the file from a "
            "copy, or remove it"
        ) from None
