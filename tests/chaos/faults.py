"""The faults that can be injected into a run, and their seeded choice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Victim = Literal["rank", "ranks", "launcher", "inner launcher", "everything", "storage"]
Moment = Literal["start", "step", "snapshot", "evaluation", "boundary"]

STORAGE = "storage refuses"  # this kind needs an object store behind our proxy

_FAULTS_PER_ROUND = (1, 1, 1, 1, 1, 2, 2, 3)  # each entry is equally likely
_SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR2")
_OUTAGE_S = (2.0, 12.0)


@dataclass(frozen=True)
class Kind:
    """One row of the report: the victims, signals and moments from which a fault is drawn."""

    victims: tuple[Victim, ...]
    signals: tuple[str | None, ...]
    moments: tuple[Moment, ...] = ("step", "step", "step", "start")


def _signals_to(victim: Victim, name: str) -> dict[str, Kind]:
    return {f"{signal} {name}": Kind((victim,), (signal,)) for signal in _SIGNALS}


KINDS: dict[str, Kind] = {
    **_signals_to("rank", "one rank"),
    **_signals_to("ranks", "all ranks"),
    **_signals_to("launcher", "launcher"),
    **_signals_to("inner launcher", "inner launcher"),
    "SIGKILL everything": Kind(("everything",), ("SIGKILL",)),
    # Only SIGKILL stops a process within a write, so that half of the file remains.
    "during a snapshot": Kind(("rank", "ranks", "everything"), ("SIGKILL",), ("snapshot",)),
    "during evaluation": Kind(("rank", "ranks", "launcher"), _SIGNALS, ("evaluation",)),
    "at a task boundary": Kind(("rank", "ranks", "launcher"), _SIGNALS, ("boundary",)),
    "one rank frozen": Kind(("rank",), ("SIGSTOP",), ("step", "evaluation")),
    STORAGE: Kind(("storage",), (None,), ("start", "step", "evaluation", "boundary")),
}


@dataclass(frozen=True)
class Fault:
    """One fault for one start of the command; fractions are in [0, 1)."""

    kind: str
    victim: Victim
    signal: str | None  # None: the victim is not a process
    moment: Moment
    place: float  # progress of the run, as a fraction of its steps
    delay: float  # fraction of the time that the moment lasts
    rank: float  # the chosen rank, as a fraction of the number of ranks
    outage_s: float  # of the storage

    def __str__(self) -> str:
        """The kind, and the choices that the kind leaves open."""
        if self.victim == "storage":
            return f"{self.kind} for {self.outage_s:.0f} s ({self.moment})"
        if self.kind.startswith(str(self.signal)):
            return f"{self.kind} ({self.moment})"
        return f"{self.kind} ({self.signal} to {self.victim})"


def draw_faults(seed: int, number: int, kinds: Sequence[str]) -> tuple[Fault, ...]:
    """The faults of round ``number`` (from 1), in the order of their injection.

    They depend on the arguments only, not on other rounds. The first kind is drawn without
    replacement, so that as many rounds as there are kinds contain each kind at least once.
    """
    cycle, turn = divmod(number - 1, len(kinds))
    order = list(kinds)
    random.Random(f"order {seed} {cycle}").shuffle(order)
    draw = random.Random(f"round {seed} {number}")
    n_faults = draw.choice(_FAULTS_PER_ROUND)
    chosen = [order[turn], *(draw.choice(order) for _ in range(n_faults - 1))]
    places = sorted(draw.random() for _ in chosen)
    draw.shuffle(chosen)
    return tuple(_draw_fault(draw, kind, place) for kind, place in zip(chosen, places, strict=True))


def _draw_fault(draw: random.Random, name: str, place: float) -> Fault:
    kind = KINDS[name]
    return Fault(
        kind=name,
        victim=draw.choice(kind.victims),
        signal=draw.choice(kind.signals),
        moment=draw.choice(kind.moments),
        place=place,
        delay=draw.random(),
        rank=draw.random(),
        outage_s=draw.uniform(*_OUTAGE_S),
    )
