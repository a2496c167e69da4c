"""The page of a sweep: every trial and figure is there, nothing is fetched, text stays text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import TUNED_ON_EVALUATION
from pipeline.reporting.sweep_page import PAGE, render_report, write_report
from pipeline.settings_file import parse_section
from pipeline.storage import join, read_text
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.space import Domain, parse_space
from pipeline.sweep.trial_table import TaskReport, TrialRecord
from tests.conftest import skip_or_fail
from tests.services.browser import Browser, why_unavailable
from tests.tiny import build_config

SPACE = {
    "method.name": {"choice": ["finetune", "tppt_vt"]},
    "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "method.options.tppt_vt.weight": {"uniform": [0, 1], "when": {"method.name": "tppt_vt"}},
}
ODD = "<script>alert(1)</script> & \"quotes\" 'more' </style> \x1b[31mred\x00 ${x} {{y}} --> ünï"


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


class Page(HTMLParser):
    """The elements and the words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1], data))

    @property
    def words(self) -> str:
        """What a person reads."""
        shown = (data for tag, data in self.texts if tag not in ("script", "style", "title"))
        return " ".join(" ".join(shown).split())

    def trials(self, tag: str) -> Counter[str]:
        """How often each trial has an element of that kind."""
        return Counter(a["data-trial"] for t, a in self.tags if t == tag and "data-trial" in a)


def test_every_trial_is_in_the_table_and_in_the_pictures():
    found = Page(render_report(build_plan(), build_records()))
    assert found.trials("tr") == {str(number): 1 for number in range(6)}
    pictures = found.trials("g")
    assert pictures.keys() == {str(number) for number in range(6)}
    # in the parallel coordinates, in the curves if it has reported, in a picture per parameter
    assert pictures == {"0": 4, "1": 5, "2": 4, "3": 4, "4": 4, "5": 5}


def rows(found: str) -> list[list[str]]:
    """The cells of the table of trials."""
    body = found.split('<table class="trials">')[1].split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<td>(.*?)</td>", row) for row in body.split("<tr")[1:]]


def test_table_ranks_and_tells_what_came_of_each():
    table = rows(render_report(build_plan(), build_records()))
    assert [row[1] for row in table] == ["1", "0", "5", "2", "4", "3"]
    assert table[0] == [
        "1", "1", "✓ finished", "52.3 ± 0.0", "52.3", "5.0", "6/6", "0.250", "tppt_vt", "0.0008",
        "0.05", "",
    ]  # fmt: skip
    assert table[1][-2:] == ["–", ""], "what was not drawn is a dash"
    assert [row[2] for row in table[2:]] == ["▶ running", "■ stopped", "✗ failed", "✗ failed"]
    assert [row[-1] for row in table[2:]] == ["", "weak", "out of memory", "out of memory"]


def test_budget_protocol_seeds_and_what_is_left_out_are_told():
    words = Page(render_report(build_plan(class_orders=[7]), build_records())).words
    for told in (
        "best trial 52.3 ± 0.0 % average incremental accuracy, validation images",
        "trials 6 of 9 ▶ 1 running, ✓ 2 finished, ■ 1 stopped, ✗ 2 failed",
        "1.50 device-hours of CPU cores, since 2026-01-01 10:00 UTC",
        "protocol first 3 tasks 2 repetitions of each: seed 1, class order 7; seed 2, class ord",
        "is tested on 20 % of the training images, held out by a hash of their key",
        "best.yaml leaves the first 3 tasks, which chose it, out of its summary figures",
        "optim.learning_rate: log_uniform [0.0001, 0.01]",
        "tpe, seed 1, 9 trials wanted",
        "out of memory (trial 3, 4)",
        "python -m pipeline.train --config runs/test/best.yaml",
    ):
        assert told in words, told
    assert TUNED_ON_EVALUATION not in words
    assert "training images of tasks that are reported have had a say" in words
    same = Page(render_report(build_plan(class_orders=[1993]), build_records())).words
    assert "have had a say" not in same, "it is the order that the reported run has"
    ended = Page(render_report(build_plan(), build_records()[:5])).words
    assert "1.25 device-hours of CPU cores, 2026-01-01 10:00 to 2026-01-01 12:34 UTC" in ended
    kept = Page(render_report(build_plan(exclude_from_report=False), build_records())).words
    assert "figures of best.yaml include the tasks that chose it" in kept


def test_oracle_is_marked_before_anything_else_is_said():
    text = render_report(build_plan(protocol="oracle_sequence"), build_records())
    assert f"<title>Sweep test sweep ({TUNED_ON_EVALUATION})</title>" in text
    words = Page(text).words
    assert words.startswith(f"Sweep test sweep ⚠ {TUNED_ON_EVALUATION} The configurations were")
    assert "All 6 trials, best first Accuracies in %, tuned on the evaluation sequence." in words
    assert "validation" not in words and "no test image" not in words


@pytest.mark.parametrize("records", [[], build_records()[3:4], build_records()[5:]])
def test_page_of_a_sweep_without_a_finished_trial_says_so(records):
    found = Page(render_report(build_plan(), records))
    assert "Best configuration No trial has finished." in found.words
    assert found.trials("tr").keys() == {str(record.number) for record in records}


def test_text_is_text_whatever_it_holds():
    """must have the same elements as a harmless page, and show what was given"""
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
    harmless = Page(render_report(build_plan(name="harmless"), plain))
    found = Page(render_report(build_plan(name=ODD), odd))
    assert [tag for tag, _ in found.tags if tag != "title"] == [
        tag for tag, _ in harmless.tags if tag != "title"
    ]
    shown = ODD.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
    assert " ".join(shown.split()) in found.words


def test_same_records_give_the_same_bytes_in_the_output():
    plan = build_plan(output="memory://report/sweep")
    write_report(plan, build_records())
    text = read_text(join(plan.sweep.output, PAGE))
    assert text == render_report(plan, build_records()[::-1])
    write_report(plan, build_records()[:1])
    assert read_text(join(plan.sweep.output, PAGE)) != text


def test_page_names_no_place_that_it_would_be_fetched_from():
    text = render_report(build_plan(), build_records())
    found = Page(text)
    for tag, attributes in found.tags:
        assert not attributes.keys() & {"src", "href", "srcset", "action", "data", "style"}, tag
    for words in ("://", "url(", "@import", "fetch(", "XMLHttpRequest", "WebSocket", "innerHTML"):
        assert words not in text, words


# Scales.


def test_every_value_lies_on_its_axis_and_ticks_rise():
    for values, domain in (
        ([1e-4, 5e-3, 1e-2], Domain(log_uniform=(1e-4, 1e-2))),
        ([0.2, 0.3], Domain(uniform=(0.0, 1.0))),
        ([3, 4], Domain.model_validate({"int": [1, 5]})),
        ([5.0], None),
        ([0], None),
        ([1e-7, 3e8], None),
    ):
        scale = scale_for(values, domain)
        assert all(0 <= scale.position(value) <= 1 for value in values)
        positions = [position for position, _ in scale.ticks()]
        assert positions == sorted(positions) and 2 <= len(positions) <= 12
        assert -0.01 <= positions[0] and positions[-1] <= 1.01


def test_logarithmic_axis_gives_equal_room_to_equal_factors():
    scale = scale_for([], Domain(log_uniform=(1e-4, 1e-2)))
    assert math.isclose(scale.position(1e-3), 0.5)
    assert [label for _, label in scale.ticks()] == ["1e-4", "0.001", "0.01"]


def test_choices_have_a_place_each_and_keep_their_order():
    scale = scale_for(["b", None], Domain(choice=["b", "a", None, True, 1, "1", [1, 2]]))
    labels = [label for _, label in scale.ticks()]
    assert labels == ["b", "a", "None", "True", "1", "1", "[1, 2]"]
    values = ["b", "a", None, True, 1, "1", [1, 2]]
    positions = [scale.position(value) for value in values]
    assert positions == sorted(positions) and len({*positions}) == 7


def test_values_that_are_all_equal_lie_in_the_middle():
    assert spanning([0.25, 0.25]).position(0.25) == 0.5
    assert math.isclose(spanning([0.25], is_log=True).position(0.25), 0.5)


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    skip_or_fail(why_unavailable())
    with Browser() as opened:
        yield opened


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Browser:
    file = tmp_path / PAGE
    file.write_text(render_report(build_plan(name=ODD), build_records()))
    browser.open(file)
    return browser


def test_browser_notices_a_page_that_fetches_or_complains(browser, tmp_path):
    """must notice, or the law below would say nothing"""
    file = tmp_path / "page.html"
    image = '<img src="http://127.0.0.1:9/x.png">'
    file.write_text(f"<title>x</title>{image}<script>console.error('oh')</script>")
    browser.open(file)
    assert browser.requests() == [file.as_uri(), "http://127.0.0.1:9/x.png"]
    assert any("oh" in line for line in browser.complaints())
    picture = element("img", {"src": "http://127.0.0.1:9/x.png"})
    file.write_text(page("x", "", "document.body.className = 'ran'", picture))
    browser.open(file)
    [refusal] = browser.complaints()
    assert "x.png" in refusal and "violates" in refusal and "Content Security Policy" in refusal
    assert browser.evaluate("document.body.className") == "ran"


def test_page_loads_without_a_request_or_a_complaint_and_shows_every_trial(opened, tmp_path):
    assert opened.requests() == [(tmp_path / PAGE).as_uri()]
    assert opened.complaints() == []
    assert opened.evaluate("document.title") == f"Sweep {' '.join(ODD.split())}".replace(
        "\x1b", "\ufffd"
    ).replace("\x00", "\ufffd")
    visible = "[...document.querySelectorAll('KIND[data-trial]')].filter(e => e.getClientRects()"
    visible += ".length).map(e => e.dataset.trial)"
    for kind in ("tr", "g"):
        trials = opened.evaluate(visible.replace("KIND", kind))
        assert {*trials} == {str(number) for number in range(6)}
    wide = opened.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert not wide, "what is wide scrolls within the page"


def test_trial_that_is_chosen_is_followed_through_the_whole_page(opened):
    chosen = "[...new Set([...document.querySelectorAll('.on')].map(e => e.dataset.trial))]"
    opened.click('tr[data-trial="4"] td')
    assert opened.evaluate(chosen) == ["4"]
    told = opened.evaluate("document.getElementById('told').textContent")
    assert told.startswith("trial 4, failed: 70.0 %") and told.endswith("out of memory")
    opened.press('tr[data-trial="1"]', "\ue007")  # Enter
    assert opened.evaluate(chosen) == ["1"]
    opened.press('tr[data-trial="1"]', "\ue00c")  # Escape
    assert opened.evaluate("document.body.classList.contains('picking')") is False


def test_table_is_sorted_by_the_column_that_is_clicked(opened):
    order = "[...document.querySelectorAll('.trials tbody tr')].map(e => e.dataset.trial)"
    assert opened.evaluate(order) == ["1", "0", "5", "2", "4", "3"]
    opened.click(".trials th:nth-child(10) button")  # the learning rate
    assert opened.evaluate(order) == ["0", "1", "2", "3", "4", "5"]
    opened.click(".trials th:nth-child(10) button")
    assert opened.evaluate(order) == ["5", "4", "3", "2", "1", "0"]
    opened.click(".trials th:nth-child(4) button")  # what has no figure comes last
    assert opened.evaluate(order)[-1] == "3"
    opened.click(".trials th:nth-child(4) button")
    assert opened.evaluate(order)[-1] == "3"
