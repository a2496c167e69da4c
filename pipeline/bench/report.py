"""The results of benchmarks as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.bench.timing import Figure
from pipeline.settings_file import Section

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """What one benchmark has measured, or the reason why it has not."""

    config: Section
    name: str
    figures: Sequence[Figure] = ()
    not_measured: str | None = None


def to_json(results: Sequence[Result], machine: dict[str, Any]) -> str:
    """All results in one object: ``schema``, ``machine``, and ``benchmarks`` by name."""
    benchmarks = {
        result.name: {
            "settings": result.config.model_dump(mode="json"),
            "not_measured": result.not_measured,
            "figures": [asdict(figure) for figure in result.figures],
        }
        for result in results
    }
    content = {"schema": SCHEMA, "machine": machine, "benchmarks": benchmarks}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def to_table(result: Result) -> Table | Text:
    """One row per figure: median, lowest and highest value, target."""
    if result.not_measured:
        return Text(f"{result.name}: not measured: {result.not_measured}")
    table = Table(title=result.name, title_justify="left")
    table.add_column("figure")
    for title in ("median", "lowest", "highest", "unit", "target"):
        table.add_column(title, justify="right" if title != "unit" else "left")
    for figure in result.figures:
        spread = [""] * 2 if figure.repeats == 1 else [_short(figure.low), _short(figure.high)]
        table.add_row(figure.name, _short(figure.value), *spread, figure.unit, figure.target)
    return table


def _short(value: float) -> str:
    """Three digits or all before the point, with thousands separated."""
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.2e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"
