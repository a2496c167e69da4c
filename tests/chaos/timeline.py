"""The way a run goes: how long each part of it is, and where a start of it stands."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline import storage
from pipeline.output.results import finished_results

_STEP = re.compile(r"task (\d+)/\d+ epoch \d+/\d+ step (\d+)/\d+ ")
_LEARNED = re.compile(r"task (\d+) learned: ")
_RESUMED = re.compile(r"going on at task (\d+), step (\d+)")


class Position(NamedTuple):
    """``step`` optimizer steps of ``task`` (from 0) are done; positions sort by time."""

    task: int
    step: int

    def __str__(self) -> str:
        return f"task {self.task + 1}, step {self.step}"


@dataclass(frozen=True)
class Timeline:
    """The parts of an undisturbed run, by task."""

    n_steps: tuple[int, ...]
    test_seconds: tuple[float, ...]
    seconds: float  # all of it
    startup_seconds: float  # before the first step

    def place(self, fraction: float) -> Position:
        """The position after ``fraction``, in [0, 1), of all steps: at least one step."""
        places = [Position(t, s + 1) for t, n in enumerate(self.n_steps) for s in range(n)]
        return places[int(fraction * len(places))] if places else Position(0, 0)

    def task(self, fraction: float) -> int:
        """The task at ``fraction``, in [0, 1), of all tasks."""
        return int(fraction * len(self.n_steps))

    def is_tested(self, position: Position) -> bool:
        """Whether a run at ``position`` tests what it has learned, and does nothing else."""
        steps = dict(enumerate(self.n_steps))
        return position.step == steps.get(position.task)


def read_timeline(output: str, seconds: float) -> Timeline:
    """The course of the finished run in ``output``, which took ``seconds``.

    Raises:
        DataError: it has not finished.
        StorageError: it cannot be read.
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


class LogFollower:
    """Where a start stands, by what it logs."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = 0
        self._is_moving = False
        self._position = Position(0, 0)
        self.n_steps = 0  # how many this start itself has told of, up to the last look

    @property
    def position(self) -> Position:
        """The present one."""
        with open(self._log, "rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            self._read(line)
        return self._position

    def _read(self, line: str) -> None:
        if found := _RESUMED.search(line):
            self._position = Position(int(found[1]) - 1, int(found[2]) - 1)
        elif found := _STEP.search(line):
            self._position = Position(int(found[1]) - 1, int(found[2]))
            self.n_steps += 1
        elif (found := _LEARNED.search(line)) and self._is_moving:
            self._position = Position(int(found[1]), 0)
        else:
            return
        # A start that goes on repeats first what was learned before it.
        self._is_moving = True
