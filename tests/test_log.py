"""Log lines give their date and rank; lines of metrics are complete JSON objects."""

from __future__ import annotations

import json
import logging
import re

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline import storage
from pipeline.log import setup_logging
from pipeline.output.metrics_log import MetricsLog


@pytest.mark.parametrize(("rank", "shown"), [(0, ["note", "warning"]), (3, ["warning"])])
def test_rank_0_logs_from_info_and_the_others_from_warning(capsys, rank, shown):
    setup_logging(rank)
    setup_logging(rank)  # as a second run in one process does: no line may come twice
    log = logging.getLogger("pipeline.somewhere")
    log.debug("hidden")
    log.info("note")
    log.warning("warning")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines] == shown
    assert all(
        re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d r{rank} test_log: ", line) for line in lines
    )


def test_log_of_other_libraries_does_not_change(capsys):
    before = logging.getLogger().handlers[:]
    setup_logging(0)
    assert logging.getLogger().handlers == before


def test_metrics_are_complete_json_lines_after_each_flush():
    writer = MetricsLog("memory://log/metrics.jsonl")
    writer.add(kind="step", loss=0.5)
    assert not storage.exists("memory://log/metrics.jsonl")
    writer.flush()
    writer.add(kind="stage", accuracy=[1.0, None])
    writer.flush()
    text = storage.read_text("memory://log/metrics.jsonl")
    assert text.endswith("\n")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"kind": "step", "loss": 0.5},
        {"kind": "stage", "accuracy": [1.0, None]},
    ]


def test_lines_go_above_a_live_display(capsys, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "140")):
        monkeypatch.setenv(name, value)
    setup_logging(0)
    with Live(Text("the display"), console=Console(stderr=True), auto_refresh=False) as live:
        live.refresh()
        logging.getLogger("pipeline.any").warning("a step was skipped")
    shown = capsys.readouterr().err
    # The display is cleared, the line takes its place, and the display follows.
    assert re.search(r"\x1b\[2K[\d-]+ [\d:]+ r0 test_log: a step was skipped\n.*the display", shown)
