"""Who follows a run beside its results: its loggers. They neither stop nor slow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import Preempted
from pipeline.loggers.background import RunLoggers


class Followers:
    """The followers of one start of a run, on rank 0; they end with the block."""

    def __init__(self, config: Config, world: World) -> None:
        self._is_main = world.is_main
        self._loggers = RunLoggers(config)

    def start(self, lines: Sequence[str], task_steps: Sequence[int]) -> None:
        """Start them; ``lines`` are those of ``metrics.jsonl`` from an earlier start.

        ``task_steps`` are the optimizer steps of each task.
        """
        if self._is_main:
            self._loggers.start(lines, task_steps)

    def add(self, line: int, content: Mapping[str, Any]) -> None:
        """Show them a new line, counted from 1."""
        if self._is_main:
            self._loggers.add(line, content)

    def __enter__(self) -> Followers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_main:
            is_stopped = kind is not None and issubclass(kind, Preempted)
            self._loggers.end("stopped" if is_stopped else "failed" if kind else "finished")
