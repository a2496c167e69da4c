"""The outcome of a round: the injected faults, the starts, and the differences that remain."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.chaos.faults import Fault
from tests.chaos.timeline import Position


@dataclass
class Injection:
    """One fault of a round, and its consequences."""

    fault: Fault
    start: int  # number of the start that received the fault, from 1
    position: Position | None = None  # of the run at the injection; None: the run had ended before
    n_steps: int = 0  # steps of that start before the injection
    on_time: bool = False  # whether the run was still in the intended moment
    status: int | None = None  # of the start; None: it was still running, or was killed as hung
    seconds: float = 0.0  # from the injection to the end of the start
    broke: bool = False  # whether the run had to be restarted
    hung: bool = False
    orphans: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """The outcome of one round."""

    number: int
    injections: list[Injection] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)  # of all starts; None: it hung
    failures: list[str] = field(default_factory=list)  # of starts without a fault
    differences: list[str] = field(default_factory=list)
    hangs: int = 0
    orphans: int = 0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether the result equals the undisturbed one, without a hang, failure or orphan."""
        return not (self.failures or self.differences or self.hangs or self.orphans)
