"""The timeline of an undisturbed run, and the position of a run on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.events import read_events
from pipeline.output.results import finished_results


class Position(NamedTuple):
    """``step`` optimizer steps of ``task`` (from 0) are done; positions sort by time."""

    task: int
    step: int

    def __str__(self) -> str:
        return f"task {self.task + 1}, step {self.step}"


@dataclass(frozen=True)
class Timeline:
    """Steps and seconds of an undisturbed run."""

    n_steps: tuple[int, ...]  # by task
    test_seconds: tuple[float, ...]  # by task
    seconds: float  # of the complete run
    startup_seconds: float  # before the first step

    def position_at(self, fraction: float) -> Position:
        """The position after ``fraction``, in [0, 1), of all steps; at least one step is done."""
        positions = [Position(t, s + 1) for t, n in enumerate(self.n_steps) for s in range(n)]
        return positions[int(fraction * len(positions))] if positions else Position(0, 0)

    def task_at(self, fraction: float) -> int:
        """The task at ``fraction``, in [0, 1), of all tasks."""
        return int(fraction * len(self.n_steps))

    def is_evaluation(self, position: Position) -> bool:
        """Whether all steps of the task are done, so that a run at ``position`` evaluates."""
        return dict(enumerate(self.n_steps)).get(position.task) == position.step


def read_timeline(output: str, seconds: float) -> Timeline:
    """The timeline of the finished run in ``output``, which took ``seconds``.

    Raises:
        DataError: the run has not finished.
        StorageError: a file cannot be read.
    """
    results = finished_results(output)
    n_steps = [0] * len(results.tasks)
    for line in storage.read_text(storage.join(output, "metrics.jsonl")).splitlines():
        entry = json.loads(line)
        if entry["kind"] == "step":
            n_steps[entry["task"]] = entry["step"] + 1
    test = tuple(stage.test_seconds for stage in results.diagnostics)
    startup = seconds - sum(test) - sum(stage.train_seconds for stage in results.diagnostics)
    return Timeline(tuple(n_steps), test, seconds, max(startup, 0.0))


class EventFollower:
    """The position of a start, from the events that its rank 0 writes to ``file``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0
        self._position = Position(0, 0)
        self.n_steps = 0  # steps of this start, up to the last read of ``position``

    @property
    def position(self) -> Position:
        """The present position; reads the events written since the last call."""
        events, self._offset = read_events(self._file, offset=self._offset)
        for event in events:
            if event["rank"] == 0:
                self._apply(event)
        return self._position

    def _apply(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "resumed":
                self._position = Position(event["task"], event["step"])
            case "step":
                self._position = Position(event["task"], event["step"] + 1)
                self.n_steps += 1
            case "learned":
                self._position = Position(event["task"] + 1, 0)
