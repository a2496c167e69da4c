"""``predictions.jsonl`` is read as it was written, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import DataError
from pipeline.output.predictions import NAME, Prediction, format_predictions, read_predictions

PREDICTIONS = [
    Prediction("cat/001", "test-000000", 0, 1, ((1, 0.75), (0, 0.25))),
    Prediction("dög \u2028 \n", "test-000001", 1, 2, ((0, 0.5), (2, 0.499999), (1, 1e-06))),
]


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_predictions_are_read_as_written(tmp_path: Path, kind):
    output = str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}"
    assert read_predictions(output) == []
    data = format_predictions(PREDICTIONS)
    storage.write_atomically(storage.join(output, NAME), data)
    assert read_predictions(output) == PREDICTIONS
    assert json.loads(data.splitlines()[0]) == {
        "key": "cat/001", "shard": "test-000000", "task": 0, "label": 1,
        "top": [[1, 0.75], [0, 0.25]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"key": 7}, "key: Input should be a valid string"),
        ({"label": -1}, "label: Input should be greater than or equal to 0"),
        ({"top": [[1, "0.5"]]}, "top.0.1: Input should be a valid number"),
        ({"top": [[1, 0.5, 2]]}, "top.0: Tuple should have at most 2 items"),
        (None, "Invalid JSON"),
    ],
)
def test_damaged_line_is_named(tmp_path: Path, change, found):
    good, bad = format_predictions(PREDICTIONS).decode().splitlines()
    bad = json.dumps(json.loads(bad) | change) if change else bad[:20]
    (tmp_path / NAME).write_text(f"{good}\n{bad}\n")
    with pytest.raises(DataError, match=f"{NAME}: line 2: is not a prediction .{found}"):
        read_predictions(str(tmp_path))
