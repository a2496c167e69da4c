"""The page of a sweep: every trial and figure is on it, nothing is fetched, text stays text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import TUNED_ON_EVALUATION
from pipeline.reporting.sweep_page import PAGE, render_report, write_report
from pipeline.settings_file import parse_section
from pipeline.storage import join, read_text
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.space import parse_space
from pipeline.sweep.trial_table import TaskReport, TrialRecord
from tests.pages.parsing import ParsedPage
from tests.pages.test_page import ODD, SHOWN
from tests.services.browser import Browser
from tests.tiny import build_config

SPACE = {
    "method.name": {"choice": ["finetune", "tppt_vt"]},
    "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "method.options.tppt_vt.weight": {"uniform": [0, 1], "when": {"method.name": "tppt_vt"}},
}
TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"  # as WebDriver names them

# A sweep file may hold everything but control characters.
NAME = "".join(character for character in ODD if character.isprintable())


def build_plan(**settings: Any) -> SweepPlan:
    """A sweep over three tasks in two repetitions."""
    content = {
        "name": "test sweep", "output": "runs/test", "run": "configs/run.yaml", "space": SPACE,
        "seeds": [1, 2], "trials": 9, **settings,
    }  # fmt: skip
    sweep = parse_section(SweepConfig, content, place="the test's sweep")
    run = build_config("local-dir:clip", "shards", tasks={"class_order": "lamda"})
    space = parse_space(sweep.space, run.model_dump(mode="json"))
    return SweepPlan(sweep, run, run, space, 3)


def build_record(number: int, status: str, n_reports: int, *, worth: float = 0.5) -> TrialRecord:
    """A trial that is worth so much after its last task."""
    name = ("finetune", "tppt_vt")[number % 2]
    parameters = {"method.name": name, "optim.learning_rate": 1e-4 * (1 + 7 * number)}
    if name == "tppt_vt":
        parameters["method.options.tppt_vt.weight"] = number / 20
    reports = [
        TaskReport(
            tasks_done=done + 1, repetition=done // 3, task=done % 3, forgetting=0.05,
            average_incremental_accuracy=worth + 0.1 * (2 - done % 3), last_accuracy=worth,
            seconds=9.0,
        )
        for done in range(n_reports)
    ]  # fmt: skip
    return TrialRecord(
        number=number, parameters=parameters, status=status, reports=reports,
        reason={"failed": "out of memory", "stopped": "weak"}.get(status),
        device_hours=0.25, started="2026-01-01T10:00:00+00:00", ended="2026-01-01T12:34:56+00:00",
    )  # fmt: skip


def build_records() -> list[TrialRecord]:
    """One trial of each kind, and a best one."""
    return [
        build_record(0, "finished", 6, worth=0.41),
        build_record(1, "finished", 6, worth=0.523),
        build_record(2, "stopped", 2),
        build_record(3, "failed", 0),
        build_record(4, "failed", 1),
        build_record(5, "running", 4),
    ]


def test_every_trial_is_in_the_table_and_in_the_pictures():
    found = ParsedPage(render_report(build_plan(), build_records()))
    assert found.items("tr") == {str(number): 1 for number in range(6)}
    marks = found.items("g")
    assert marks.keys() == {str(number) for number in range(6)}
    # in the parallel coordinates, in the curves if it has reported, in a chart per parameter
    assert marks == {"0": 4, "1": 5, "2": 4, "3": 4, "4": 4, "5": 5}


def rows(found: str) -> list[list[str]]:
    """The cells of the table of trials."""
    body = found.split('<table class="sortable">')[1].split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<td>(.*?)</td>", row) for row in body.split("<tr")[1:]]


def test_table_ranks_the_trials_and_has_their_values():
    table = rows(render_report(build_plan(), build_records()))
    assert [row[1] for row in table] == ["1", "0", "5", "2", "4", "3"]
    assert table[0] == [
        "1", "1", "✓ finished", "52.3 ± 0.0", "52.3 ± 0.0", "5.0 ± 0.0", "6/6", "0.250",
        "tppt_vt", "0.0008", "0.05", "",
    ]  # fmt: skip
    assert table[1][-2:] == ["–", ""], "a parameter that was not drawn is a dash"
    assert [row[2] for row in table[2:]] == ["▶ running", "■ stopped", "✗ failed", "✗ failed"]
    assert [row[-1] for row in table[2:]] == ["", "weak", "out of memory", "out of memory"]


def test_page_states_budget_protocol_seeds_and_excluded_tasks():
    words = ParsedPage(render_report(build_plan(class_orders=[7]), build_records())).words
    for stated in (
        "best trial 52.3 ± 0.0 % average incremental accuracy, validation images",
        "trials 6 of 9 ▶ 1 running, ✓ 2 finished, ■ 1 stopped, ✗ 2 failed",
        "1.50 device-hours of CPU cores, since 2026-01-01 10:00 UTC",
        "protocol first 3 tasks 2 repetitions of each: seed 1, class order 7; seed 2, class ord",
        "is tested on 20 % of the training images, held out by a hash of their key",
        "The summary figures of best.yaml leave out the first 3 tasks, used for the selection.",
        "optim.learning_rate: log_uniform [0.0001, 0.01]",
        "tpe, seed 1, 9 trials wanted",
        "out of memory (trials 3, 4)",
        "python -m pipeline.train --config runs/test/best.yaml",
    ):
        assert stated in words, stated
    assert TUNED_ON_EVALUATION not in words
    assert "also used training images of tasks that are reported" in words
    same = ParsedPage(render_report(build_plan(class_orders=[1993]), build_records())).words
    assert "also used training images" not in same, "the reported run has the same order"
    ended = ParsedPage(render_report(build_plan(), build_records()[:5])).words
    assert "1.25 device-hours of CPU cores, 2026-01-01 10:00 to 2026-01-01 12:34 UTC" in ended
    kept = ParsedPage(render_report(build_plan(exclude_from_report=False), build_records())).words
    assert "figures of best.yaml include the tasks used for the selection" in kept


def test_mark_of_the_oracle_comes_first():
    text = render_report(build_plan(protocol="oracle_sequence"), build_records())
    assert f"<title>Sweep test sweep ({TUNED_ON_EVALUATION})</title>" in text
    words = ParsedPage(text).words
    assert words.startswith(f"Sweep test sweep ⚠ {TUNED_ON_EVALUATION} The configurations were")
    assert "All 6 trials, best first Accuracies in %, tuned on the evaluation sequence;" in words
    assert "validation" not in words and "no test image" not in words


@pytest.mark.parametrize("records", [[], build_records()[3:4], build_records()[5:]])
def test_page_of_a_sweep_without_a_finished_trial_says_so(records):
    found = ParsedPage(render_report(build_plan(), records))
    assert "Best configuration No trial has finished." in found.words
    assert found.items("tr").keys() == {str(record.number) for record in records}


def test_text_is_text_whatever_it_holds():
    """must have the same elements as a harmless page, and show the given text"""
    plain, odd = (
        [
            record.model_copy(
                update={
                    "reason": words,
                    "parameters": {f"text.templates.{words}": [words], "method.name": words},
                }
            )
            for record in build_records()
        ]
        for words in ("harmless", ODD)
    )
    harmless = ParsedPage(render_report(build_plan(name="harmless"), plain))
    found = ParsedPage(render_report(build_plan(name=NAME), odd))
    assert [tag for tag, _ in found.tags if tag != "title"] == [
        tag for tag, _ in harmless.tags if tag != "title"
    ]
    assert " ".join(SHOWN.split()) in found.words


def test_same_records_give_the_same_bytes_in_the_output():
    plan = build_plan(output="memory://report/sweep")
    write_report(plan, build_records())
    text = read_text(join(plan.sweep.output, PAGE))
    assert text == render_report(plan, build_records()[::-1])
    write_report(plan, build_records()[:1])
    assert read_text(join(plan.sweep.output, PAGE)) != text


def test_same_records_give_the_same_bytes_in_another_process():
    """must not depend on the order of sets, which differs between processes"""
    code = (
        "import sys; from tests.reporting.test_sweep_page import *; "
        "sys.stdout.buffer.write(render_report(build_plan(), build_extra_records()).encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert found.stdout.decode() == render_report(build_plan(), build_extra_records())


def build_extra_records() -> list[TrialRecord]:
    """Trials with parameters that the space no longer has."""
    extra = {f"extra.{letter}": number for number, letter in enumerate("abcdefgh")}
    return [
        record.model_copy(update={"parameters": record.parameters | extra})
        for record in build_records()
    ]


def test_page_names_no_place_that_it_would_be_fetched_from():
    text = render_report(build_plan(), build_records())
    found = ParsedPage(text)
    for tag, attributes in found.tags:
        assert not attributes.keys() & {"src", "href", "srcset", "action", "data", "style"}, tag
    for words in ("://", "url(", "@import", "fetch(", "XMLHttpRequest", "WebSocket", "innerHTML"):
        assert words not in text, words


# In a browser.


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    file = tmp_path / PAGE
    file.write_text(render_report(build_plan(name=NAME), build_records()))
    browser.open(file)
    return browser


def test_page_loads_without_a_request_or_a_complaint_and_shows_every_trial(opened, tmp_path):
    assert opened.requests() == [(tmp_path / PAGE).as_uri()]
    assert opened.complaints() == []
    assert opened.evaluate("document.title") == f"Sweep {' '.join(NAME.split())}"
    visible = "[...document.querySelectorAll('KIND[data-item]')].filter(e => e.getClientRects()"
    visible += ".length).map(e => e.dataset.item)"
    for kind in ("tr", "g"):
        trials = opened.evaluate(visible.replace("KIND", kind))
        assert {*trials} == {str(number) for number in range(6)}
    wide = opened.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert not wide, "wide parts scroll within the page"


def test_trial_that_is_chosen_is_followed_through_the_whole_page(opened):
    chosen = "[...new Set([...document.querySelectorAll('.on')].map(e => e.dataset.item))]"
    opened.click('tr[data-item="4"] td')
    assert opened.evaluate(chosen) == ["4"]
    label = opened.evaluate("document.getElementById('followed').textContent")
    assert label.startswith("trial 4, failed: 70.0 %") and label.endswith("out of memory")
    opened.press('tr[data-item="1"]', ENTER)
    assert opened.evaluate(chosen) == ["1"]
    opened.press('tr[data-item="1"]', ESCAPE)
    assert opened.evaluate("document.body.classList.contains('picking')") is False


def test_table_is_sorted_by_the_column_that_is_clicked(opened):
    order = "[...document.querySelectorAll('.sortable tbody tr')].map(e => e.dataset.item)"
    assert opened.evaluate(order) == ["1", "0", "5", "2", "4", "3"]
    opened.click(".sortable th:nth-child(10) button")  # the learning rate
    assert opened.evaluate(order) == ["0", "1", "2", "3", "4", "5"]
    opened.click(".sortable th:nth-child(10) button")
    assert opened.evaluate(order) == ["5", "4", "3", "2", "1", "0"]
    opened.click(".sortable th:nth-child(4) button")  # a missing figure comes last
    assert opened.evaluate(order)[-1] == "3"
    opened.click(".sortable th:nth-child(4) button")
    assert opened.evaluate(order)[-1] == "3"


def test_rank_and_status_differ_by_more_than_colour(opened):
    """must differ in the width or the dashes of the line, or in the symbol at its end"""
    signs = """
    ['shade0', 'shade1', 'shade2', 'shade3', 'shade4', 'best', 'stopped', 'failed'].map(kind => {
      const sample = document.querySelector(`.legend .item.${kind} .line`);
      return getComputedStyle(sample).strokeWidth + ' ' + getComputedStyle(sample).strokeDasharray;
    })
    """
    found = opened.evaluate(f"({signs.strip()})")
    assert len({*found}) == 8, found
    ends = "[...document.querySelectorAll('.chart .item.KIND .end')].map(e => e.textContent)"
    for kind, symbol in {"running": "▶", "stopped": "■", "failed": "✗", "finished": ""}.items():
        assert {*opened.evaluate(ends.replace("KIND", kind))} == {symbol}


def test_charts_and_trials_have_a_name_for_a_screen_reader(opened):
    charts = opened.evaluate("document.querySelectorAll('svg.chart').length")
    described = opened.evaluate("document.querySelectorAll('svg.chart > desc').length")
    assert charts == described == 5
    assert opened.accessible_name("svg.chart") == "Parameters and metric of each trial"
    assert opened.accessible_name('g[data-item="3"]').startswith("trial 3, failed: – %")
    assert opened.accessible_name(".scroll") == "parallel coordinates"


def test_keyboard_alone_reaches_every_trial(opened):
    followed = "document.getElementById('followed').textContent.split(',')[0]"
    opened.press(".sortable th:last-child button", TAB)
    assert opened.evaluate(followed) == "trial 1"
    for number in (1, 0, 5, 2, 4):
        opened.press(f'tr[data-item="{number}"]', TAB)
    assert opened.evaluate(followed) == "trial 3"
