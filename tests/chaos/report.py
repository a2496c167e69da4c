"""The report on all rounds: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from tests.chaos.outcome import Injection, Outcome

SCHEMA = 2


@dataclass
class Tally:
    """Counts for one kind of fault, or for all rounds together."""

    rounds: int = 0  # with at least one such fault
    faults: int = 0  # injected
    on_time: int = 0  # faults injected in the intended moment
    restarts: int = 0  # how often the run had to be restarted
    differences: int = 0  # rounds with another result than the undisturbed run
    failures: int = 0  # starts that failed without a fault
    hangs: int = 0
    orphans: int = 0


def format_outcome(outcome: Outcome, n_rounds: int) -> str:
    """One line about a round."""
    faults = ", ".join(_format_injection(injection) for injection in outcome.injections)
    verdict = "equal" if outcome.is_good else "; ".join(_complaints(outcome))
    starts = len(outcome.statuses)
    return (
        f"round {outcome.number}/{n_rounds}: {faults}: {starts} starts, {verdict} "
        f"({outcome.seconds:.0f} s)"
    )


def tally_by_kind(outcomes: Sequence[Outcome]) -> dict[str, Tally]:
    """Counts by kind of fault; a round counts for each kind that was injected."""
    tallies: dict[str, Tally] = {}
    for outcome in outcomes:
        done = [each for each in outcome.injections if each.position is not None]
        for kind in dict.fromkeys(injection.fault.kind for injection in done):
            counts = tallies.setdefault(kind, Tally())
            counts.rounds += 1
            counts.differences += bool(outcome.differences)
            counts.failures += len(outcome.failures)
        for injection in done:
            counts = tallies[injection.fault.kind]
            counts.faults += 1
            counts.on_time += injection.on_time
            counts.restarts += injection.broke
            counts.hangs += injection.hung
            counts.orphans += len(injection.orphans)
    return dict(sorted(tallies.items()))


def tally_all(outcomes: Sequence[Outcome]) -> Tally:
    """Counts for all rounds, each counted once."""
    kinds = tally_by_kind(outcomes).values()
    return Tally(
        rounds=len(outcomes),
        faults=sum(counts.faults for counts in kinds),
        on_time=sum(counts.on_time for counts in kinds),
        restarts=sum(len(outcome.statuses) - 1 for outcome in outcomes),
        differences=sum(bool(outcome.differences) for outcome in outcomes),
        failures=sum(len(outcome.failures) for outcome in outcomes),
        hangs=sum(outcome.hangs for outcome in outcomes),
        orphans=sum(outcome.orphans for outcome in outcomes),
    )


def build_table(outcomes: Sequence[Outcome]) -> Table:
    """A row for each kind of fault, and one for all of them."""
    table = Table(title="faults and their consequences", title_justify="left")
    table.add_column("fault", no_wrap=True)
    for name in Tally.__dataclass_fields__:
        table.add_column(name.replace("_", " "), justify="right")
    for kind, counts in tally_by_kind(outcomes).items():
        table.add_row(kind, *map(str, vars(counts).values()))
    table.add_section()
    table.add_row("all", *map(str, vars(tally_all(outcomes)).values()))
    return table


def build_content(outcomes: Sequence[Outcome], about: dict[str, Any]) -> dict[str, Any]:
    """The content of ``chaos.json``; ``about`` describes the command."""
    return {
        "schema": SCHEMA,
        **about,
        "total": asdict(tally_all(outcomes)),
        "kinds": {kind: asdict(counts) for kind, counts in tally_by_kind(outcomes).items()},
        "rounds": [asdict(outcome) | {"good": outcome.is_good} for outcome in outcomes],
    }


def _format_injection(injection: Injection) -> str:
    if injection.position is None:
        return f"{injection.fault}: not injected, the run had ended"
    late = "" if injection.on_time else ", too late"
    return f"{injection.fault} at {injection.position}{late}"


def _complaints(outcome: Outcome) -> list[str]:
    lines = []
    if outcome.differences:
        lines.append(f"DIFFERENT: {outcome.differences[0]}")
    if outcome.failures:
        lines.append(f"FAILED: {outcome.failures[0]}")
    if outcome.hangs:
        lines.append(f"HUNG {outcome.hangs}×")
    if outcome.orphans:
        lines.append(f"{outcome.orphans} ORPHANS")
    return lines
