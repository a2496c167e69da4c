"""What a logger is: it starts or continues a run in its service, logs points, and ends.

Every method is called in the logger's own thread and may raise anything: the logger is then off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipeline.config import LoggerConfig
from pipeline.loggers.points import Point

End = Literal["finished", "stopped", "failed"]  # stopped: by a signal; the run can continue


@dataclass(frozen=True)
class LoggedRun:
    """A run as a logger sees it."""

    name: str
    output: str  # folder or URL
    config: dict[str, Any]  # the resolved settings, in plain JSON types


class Logger(Protocol):
    """One logger of one start of a run."""

    last_line: int  # of the points that the service has when ``start`` returns; 0: none

    def __init__(self, settings: LoggerConfig, run: LoggedRun) -> None: ...

    def start(self, run_id: str | None) -> str:
        """Start a run, or continue the one that an earlier start was given; returns its id."""

    def log(self, point: Point) -> None:
        """Add a point; lines ascend."""

    def end(self, end: End) -> None:
        """Write what is left, and record how the run ended."""
