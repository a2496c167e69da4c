"""The position of a run follows from its events."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import events
from pipeline.events import EventLog
from tests.chaos.timeline import EventFollower, Position, Timeline


@pytest.fixture
def event_file(tmp_path: Path) -> Path:
    """A file to which a test adds events as the ranks do."""
    return tmp_path / "start.events"


def event_log(file: Path, rank: int = 0) -> EventLog:
    return EventLog({events.VARIABLE: str(file), "RANK": str(rank)})


def test_position_follows_the_events_of_rank_0(event_file):
    follower, log, other = (
        EventFollower(event_file),
        event_log(event_file),
        event_log(event_file, 1),
    )
    assert follower.position == Position(0, 0)
    log.add("step", task=0, step=0)
    assert follower.position == Position(0, 1)
    other.add("step", task=0, step=1)
    assert follower.position == Position(0, 1)
    log.add("step", task=0, step=1)
    assert follower.position == Position(0, 2)
    assert follower.n_steps == 2
    log.add("learned", task=0)
    assert follower.position == Position(1, 0)


def test_half_a_line_is_read_when_it_is_complete(event_file):
    follower, log = EventFollower(event_file), event_log(event_file)
    log.add("step", task=2, step=6)
    line = event_file.read_bytes()
    event_file.write_bytes(line[:-9])
    assert follower.position == Position(0, 0)
    event_file.write_bytes(line)
    assert follower.position == Position(2, 7)
    assert follower.n_steps == 1


def test_resumed_start_continues_at_the_position_of_its_snapshot(event_file):
    follower, log = EventFollower(event_file), event_log(event_file)
    log.add("resumed", task=2, step=7)
    assert follower.position == Position(2, 7)
    assert follower.n_steps == 0
    log.add("learned", task=2)
    assert follower.position == Position(3, 0)
    log.add("ended", error="Preempted", message="stopped", status=75)
    assert follower.position == Position(3, 0)


def test_fractions_reach_every_step_and_no_other():
    timeline = Timeline((2, 0, 3), (1.0, 1.0, 1.0), seconds=9.0, startup_seconds=1.0)
    places = [timeline.position_at(number / 100) for number in range(100)]
    assert sorted(set(places)) == [(0, 1), (0, 2), (2, 1), (2, 2), (2, 3)]
    assert places == sorted(places)
    assert [p for p in places if timeline.is_evaluation(p)][0] == (0, 2)
