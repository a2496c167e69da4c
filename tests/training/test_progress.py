"""What a person sees: on a terminal a display that grows, in a file plain lines."""

from __future__ import annotations

import logging
import re

import pytest

from pipeline.output.live_progress import LiveProgress
from pipeline.training import progress
from pipeline.training.progress import Display, StepReport


def report(task: int, step: int) -> StepReport:
    return StepReport(
        task=task, epoch=1, step=step, loss=1.2345, learning_rate=5e-4,
        images_per_second=1234.5, data_wait=0.25,
    )  # fmt: skip


def show(*, shown: bool = True, note: str | None = None) -> None:
    """Two tasks of four steps each."""
    with Display(n_tasks=2, n_epochs=3, shown=shown, note=note) as display:
        display.expect(8)
        for task in range(2):
            for step in range(4):
                display.step(report(task, step), done=4 * task + step + 1, task_steps=4)
            display.scored(task, 0.5 + task / 4, [0.123, 1.0][: task + 1])


def test_file_gets_plain_lines(caplog, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        show()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert re.fullmatch(
        r"task 1/2 epoch 2/3 step 2/4 loss 1\.234  lr 5\.0e-04  1,23[45] images/s  "
        r"data wait 25%  eta (unknown|\d+:\d\d:\d\d)",
        lines[1],
    ), lines[1]
    assert lines[4] == "task 1 learned: 50.0 % of all seen; by task: 12.3"
    assert lines[9] == "task 2 learned: 75.0 % of all seen; by task: 12.3 100.0"
    assert capsys.readouterr() == ("", "")


def test_terminal_gets_the_place_the_figures_and_the_growing_table(caplog, capsys, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "140")):
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        show()
    out, err = capsys.readouterr()
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", err).split("accuracy after each task")[-1]
    assert out == "" and not caplog.records
    for words in ("task 2/2 epoch 2/3", "8/8", "loss 1.234", "images/s", "data wait 25%"):
        assert words in last, last
    assert re.search(r"1 │ +50\.0 │ +12\.3 │", last) and re.search(r"75\.0 │ +12\.3 │ 100\.0", last)


KEPT = ("task 2/10 epoch 2/3", "━", "-:--:--")


@pytest.mark.parametrize(("width", "n_figures"), [(40, 0), (60, 1), (80, 3), (100, 4), (120, 5)])
def test_narrow_terminal_keeps_place_bar_and_time_left(capsys, monkeypatch, width, n_figures):
    """must leave out the figures from the right, each as one piece"""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("LINES", "20")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", str(width))
    figures = ("5000/9000", "loss 1.234", "lr 5.0e-04", "1,234 images/s", "data wait 25%")
    with Display(n_tasks=10, n_epochs=3, shown=True) as display:
        display.expect(9000)
        for task in range(2):
            display.step(report(task, 3), done=5000 * task, task_steps=900)
            display.scored(task, 0.5, [0.25] * (task + 1))
    *_, line = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err).split("\n")[:-1]
    assert [words for words in KEPT if words not in line] == [], line
    assert [words in line for words in figures] == [n < n_figures for n in range(5)], line
    assert "…" not in line and len(line.rstrip()) <= width


def test_time_left_is_known_if_steps_are_minutes_apart(caplog, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with (
        caplog.at_level(logging.INFO, logger="pipeline"),
        Display(n_tasks=1, n_epochs=3, shown=True) as display,
    ):
        display.expect(4)
        for step, seconds in enumerate((0, 100, 200)):
            monkeypatch.setattr(display._bar, "get_time", lambda seconds=seconds: float(seconds))
            display.step(report(0, step), done=step + 1, task_steps=4)
    assert [line.rpartition("eta ")[2] for line in caplog.messages] == [
        "unknown", "0:03:20", "0:01:40",
    ]  # fmt: skip


def test_pass_over_images_is_counted(caplog, monkeypatch):
    """must say what the run does with which task; a pass within one interval gets no line"""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    published: list[LiveProgress] = []
    with (
        caplog.at_level(logging.INFO, logger="pipeline"),
        Display(n_tasks=5, n_epochs=1, shown=True, publish=published.append) as display,
    ):
        display.images(8)(8)
        assert not caplog.records
        monkeypatch.setattr(progress, "_PASS_LINE_S", 0.0)
        display.doing("fitting", 1)
        show = display.images(12_665)
        for done in (16, 3200):
            show(done)
    counts = [(each.doing, each.task, each.images, each.n_images) for each in published]
    fitting = [("fitting", 1, done, 12_665) for done in (16, 3200)]
    assert counts == [("testing", 0, 8, 8), ("fitting", 1, None, None), *fitting]
    pattern = r"task 2/5 fitting 3,200/12,665 images  [\d,]+ images/s  eta 0:00:\d\d"
    assert re.fullmatch(pattern, caplog.messages[-1])


def test_long_table_leaves_room_for_the_bar(capsys, monkeypatch):
    """must show the last tasks, as rows and as columns, where not all fit"""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    for name, value in (("COLUMNS", "60"), ("LINES", "14")):
        monkeypatch.setenv(name, value)
    with Display(n_tasks=50, n_epochs=1, shown=True) as display:
        for task in range(30):
            display.scored(task, 0.5, [task / 100] * (task + 1))
    frame = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    last = frame[frame.rindex("accuracy after each task") :].rstrip("\n").split("\n")
    assert len(last) <= 13 and "all steps" in last[-1]
    assert re.findall(r"\d+", last[2]) == ["26", "27", "28", "29", "30"]
    assert re.findall(r"[\d.]+", last[-3]) == ["30", "50.0", *["29.0"] * 5]


def test_display_is_ended_when_the_run_fails(capsys, monkeypatch):
    """must give the terminal its cursor back"""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), Display(n_tasks=2, n_epochs=1, shown=True):
        raise ZeroDivisionError
    assert capsys.readouterr().err.rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize("force", [None, "1"])
def test_other_ranks_show_nothing(caplog, capsys, monkeypatch, force):
    if force:
        monkeypatch.setenv("FORCE_COLOR", force)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        show(shown=False)
    assert capsys.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("force", [None, "1"])
def test_note_stands_beside_the_accuracies(caplog, capsys, monkeypatch, force):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "140")):
        monkeypatch.setenv(name, value)
    if force:
        monkeypatch.setenv("FORCE_COLOR", force)
    note = "tuned on the evaluation sequence"
    with caplog.at_level(logging.INFO, logger="pipeline"):
        show(note=note)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err).split()
    assert note in " ".join(shown if force else caplog.text.split())
