"""The display of a sweep: every change once, running and best trials first, honest times."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from pipeline.sweep.progress import MAX_RUNNING, N_BEST, SweepDisplay, parameter_labels
from pipeline.sweep.trial_table import TaskReport, TrialRecord

NOTE = "tuned on the evaluation sequence"
RATE, WEIGHT = "optim.learning_rate", "method.options.tppt_vt.text_to_image.weight"


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(
    number: int, values: tuple[float, ...] = (), status: str = "running", **known: object
) -> TrialRecord:
    """A trial with three tasks in each repetition; each took 20 s and gave one of ``values``."""
    reports = [
        TaskReport(
            tasks_done=done + 1, repetition=done // 3, task=done % 3, last_accuracy=value / 2,
            average_incremental_accuracy=value, forgetting=None, seconds=20.0,
        )
        for done, value in enumerate(values)
    ]  # fmt: skip
    content = {"parameters": {RATE: 0.00123456, WEIGHT: 0.3}, "status": status, **known}
    return TrialRecord(number=number, reports=reports, **content)


def build(clock: Clock | None = None, *, n_trials: int = 4, n_tasks: int = 3, **settings: str):
    metric = "average_incremental_accuracy"
    clock = clock or Clock()
    return SweepDisplay(n_trials=n_trials, n_tasks=n_tasks, metric=metric, clock=clock, **settings)


def shown(display: SweepDisplay, *, width: int = 160) -> str:
    """The table as text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(display.table())
    return console.file.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row by its first cell."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    split = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {cells[0]: cells[1:] for cells in split}


def test_running_trial_shows_its_task_and_the_time_to_its_end():
    clock = Clock()
    display = build(clock)
    display.update(record(0, (0.5,)))
    clock.now += 5
    cells = rows(shown(display))["0"]
    assert cells == [
        "learning_rate=0.00123 weight=0.3", "1/3", "50.0", "▶ running", "0:00:35",
    ]  # fmt: skip
    clock.now += 1000  # later than estimated
    assert rows(shown(display))["0"][-1] == "0:00:00"


def test_end_of_a_trial_without_a_report_is_estimated_from_the_others():
    display = build()
    display.update(record(0))
    assert rows(shown(display))["0"][1:] == ["0/3", "–", "▶ running", "unknown"]
    display.update(record(1, (0.5, 0.4, 0.3), "finished"))
    assert rows(shown(display))["0"][-1] == "0:01:00"


def test_repetitions_count_as_tasks_and_the_metric_is_their_mean():
    display = build(n_tasks=6)
    display.update(record(2, (0.9, 0.8, 0.7, 0.5)))
    assert rows(shown(display))["2"][1:3] == ["4/6", "60.0 ± 14.1"]


def test_summary_of_the_sweep_is_one_line():
    clock = Clock()
    display = build(clock, n_trials=6)
    display.update(record(0, (0.5, 0.4, 0.3), "finished", device_hours=0.5))
    display.update(record(1, (0.5, 0.5, 0.5), "finished", device_hours=0.25))
    display.update(record(2, (0.2,), "stopped", reason="weak"))
    display.update(record(3, (0.3,)))
    clock.now += 10
    last = shown(display).splitlines()[-1]
    # trial 3 has 30 s left and two that wait take 60 s each, one after the other
    assert last == (
        "1 running, 2 finished, 1 stopped, 2 waiting · best 50.0 % (trial 1) · 0.75 device-hours "
        "· elapsed 0:00:10 · about 0:02:30 left"
    )
    display.update(record(4, (0.3,)))
    assert shown(display).rstrip().endswith("about 0:01:05 left"), "(30 + 40 + 60) / 2"
    display.update(record(4, (0.3,), "failed"))  # the next one is about to take its place
    assert shown(display).rstrip().endswith("about 0:00:45 left"), "(30 + 60) / 2"


def test_time_before_the_first_task_is_counted_for_waiting_trials():
    """must count the start-up of a trial, which is longer than its training in a small sweep"""
    clock = Clock()
    display = build(clock, n_trials=3, n_tasks=1)
    display.update(record(0, ()))
    clock.now += 50
    display.update(record(0, (0.5,)))
    display.update(record(0, (0.5,), "finished", device_hours=0.5))
    display.update(record(1, ()))
    seconds = record(0, (0.5,)).reports[0].seconds
    assert 0 < seconds < 50
    assert shown(display).rstrip().endswith("about 0:01:40 left"), "two trials of 50 s each"


def test_many_trials_show_the_running_and_the_best_and_count_the_rest():
    display = build(n_trials=200)
    for number in range(60):
        display.update(record(number, (number / 100,) * 3, "finished"))
    for number in range(60, 90):
        display.update(record(number, (0.1,)))
    for number in range(90, 93):
        display.update(record(number, (), "failed", reason=f"out of memory {number}"))
    text = shown(display)
    best = [str(number) for number in range(59, 59 - N_BEST, -1)]
    running = [str(number) for number in range(60, 60 + MAX_RUNNING)]
    assert list(rows(text)) == [*running, *best]
    assert f"not shown: {30 - MAX_RUNNING} running, {60 - N_BEST} finished, 3 failed" in text
    assert "✗ trial 92: out of memory 92" in text and "107 waiting" in text
    assert len(text.splitlines()) < 35


def test_markup_in_a_reason_or_a_parameter_is_shown_as_text():
    display = build()
    odd = {"parameters": {"text.templates": ["[bold]a {}"]}, "reason": "[/red] at [1]"}
    display.update(record(0, status="failed", **odd))
    display.update(record(1, **odd))
    text = shown(display)
    assert "templates=['[bold]a {}']" in text and "✗ trial 0: [/red] at [1]" in text


def test_note_stands_above_the_table():
    first, *_, last = shown(build(note=NOTE, split="test")).splitlines()
    assert first == f"average incremental accuracy of test images (%), {NOTE}"
    assert last == "4 waiting · 0.00 device-hours · elapsed 0:00:00"
    assert shown(build()).startswith("average incremental accuracy of validation images (%)\n")


def test_labels_are_short_and_different():
    keys = ("optim.learning_rate", "a.weight", "b.weight", "c.b.weight", "weight")
    known = record(0).model_copy(update={"parameters": dict.fromkeys(keys, 1)})
    labels = parameter_labels([known])
    assert labels["optim.learning_rate"] == "learning_rate" and labels["a.weight"] == "a.weight"
    assert len({*labels.values()}) == len(keys)


def lines_of(display: SweepDisplay, caplog: pytest.LogCaptureFixture, *records: TrialRecord):
    """The log lines of some updates."""
    with caplog.at_level(logging.INFO, logger="pipeline"), display:
        for each in records:
            display.update(each)
    return [entry.getMessage() for entry in caplog.records]


def test_file_gets_one_line_for_each_change(caplog, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    trial = [record(7), record(7, (0.5,)), record(7, (0.5,)), record(7, (0.5, 0.25))]
    lines = lines_of(build(), caplog, *trial, record(7, (0.5, 0.25), "stopped", reason="weak"))
    assert lines[:4] == [
        f"trial 7 {RATE}=0.00123 {WEIGHT}=0.3",
        "trial 7 task 1/3: 50.0 %  eta 0:00:40",
        "trial 7 task 2/3: 25.0 %  eta 0:00:20",
        "trial 7 stopped: weak",
    ]
    assert len(lines) == 5 and lines[4].startswith("1 stopped, 3 waiting · 0.00 device-hours")
    assert capsys.readouterr() == ("", "")


def test_file_gets_the_results_of_earlier_starts_in_a_line(caplog, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    display = build(note=NOTE)
    display.update(record(0, (0.5, 0.4, 0.3), "finished"))
    display.update(record(1, (0.5,)))
    lines = lines_of(display, caplog, record(1, (0.5,)), record(1, (0.5, 0.4)))
    assert lines == [
        "earlier starts: 1 running, 1 finished, 2 waiting · best 30.0 % (trial 0) · 0.00 "
        "device-hours · elapsed 0:00:00 · about 0:02:40 left",
        f"trial 1 task 2/3: 40.0 % ({NOTE})  eta 0:00:20",
    ]


def test_terminal_gets_the_last_table_and_no_lines(caplog, capsys, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "160")):
        monkeypatch.setenv(name, value)
    lines = lines_of(build(), caplog, record(3), record(3, (0.5,)), record(3, (0.5,), "failed"))
    out, err = capsys.readouterr()
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", err).split("average incremental")[-1]
    assert out == "" and lines == []
    assert "not shown: 1 failed" in last and "✗ trial 3" in last
    assert err.rstrip().endswith("\x1b[?25h"), "the cursor is visible again"
