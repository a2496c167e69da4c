"""The estimate of a sweep counts the images that its runs train on and are tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import dump_config
from pipeline.errors import RefusedBySystemError
from pipeline.sweep import dry_run
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.dry_run import count_images, describe_sweep
from pipeline.sweep.plan import SweepPlan, load_plan
from pipeline.sweep.trial_table import TrialRecord, write_record
from pipeline.training.checked_run import check_run
from tests.tiny import TEST_IMAGES, TRAIN_IMAGES, build_config

EPOCHS, BATCH = 2, 4


@pytest.fixture
def run_file(tiny_arch, tiny_shards, tmp_path) -> Path:
    config = build_config(
        tiny_arch,
        tiny_shards,
        method={"name": "finetune"},
        optim={"epochs": EPOCHS},
        data={"index": tiny_shards, "global_batch": BATCH, "tail": "wrap"},
    )
    file = tmp_path / "tiny.yaml"
    file.write_text(dump_config(config))
    return file


def plan_of(run_file: Path, protocol: str, **settings: Any) -> SweepPlan:
    tree = {
        "run": str(run_file),
        "output": str(run_file.parent / "sweep"),
        "space": {"optim.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        "protocol": protocol,
        "report": str(run_file) if protocol == "transfer" else None,
        "k": 2,
        "trials": 2,
        "validation_fraction": 0.34,
    }
    return load_plan(SweepConfig.model_validate(tree | settings))


@pytest.mark.parametrize("protocol", ["first_task", "first_k_tasks", "transfer", "oracle_sequence"])
def test_every_protocol_counts_the_images_of_its_tests(run_file, protocol):
    """must count a task once after its own training and once after that of each later task"""
    plan = plan_of(run_file, protocol)
    config = plan.run_config({"optim.learning_rate": 1e-3}, 0, 0)
    run = check_run(config, 1)
    counts = count_images(config, run.data, run.tasks)
    split = TEST_IMAGES if protocol == "oracle_sequence" else TRAIN_IMAGES
    all_images = [sum(split[label] for label in task.labels) for task in run.tasks]
    tested = [len(run.data.test(task)) for task in run.tasks]
    if protocol == "oracle_sequence":
        assert tested == all_images
    else:
        trained = [len(run.data.train(task)) for task in run.tasks]
        assert [a + b for a, b in zip(tested, trained, strict=True)] == all_images
    n_tests = range(len(run.tasks), 0, -1)
    assert counts.tested == sum(n * count for n, count in zip(n_tests, tested, strict=True)) > 0
    assert counts.trained == sum(run.data.n_steps(task) for task in run.tasks) * BATCH > 0


def test_settings_of_a_trial_decide_its_steps(run_file):
    plan = plan_of(run_file, "first_k_tasks", space={"optim.epochs": {"int": [1, 6]}})
    one, six = (plan.run_config({"optim.epochs": n}, 0, 0) for n in (1, 6))
    run = check_run(one, 1)
    counts = [count_images(config, run.data, run.tasks) for config in (one, six)]
    assert counts[1].trained == 6 * counts[0].trained and counts[1].tested == counts[0].tested


@pytest.fixture
def start_up_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """The seconds of a launch, without one."""
    monkeypatch.setattr(dry_run, "_start_up_seconds", lambda plan: 18.0)
    return 18.0


def estimate(text: str) -> float:
    """The device-hours in the description of a sweep."""
    return float(text.split("estimate   about ")[1].split()[0])


@pytest.mark.parametrize("method", ["finetune", "zeroshot"])
def test_estimate_times_every_method(run_file, method, start_up_s):
    """must work for a method that trains nothing, too"""
    plan = plan_of(run_file, "oracle_sequence", overrides=[f"method.name={method}"])
    text = describe_sweep(plan)
    assert "if no trial is stopped early" in text and f"({method} " in text
    assert estimate(text) >= 2 * start_up_s / 3600
    assert text.startswith(plan.mark.upper()) and "scored on the test split" in text


def test_estimate_counts_the_start_up_of_every_run(run_file, start_up_s):
    """must count it once per trial, repetition and rank"""
    one = describe_sweep(plan_of(run_file, "first_task"))
    more = {"seeds": [1, 2, 3], "trials": 4, "resources": {"cpus": 2}}
    many = describe_sweep(plan_of(run_file, "first_task", **more))
    assert "start-up of 2 run(s), 18 s each" in one and "start-up of 12 run(s), 18 s each" in many
    assert estimate(one) == pytest.approx(2 * start_up_s / 3600, rel=0.2)
    assert estimate(many) == pytest.approx(12 * 2 * start_up_s / 3600, rel=0.2)


@pytest.mark.slow
def test_start_up_is_measured_by_a_launch(run_file):
    assert 0.5 < dry_run._start_up_seconds(plan_of(run_file, "first_task")) < 300


def test_launch_that_fails_is_explained(run_file, monkeypatch):
    monkeypatch.setattr(dry_run, "launch_command", lambda *words, **options: ["/no/such/file"])
    with pytest.raises(RefusedBySystemError, match="cannot be launched on this machine"):
        dry_run._start_up_seconds(plan_of(run_file, "first_task"))
    monkeypatch.setattr(dry_run, "launch_command", lambda *words, **options: ["false"])
    with pytest.raises(RefusedBySystemError, match="ended with 1: no message; start one with"):
        dry_run._start_up_seconds(plan_of(run_file, "first_task"))


def test_estimate_rests_on_finished_trials_if_there_are_any(run_file):
    plan = plan_of(run_file, "first_task")
    trial = TrialRecord(number=0, parameters={}, status="finished", device_hours=1.5)
    write_record(plan.sweep.output, trial)
    text = describe_sweep(plan)
    assert "about 3 core-hours" in text and "rests on 1 finished trials" in text
