"""Published results beside runs: as tables on a terminal, and as rows of CSV and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.catalogue.published import PublishedResult
from pipeline.reporting.protocols import Difference
from pipeline.reporting.published import NOT_STATED, PublishedRows
from pipeline.reporting.run_rows import Row, Spread
from pipeline.text import NOT_KNOWN

MOST_OTHERS = 10  # results of other protocols in a table
_FIGURES = ("transfer", "average", "last", "forgetting")  # of a published result
_TITLES = {  # of each figure, by its key in results.json
    "transfer": "transfer",
    "average_over_matrix": "average",
    "last_over_tasks": "last",
    "average_incremental_accuracy": "average",
    "last_accuracy": "last",
    "forgetting": "forgetting",
}


def published_tables(found: PublishedRows, rows: Sequence[Row]) -> Group:
    """The runs with the results of their protocol, then the nearest of other protocols."""
    if found.unnamed is not None:
        return Group(Text(_unnamed(found.unnamed)))
    parts: list[Table | Text] = []
    if found.same:
        parts += [Text(f"published for {found.protocol} (%)"), _same(found, rows)]
        parts += map(Text, [*_split_notes(found), *_forgetting_notes(found.same)])
    else:
        parts.append(Text(f"no published result has the protocol {found.protocol}"))
    if found.others:
        parts += _others(found.others)
    return Group(*parts)


def published_notes(found: PublishedRows) -> list[str]:
    """What a reader of the rows alone must know."""
    if found.unnamed is not None:
        return [_unnamed(found.unnamed)]
    others = f"{len(found.others)} other published results have another protocol"
    same = f"{len(found.same)} published results have the protocol {found.protocol}"
    return [f"{same}; {others}", *(_split_notes(found) if found.same else ())]


def published_lines(found: PublishedRows) -> list[dict[str, Any]]:
    """A line of CSV for each result of the same protocol; figures are fractions."""
    return [
        {
            "run": result.method,
            "method": result.method,
            **{f"{key}_mean": _fraction(percent) for key, percent in result.figures.items()},
            "published_source": result.source,
            "exemplars": result.exemplars,
            "metric": result.metric,
        }
        for result in found.same
    ]


def run_columns(found: PublishedRows, method: str) -> dict[str, Any]:
    """The columns of a row of runs of ``method`` that published results have too."""
    return {"published_source": None, "exemplars": _kept(method), "metric": found.metric}


def published_content(found: PublishedRows) -> dict[str, Any]:
    """The results as plain JSON types; figures are fractions, unknown facts null."""
    return {
        "same_protocol": [_record(result) for result in found.same],
        "other_protocols": [
            {**_record(result), "differences": [each._asdict() for each in differences]}
            for result, differences in found.others
        ],
        "run_without_benchmark": found.unnamed,
    }


def _same(found: PublishedRows, rows: Sequence[Row]) -> Table:
    keys = found.same[0].figures.keys()
    shown = _table(*(_TITLES[key] for key in keys), "exemplars", "metric", "source")
    for row in rows:
        times = f" ×{len(row.group.runs)}" if len(row.group.runs) > 1 else ""
        figures = [row.figures.get(key, Spread(None, None)).text() for key in keys]
        kept = _shown(_kept(row.group.method))
        shown.add_row(f"{row.group.label}{times}", *figures, kept, found.metric, "here")
    shown.add_section()
    for result in found.same:
        figures = [_percent(percent) for percent in result.figures.values()]
        exemplars, metric = _shown(result.exemplars), _shown(result.metric)
        shown.add_row(result.method, *figures, exemplars, metric, _source(result))
    return shown


def _others(others: Sequence[tuple[PublishedResult, list[Difference]]]) -> Iterator[Table | Text]:
    """The nearest results; each letter is a difference, which the lines below explain."""
    titles = [_TITLES[key] for key in others[0][0].figures if key != "forgetting"]
    shown = _table(*titles, "exemplars", "differs", "source")
    letters: dict[str, str] = {}
    for result, differences in others[:MOST_OTHERS]:
        clauses = "; ".join(
            f"{fact}: {one} here, {other} published" for fact, one, other in differences
        )
        letter = letters.setdefault(clauses, ascii_lowercase[len(letters)])
        figures = [_percent(getattr(result, title)) for title in titles]
        cells = (_shown(result.exemplars), letter, _source(result))
        shown.add_row(result.method, *figures, *cells)
    yield Text("nearest published results of other protocols, not to be compared (%)")
    yield shown
    yield from (Text(f"{letter}: {clauses}") for clauses, letter in letters.items())
    if len(others) > MOST_OTHERS:
        yield Text(f"{len(others) - MOST_OTHERS} more differ in as many facts or more; see --json")


def _table(*titles: str) -> Table:
    shown = Table()
    shown.add_column("method", overflow="fold")
    for title in titles:
        is_text = title in ("source", "differs", "metric")
        shown.add_column(title, justify="left" if is_text else "right", overflow="fold")
    return shown


def _split_notes(found: PublishedRows) -> Iterator[str]:
    if found.split_by_name is not None:
        yield (
            f"split {found.split_by_name}: its name and its numbers of images agree; the "
            "catalogue has no hash of its images"
        )


def _forgetting_notes(results: Sequence[PublishedResult]) -> Iterator[str]:
    formulas = {
        result.forgetting_formula or f"{NOT_STATED} by {result.source}": None
        for result in results
        if result.forgetting is not None
    }
    if formulas:
        yield f"forgetting of runs: arXiv 1801.10112; published formula: {'; '.join(formulas)}"


def _unnamed(output: str) -> str:
    return (
        f"no published result can be compared: the data of {output} names no benchmark; prepare "
        "it with `python -m pipeline.prepare shard --benchmark NAME`, and run again"
    )


def _record(result: PublishedResult) -> dict[str, Any]:
    fractions = {name: _fraction(getattr(result, name)) for name in _FIGURES}
    return result.model_dump(mode="json") | fractions


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 6)


def _kept(method: str) -> int | None:
    """The exemplars of a run: methods of this package keep none; others are not known."""
    return None if ":" in method else 0


def _percent(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.2f}"


def _shown(fact: str | int | None) -> str:
    return NOT_STATED if fact is None else str(fact)


def _source(result: PublishedResult) -> str:
    return f"{result.source} ({result.note})" if result.note else result.source
