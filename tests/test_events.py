"""The launcher of a run reads its events: complete lines only, each of one rank."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from pipeline.errors import LostRankError
from pipeline.events import VARIABLE, EventLog, read_events


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def log_of(file: Path, rank: int = 0) -> EventLog:
    return EventLog({VARIABLE: str(file), "RANK": str(rank)})


def test_events_are_read_back_in_order(file):
    log_of(file).add("resumed", task=1, step=2)
    log_of(file, rank=3).add("step", task=1, step=2)
    events, offset = read_events(file)
    assert events == [
        {"event": "resumed", "rank": 0, "task": 1, "step": 2},
        {"event": "step", "rank": 3, "task": 1, "step": 2},
    ]
    assert offset == file.stat().st_size


def test_each_reading_continues_after_the_last(file):
    assert read_events(file) == ([], 0)  # not there yet
    log = log_of(file)
    log.add("step", step=0)
    _, offset = read_events(file)
    assert read_events(file, offset=offset) == ([], offset)
    log.add("step", step=1)
    events, _ = read_events(file, offset=offset)
    assert [event["step"] for event in events] == [1]


def test_only_complete_lines_are_read(file):
    """must hold at every byte: the reader may look while a line is being written"""
    log_of(file).add("learned", task=0)
    first = file.read_bytes()
    log_of(file).add("learned", task=1)
    content = file.read_bytes()
    for size in range(len(content) + 1):
        file.write_bytes(content[:size])
        events, offset = read_events(file)
        n_complete = (size >= len(first)) + (size == len(content))
        assert [event["task"] for event in events] == [*range(n_complete)]
        assert offset == (0, len(first), len(content))[n_complete]


def add_many(path: str, rank: int) -> None:
    log = log_of(Path(path), rank)
    for step in range(300):
        log.add("step", step=step, text="x" * rank * 100)


def test_lines_of_several_ranks_never_mix(file):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=add_many, args=(str(file), rank)) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    events, _ = read_events(file)
    for rank in range(3):
        own = [event for event in events if event["rank"] == rank]
        assert [event["step"] for event in own] == [*range(300)]
        assert {event["text"] for event in own} == {"x" * rank * 100}
    assert len(events) == 900


def test_end_gives_the_error_on_one_line(file):
    log_of(file, rank=1).add_end(LostRankError("rank 1 lost\n  contact"), 1)
    assert file.read_text().count("\n") == 1
    assert json.loads(file.read_text()) == {
        "event": "ended",
        "rank": 1,
        "error": "LostRankError",
        "message": "rank 1 lost contact",
        "status": 1,
    }


def test_nothing_is_written_without_a_launcher_that_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EventLog({"RANK": "0"}).add("step", task=0, step=0)
    assert list(tmp_path.iterdir()) == []
