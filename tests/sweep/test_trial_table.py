"""The trial table: complete files, one order, and nothing lost."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.sweep.trial_table import (
    TaskReport,
    TrialRecord,
    TrialTable,
    best,
    rank,
    read_records,
    task_reports,
    write_table,
)
from tests.stages import build_results, stage

METRIC = "average_incremental_accuracy"


def report(tasks_done: int, value: float, *, repetition: int = 0, task: int = 0) -> TaskReport:
    return TaskReport(
        tasks_done=tasks_done,
        repetition=repetition,
        task=task,
        average_incremental_accuracy=value,
        last_accuracy=value / 2,
        forgetting=None if task == 0 else 0.25,
        seconds=1.5,
    )


def trial(number: int, status: str, *values: float) -> TrialRecord:
    reports = [report(n + 1, value, task=n) for n, value in enumerate(values)]
    return TrialRecord(number=number, parameters={}, status=status, reports=reports)


def test_records_are_read_as_they_were_written(tmp_path):
    table = TrialTable(str(tmp_path), METRIC)
    table.begin(3, {"method.name": "finetune", "optim.epochs": 2})
    table.report(3, report(1, 0.5), 0.1)
    table.begin(0, {"method.name": "tppt_vt"})
    table.end(0, "failed", reason='no, \'twas; "bad"\nvery', device_hours=0.2)
    assert read_records(str(tmp_path)) == table.records
    assert [record.number for record in table.records] == [0, 3]
    again = TrialTable(str(tmp_path), METRIC)
    assert again.records == table.records


def test_a_resumed_trial_keeps_its_parameters_and_counts_no_task_twice(tmp_path):
    table = TrialTable(str(tmp_path), METRIC)
    table.begin(0, {"optim.epochs": 2})
    table.report(0, report(1, 0.5), 0.1)
    table.report(0, report(2, 0.4, task=1), 0.2)
    table.begin(0, {"optim.epochs": 7})
    table.report(0, report(1, 0.5), 0.3)
    assert table[0].parameters == {"optim.epochs": 2}
    assert [each.tasks_done for each in table[0].reports] == [1, 2]
    assert table[0].device_hours == 0.3


def test_the_best_come_first_and_failures_last():
    trials = [
        trial(0, "failed"),
        trial(1, "finished", 0.5, 0.4),
        trial(2, "stopped", 0.9),
        trial(3, "finished", 0.5, 0.6),
        trial(4, "running", 0.3),
        trial(5, "stopped", 0.2, 0.1),
        trial(6, "finished", 0.9, 0.6),
    ]
    assert [record.number for record in rank(trials, METRIC)] == [3, 6, 1, 4, 5, 2, 0]
    assert best(trials, METRIC).number == 3
    assert best(trials[:1], METRIC) is None


def test_value_of_a_trial_is_the_mean_over_its_repetitions():
    reports = [
        report(1, 0.9),
        report(2, 0.6, task=1),
        report(3, 0.5, repetition=1),
        report(4, 0.4, repetition=1, task=1),
    ]
    record = TrialRecord(number=0, parameters={}, reports=reports)
    assert record.value(METRIC) == pytest.approx(0.5)
    assert record.spread(METRIC) == pytest.approx(0.02**0.5)
    assert record.by_repetition("last_accuracy") == [0.3, 0.2]


def test_the_table_has_a_row_for_each_trial_with_any_text_as_its_reason(tmp_path):
    failed = trial(1, "failed").model_copy(update={"reason": 'a, "b"\nc', "parameters": {"x": [1]}})
    write_table(str(tmp_path), [trial(0, "finished", 0.5), failed], METRIC, "")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines(keepends=True)))
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert rows[1]["reason"] == 'a, "b"\nc' and rows[1]["x"] == "[1]"
    assert rows[0][METRIC] == "0.5000" and rows[1][METRIC] == ""


def test_a_mark_stands_above_the_table(tmp_path):
    write_table(str(tmp_path), [trial(0, "finished", 0.5)], METRIC, "beware")
    assert (tmp_path / "trials.csv").read_text().startswith("# beware\nrank,")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not the record of a trial"),
        ('{"number": 7}', "parameters is missing"),
        ('{"number": 8, "parameters": {}}', "is the record of trial 8"),
    ],
)
def test_error_of_a_damaged_record_names_its_file(tmp_path, text, words):
    folder: Path = tmp_path / "trials" / "007"
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(text)
    with pytest.raises(DataError, match=f"trials/007/trial.json: .*{words}"):
        read_records(str(tmp_path))


def test_reports_equal_the_results_of_the_run():
    stages = [stage([9], [10]), stage([5, 7], [10, 10])]
    results = build_results(stages).build()
    first, second = task_reports(results, repetition=1, n_tasks=3)
    assert (first.tasks_done, first.task, first.forgetting) == (4, 0, None)
    assert (second.tasks_done, second.task) == (5, 1)
    diagnostics = results.diagnostics[1]
    assert second.seconds == diagnostics.train_seconds + diagnostics.test_seconds > 1.5
    assert second.average_incremental_accuracy == pytest.approx(0.75)
    assert second.last_accuracy == 0.6
    assert second.forgetting == pytest.approx(0.4)
