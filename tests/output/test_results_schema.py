"""The published schema of results.json is that of the code."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.output.results import RunResults

FILE = Path(__file__).parents[2] / "docs" / "results.schema.json"


def current_schema() -> str:
    """The content that the published file must have."""
    return json.dumps(RunResults.model_json_schema(by_alias=True), indent=2) + "\n"


def test_published_schema_is_current():
    assert FILE.read_text() == current_schema(), (
        "docs/results.schema.json is out of date; write it anew with "
        "`python -m tests.output.test_results_schema`"
    )


if __name__ == "__main__":
    FILE.write_text(current_schema())
