"""Compared runs as CSV, JSON and LaTeX. Figures are fractions, except in LaTeX: per cent."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pipeline import storage
from pipeline.reporting.published import PublishedRows
from pipeline.reporting.published_tables import (
    published_content,
    published_lines,
    run_columns,
)
from pipeline.reporting.run_groups import RunTable
from pipeline.reporting.run_rows import (
    Row,
    Spread,
    figure_of,
    figure_titles,
)
from pipeline.text import NOT_KNOWN

Tables = Sequence[tuple[RunTable, Sequence[Row]]]
_ESCAPED = str.maketrans({c: f"\\{c}" for c in "#$%&_{}"} | {"\\": r"\textbackslash{}"})


def to_csv(tables: Tables, published: Sequence[PublishedRows] = ()) -> str:
    """A line per row of every table; an unknown figure is empty.

    ``published``, one of each table, adds the lines of its results of the same protocol.
    """
    file = io.StringIO()
    pairs = list(zip_longest(tables, published))
    lines = [
        _flat_row(table, row) | (run_columns(found, row.group.method) if found else {})
        for (table, rows), found in pairs
        for row in rows
    ]
    for (table, _), found in pairs:
        protocol = {"protocol_sha256": " ".join(_hashes(table))}
        lines += [line | protocol for line in (published_lines(found) if found else ())]
    columns = dict.fromkeys(column for line in lines for column in line)
    writer = csv.DictWriter(file, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def to_json(tables: Tables, published: Sequence[PublishedRows] = ()) -> str:
    """All tables with the settings of their protocol, and the outputs of each row.

    ``published``, one of each table, adds its results.
    """
    content: list[dict[str, Any]] = [
        {
            "protocol_sha256": _hashes(table),
            "protocol": table.results[0].protocol.settings,
            "rows": [_nested_row(row) for row in rows],
        }
        for table, rows in tables
    ]
    for entry, found in zip(content, published, strict=False):
        entry["published"] = published_content(found)
    return json.dumps({"tables": content}, indent=2, ensure_ascii=False) + "\n"


def to_latex(tables: Tables) -> str:
    """A ``tabular`` per table, for the package booktabs; figures in per cent."""
    return "\n".join(_tabular(table, rows) for table, rows in tables)


def _tabular(table: RunTable, rows: Sequence[Row]) -> str:
    has_baseline = any(row.differences for row in rows)
    figures = {key: name.translate(_ESCAPED) for key, name in figure_titles(table.results).items()}
    titles = list(figures.values())
    titles += [rf"$\Delta$ {title}" for title in figures.values()] if has_baseline else []
    titles += ["seeds", "parameters", "seconds"]
    lines = [
        f"% protocol {' '.join(_hashes(table))}",
        rf"\begin{{tabular}}{{l{'r' * len(titles)}}}",
        r"\toprule",
        " & ".join(["run", *titles]) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [_latex_figure(spread) for spread in row.figures.values()]
        if has_baseline:
            differences = row.differences or {}
            cells += [_latex_figure(differences.get(key), signed=True) for key in figures]
        cells += [str(len(row.seeds)), f"{row.parameters:,}", f"{row.seconds:.1f}"]
        lines.append(" & ".join([row.group.label.translate(_ESCAPED), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_figure(spread: Spread | None, *, signed: bool = False) -> str:
    text = (spread or Spread(None, None)).text(signed=signed)
    return "--" if text == NOT_KNOWN else f"${text.replace('±', chr(92) + 'pm')}$"


def _flat_row(table: RunTable, row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "run": row.group.label,
        "method": row.group.method,
        "seeds": " ".join(map(str, row.seeds)),
        "runs": len(row.group.runs),
        "class_orders": row.n_orders,
    }
    for suffix, spreads in (("", row.figures), ("_difference", row.differences or {})):
        for key in row.figures:
            spread = spreads.get(key, Spread(None, None))
            flat |= {f"{key}{suffix}_mean": spread.mean, f"{key}{suffix}_sd": spread.deviation}
    return {
        **flat,
        "difference_pairs": row.n_pairs if row.differences else None,
        "trained_parameters": row.parameters,
        "seconds": round(row.seconds, 3),
        "outputs": " ".join(storage.redact(run.output) for run in row.group.runs),
        "protocol_sha256": " ".join(_hashes(table)),
    }


def _nested_row(row: Row) -> dict[str, Any]:
    return {
        "run": row.group.label,
        "method": row.group.method,
        "figures": _nested(row.figures),
        "differences": row.differences and _nested(row.differences),
        "difference_pairs": row.n_pairs if row.differences else None,  # 0: of the means
        "trained_parameters": row.parameters,
        "seconds": round(row.seconds, 3),
        "runs": [
            {
                "output": storage.redact(run.output),
                "seed": run.repetition[0],
                "class_order": list(run.repetition[1]),
                **{key: figure_of(run.results, key) for key in row.figures},
                "accuracy_after_each_task": run.results.stage_accuracy.micro,
                "trained_parameters": run.results.n_trained_parameters,
                "seconds": round(run.results.seconds, 3),
            }
            for run in row.group.runs
        ],
    }


def _nested(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float | None]]:
    return {key: {"mean": each.mean, "sd": each.deviation} for key, each in spreads.items()}


def _hashes(table: RunTable) -> list[str]:
    """The hash of the protocol; several if the table averages class orders."""
    return sorted({run.protocol.sha256 for run in table.results})
