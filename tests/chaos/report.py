"""What all rounds have come to: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from tests.chaos.rounds import Blow, Outcome

SCHEMA = 1


@dataclass
class Tally:
    """Counts of one kind of harm, or of all rounds together."""

    rounds: int = 0  # in which it was done
    harms: int = 0  # how often it was done
    on_time: int = 0  # of these, how many fell into the moment that was meant
    restarts: int = 0  # how often the run had to be started again
    differences: int = 0  # rounds that ended otherwise than the undisturbed run
    failures: int = 0  # starts that failed although nothing was done to them
    hangs: int = 0
    orphans: int = 0


def describe_outcome(outcome: Outcome, n_rounds: int) -> str:
    """One line on a round."""
    harms = ", ".join(_describe_blow(blow) for blow in outcome.blows)
    verdict = "equal" if outcome.is_good else "; ".join(_complaints(outcome))
    starts = len(outcome.statuses)
    return (
        f"round {outcome.number}/{n_rounds}: {harms}: {starts} starts, {verdict} "
        f"({outcome.seconds:.0f} s)"
    )


def tally(outcomes: Sequence[Outcome]) -> dict[str, Tally]:
    """By kind of harm; a round counts for each kind that was done in it."""
    tallies: dict[str, Tally] = {}
    for outcome in outcomes:
        done = [blow for blow in outcome.blows if blow.position is not None]
        for kind in dict.fromkeys(blow.harm.kind for blow in done):
            counts = tallies.setdefault(kind, Tally())
            counts.rounds += 1
            counts.differences += bool(outcome.differences)
            counts.failures += len(outcome.failures)
        for blow in done:
            counts = tallies[blow.harm.kind]
            counts.harms += 1
            counts.on_time += blow.on_time
            counts.restarts += blow.broke
            counts.hangs += blow.hung
            counts.orphans += len(blow.orphans)
    return dict(sorted(tallies.items()))


def total(outcomes: Sequence[Outcome]) -> Tally:
    """Of all rounds, each counted once."""
    kinds = tally(outcomes).values()
    return Tally(
        rounds=len(outcomes),
        harms=sum(counts.harms for counts in kinds),
        on_time=sum(counts.on_time for counts in kinds),
        restarts=sum(len(outcome.statuses) - 1 for outcome in outcomes),
        differences=sum(bool(outcome.differences) for outcome in outcomes),
        failures=sum(len(outcome.failures) for outcome in outcomes),
        hangs=sum(outcome.hangs for outcome in outcomes),
        orphans=sum(outcome.orphans for outcome in outcomes),
    )


def as_table(outcomes: Sequence[Outcome]) -> Table:
    """A row per kind of harm, and their sum."""
    table = Table(title="harms and what came of them", title_justify="left")
    table.add_column("harm", no_wrap=True)
    for name in Tally.__dataclass_fields__:
        table.add_column(name.replace("_", " "), justify="right")
    for kind, counts in tally(outcomes).items():
        table.add_row(kind, *map(str, vars(counts).values()))
    table.add_section()
    table.add_row("all", *map(str, vars(total(outcomes)).values()))
    return table


def as_dict(outcomes: Sequence[Outcome], about: dict[str, Any]) -> dict[str, Any]:
    """The content of ``chaos.json``; ``about`` says what was run."""
    return {
        "schema": SCHEMA,
        **about,
        "total": asdict(total(outcomes)),
        "kinds": {kind: asdict(counts) for kind, counts in tally(outcomes).items()},
        "rounds": [asdict(outcome) | {"good": outcome.is_good} for outcome in outcomes],
    }


def _describe_blow(blow: Blow) -> str:
    if blow.position is None:
        return f"{blow.harm.describe()}: not done, the run had ended"
    late = "" if blow.on_time else ", too late"
    return f"{blow.harm.describe()} at {blow.position}{late}"


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
