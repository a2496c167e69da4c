"""What may be done to a run, and the seeded choice of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Victim = Literal["rank", "ranks", "launcher", "inner launcher", "everything", "storage"]
Moment = Literal["start", "step", "snapshot", "evaluation", "boundary"]

STORAGE = "storage refuses"  # the kind that needs a storage that can be reached only through us

_HOW_MANY = (1, 1, 1, 1, 1, 2, 2, 3)  # harms of a round, each as likely
_SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR2")
_OUTAGE_S = (2.0, 12.0)


@dataclass(frozen=True)
class Kind:
    """One row of the report: what is drawn from for a harm of this kind."""

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
    # Only a process that is stopped within a write leaves half of it, hence no gentler signal.
    "during a snapshot": Kind(("rank", "ranks", "everything"), ("SIGKILL",), ("snapshot",)),
    "during evaluation": Kind(("rank", "ranks", "launcher"), _SIGNALS, ("evaluation",)),
    "at a task boundary": Kind(("rank", "ranks", "launcher"), _SIGNALS, ("boundary",)),
    "one rank frozen": Kind(("rank",), ("SIGSTOP",), ("step", "evaluation")),
    STORAGE: Kind(("storage",), (None,), ("start", "step", "evaluation", "boundary")),
}


@dataclass(frozen=True)
class Harm:
    """One harm to one start of the command; fractions are in [0, 1)."""

    kind: str
    victim: Victim
    signal: str | None  # None: it is not a process that is harmed
    moment: Moment
    place: float  # how far the run has come, as a fraction of its steps
    delay: float  # fraction of the time that the moment lasts
    rank: float  # which one, as a fraction of the number of ranks
    outage_s: float  # of the storage

    def describe(self) -> str:
        """The kind, and what it leaves open."""
        if self.victim == "storage":
            return f"{self.kind} for {self.outage_s:.0f} s ({self.moment})"
        if self.kind.startswith(str(self.signal)):
            return f"{self.kind} ({self.moment})"
        return f"{self.kind} ({self.signal} to {self.victim})"


def draw_harms(seed: int, number: int, kinds: Sequence[str]) -> tuple[Harm, ...]:
    """The harms of round ``number`` (from 1), in the order in which they happen.

    The same for the same arguments, whatever the other rounds were. The first kind is drawn without
    repetition, so that as many rounds as there are kinds see each of them at least once.
    """
    cycle, turn = divmod(number - 1, len(kinds))
    order = list(kinds)
    random.Random(f"order {seed} {cycle}").shuffle(order)
    draw = random.Random(f"round {seed} {number}")
    chosen = [order[turn], *(draw.choice(order) for _ in range(draw.choice(_HOW_MANY) - 1))]
    places = sorted(draw.random() for _ in chosen)
    draw.shuffle(chosen)
    return tuple(_draw_harm(draw, kind, place) for kind, place in zip(chosen, places, strict=True))


def _draw_harm(draw: random.Random, name: str, place: float) -> Harm:
    kind = KINDS[name]
    return Harm(
        kind=name,
        victim=draw.choice(kind.victims),
        signal=draw.choice(kind.signals),
        moment=draw.choice(kind.moments),
        place=place,
        delay=draw.random(),
        rank=draw.random(),
        outage_s=draw.uniform(*_OUTAGE_S),
    )
