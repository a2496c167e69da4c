"""Findings on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.inspection.findings import Findings, Part
from pipeline.text import NOT_KNOWN, first_few, format_bytes, format_percent, printable

_MOST_FILES = 30
_DIGEST = 16  # hexadecimal digits of a hash that are shown
_FRACTIONS = (
    "average_incremental_accuracy",
    "last_accuracy",
    "forgetting",
    "backward_transfer",
    "accuracy_after_each_task",
    "best_value",
)


def findings_table(findings: Findings) -> Group:
    """A headline, the facts, and the files with what is wrong with them."""
    headline = f"{findings.kind} {findings.place}: {findings.state}, {findings.stage}"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for key, value in findings.facts.items():
        facts.add_row(Text(key.replace("_", " ")), Text(printable(_show(key, value))))
    shown = sorted(findings.parts, key=lambda part: part.fault is None)[:_MOST_FILES]
    parts = [part for part in findings.parts if part in shown]
    rest = len(findings.parts) - len(parts)
    more = [Text(f"… and {rest:,} more files without a fault; --json lists all")] if rest else []
    middle = [Text(), facts, Text()] if findings.facts else [Text()]
    return Group(Text(printable(headline)), *middle, _files(parts), *more)


def _files(parts: Sequence[Part]) -> Table:
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("sha256")
    table.add_column("state", overflow="fold")
    for part in parts:
        size = NOT_KNOWN if part.bytes is None else format_bytes(part.bytes)
        sha256 = f"{part.sha256[:_DIGEST]}…" if part.sha256 else NOT_KNOWN
        state = part.fault or part.note or "ok"
        table.add_row(Text(printable(part.name)), size, sha256, Text(printable(state)))
    return table


def _show(key: str, value: Any) -> str:
    if value is None or value == [] or value == {}:
        return NOT_KNOWN
    if key in _FRACTIONS:
        values = value if isinstance(value, list) else [value]
        return " ".join(format_percent([each]) for each in values) + " %"
    if key == "bytes":
        return format_bytes(value)
    if key.endswith("_of_a_class"):
        low, high = value
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list):
        return first_few(value)
    return f"{value:,}" if isinstance(value, int) and key != "last_start_process" else str(value)
