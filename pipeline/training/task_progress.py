"""Where a run stands within a task, and what an interruption left of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor


class TaskProgress:
    """How far a task has come, and the time since its start, also before an interruption.

    The time counts everything: encoding frozen features and fitting too, not the steps alone.
    """

    def __init__(self, step: int = 0, seconds: float = 0.0) -> None:
        self.step = step
        self._started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds since the start of the task."""
        return time.perf_counter() - self._started


@dataclass(frozen=True)
class InterruptedTask:
    """The tensors of a task in whose training the run was interrupted."""

    learned: dict[str, Tensor] = field(default_factory=dict)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
