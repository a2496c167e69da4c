"""Injection of a fault into a start: wait for the right moment, then signal or refuse."""

from __future__ import annotations

import signal
import time

from pipeline import storage
from tests.chaos.faults import Fault
from tests.chaos.outcome import Injection
from tests.chaos.processes import Process, Start, freeze, send_signal
from tests.chaos.setup import Setup
from tests.chaos.timeline import EventFollower, Position, Timeline

_POLL_S = 0.02
_SNAPSHOT_POLL_S = 0.002  # half-written files exist for milliseconds
_BOUNDARY_S = 0.5  # how long the start of a task counts as a boundary


class Injector:
    """Injects faults into the starts of the run ``name``; waits at most ``limit_s`` for each."""

    def __init__(self, setup: Setup, name: str, timeline: Timeline, limit_s: float) -> None:
        self._setup = setup
        self._name = name
        self._timeline = timeline
        self._limit_s = limit_s

    def inject(self, start: Start, injection: Injection) -> bool:
        """Inject the fault at its moment; False if the start has ended before."""
        fault, follower = injection.fault, EventFollower(start.events)
        if not self._wait_for_moment(start, follower, fault):
            return False
        victims = self._victims(start, fault)
        injection.position, injection.n_steps = follower.position, follower.n_steps
        injection.on_time = self._is_on_time(fault, injection.position)
        if fault.victim == "storage":
            self._setup.proxy.refuse(fault.outage_s)
            return True
        send_signal(victims, signal.Signals[fault.signal])
        return bool(victims)

    def _victims(self, start: Start, fault: Fault) -> list[Process]:
        match fault.victim:
            case "rank":
                # Only rank 0 writes a snapshot.
                chosen = 0 if fault.moment == "snapshot" else int(fault.rank * self._setup.ranks)
                return start.ranks()[chosen : chosen + 1]
            case "ranks":
                return start.ranks()
            case "launcher":
                return start.launcher()
            case "inner launcher":
                return start.inner_launcher()
            case _:
                return start.remaining()

    def _wait_for_moment(self, start: Start, follower: EventFollower, fault: Fault) -> bool:
        """Return True at the moment of the fault, False if the start ends or hangs before it."""
        until = time.monotonic() + self._limit_s
        delay, is_over = fault.delay, True
        while is_over:
            while not self._has_come(start, follower, fault):
                if start.status is not None or time.monotonic() > until:
                    return False
                time.sleep(_POLL_S)
            if fault.moment == "snapshot":
                return self._catch_snapshot(start, until)
            time.sleep(delay * self._duration_s(fault, follower.position))
            # An evaluation or boundary may be over by now; the next task has another one.
            delay, is_over = delay / 2, not self._is_on_time(fault, follower.position)
        return start.status is None

    def _has_come(self, start: Start, follower: EventFollower, fault: Fault) -> bool:
        timeline, position = self._timeline, follower.position
        match fault.moment:
            case "start" if fault.victim in ("launcher", "inner launcher"):
                return bool(start.inner_launcher())
            case "start":
                return len(start.ranks()) == self._setup.ranks
            case "evaluation":
                is_late_enough = position.task >= timeline.task_at(fault.place)
                return is_late_enough and timeline.is_evaluation(position)
            case "boundary":
                return position.task > timeline.task_at(fault.place) and position.step == 0
            case _:
                return position >= timeline.position_at(fault.place)

    def _duration_s(self, fault: Fault, position: Position) -> float:
        """How long the present moment lasts."""
        timeline = self._timeline
        match fault.moment:
            case "start":
                return timeline.startup_seconds
            case "evaluation":
                return timeline.test_seconds[position.task]
            case "boundary":
                return _BOUNDARY_S
            case _:
                return timeline.seconds / max(1, sum(timeline.n_steps))

    def _is_on_time(self, fault: Fault, position: Position) -> bool:
        match fault.moment:
            case "evaluation":
                return self._timeline.is_evaluation(position)
            case "boundary":
                return position.step == 0
            case _:
                return True

    def _catch_snapshot(self, start: Start, until: float) -> bool:
        """Freeze rank 0 while it writes a snapshot; it continues only if the write was missed."""
        folder = self._setup.snapshots(self._name)
        before = unfinished_files(folder)
        writer = start.ranks()[:1]
        while writer and start.status is None and time.monotonic() < until:
            if unfinished_files(folder) - before and freeze(writer[0]):
                if unfinished_files(folder) - before:
                    return True
                send_signal(writer, signal.SIGCONT)
            time.sleep(_SNAPSHOT_POLL_S)
        return False


def unfinished_files(folder: str) -> set[str]:
    """The files of incomplete snapshots in a folder of snapshots."""
    files = storage.list_files(folder)
    complete = {file.rpartition("/")[0] for file in files if file.endswith("/state.json")}
    return {f for f in files if f.endswith(".part") or f.rpartition("/")[0] not in complete}
