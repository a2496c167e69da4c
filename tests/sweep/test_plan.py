"""The tasks and tested images of a trial, and what the best configuration says of its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import TUNED_ON_EVALUATION, Config, dump_config, load_config
from pipeline.errors import ConfigError, DataError, SweepFailedError
from pipeline.sweep.config import SweepConfig, load_sweep
from pipeline.sweep.plan import SweepPlan, load_plan
from pipeline.sweep.sweep import conclude, open_table
from pipeline.sweep.trial_table import TrialRecord
from tests.tiny import build_config

RATE = "optim.learning_rate"


@pytest.fixture
def run_file(tiny_arch, tiny_shards, tmp_path) -> Path:
    config = build_config(
        tiny_arch,
        tiny_shards,
        name="tiny",
        tasks={"class_order": "lamda"},
        method={"name": "finetune"},
        seed=9,
    )
    file = tmp_path / "tiny.yaml"
    file.write_text(dump_config(config))
    return file


def sweep_of(run_file: Path, **settings: Any) -> SweepConfig:
    tree = {
        "run": str(run_file),
        "output": str(run_file.parent / "sweep"),
        "space": {RATE: {"log_uniform": [1e-4, 1e-2]}},
        "k": 2,
        "validation_fraction": 0.34,
    }
    return SweepConfig.model_validate(tree | settings)


def trial_config(plan: SweepPlan, repetition: int = 0) -> Config:
    return plan.run_config({RATE: 0.005}, 7, repetition)


@pytest.mark.parametrize(
    ("protocol", "limit"), [("first_task", 1), ("first_k_tasks", 2), ("oracle_sequence", None)]
)
def test_a_trial_learns_the_tasks_of_its_protocol(run_file, protocol, limit):
    plan = load_plan(sweep_of(run_file, protocol=protocol))
    config = trial_config(plan)
    assert config.tasks.limit == limit and plan.n_tasks == (limit or 3)
    assert config.optim.learning_rate == 0.005
    assert config.output.endswith("sweep/trials/007/run-0")


def test_only_the_oracle_is_scored_on_test_images_and_says_so_everywhere(run_file):
    for protocol in ("first_task", "first_k_tasks", "oracle_sequence"):
        plan = load_plan(sweep_of(run_file, protocol=protocol))
        config = trial_config(plan)
        best = plan.best_config(TrialRecord(number=0, parameters={RATE: 0.002}), [TRIAL])
        is_oracle = protocol == "oracle_sequence"
        assert config.evaluation.split == ("test" if is_oracle else "validation")
        assert config.data.validation_fraction == (0 if is_oracle else 0.34)
        for each in (config, best):
            assert (each.tuning.note == TUNED_ON_EVALUATION) == is_oracle
        assert (plan.mark == TUNED_ON_EVALUATION) == is_oracle


TRIAL = TrialRecord(number=1, parameters={}, device_hours=0.5)


def test_the_best_configuration_is_the_reported_run_and_states_its_cost(run_file):
    plan = load_plan(sweep_of(run_file))
    winner = TrialRecord(number=0, parameters={RATE: 0.002}, device_hours=1.25)
    best = plan.best_config(winner, [winner, TRIAL])
    run = load_config(run_file)
    assert best.optim == run.optim.model_copy(update={"learning_rate": 0.002})
    assert (best.data, best.tasks, best.seed) == (run.data, run.tasks, run.seed)
    assert best.evaluation.exclude_tasks == 2 and best.evaluation.split == "test"
    assert (best.tuning.trials, best.tuning.device_hours) == (2, 1.75)


def test_tasks_of_the_trials_may_stay_in_the_report_on_request(run_file):
    plan = load_plan(sweep_of(run_file, exclude_from_report=False, k=3))
    assert plan.best_config(TRIAL, [TRIAL]).evaluation.exclude_tasks == 0


def test_transfer_reports_another_run_with_the_settings_found(run_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(f"base: {run_file.name}\nname: other\noptim: {{epochs: 5}}\n")
    plan = load_plan(sweep_of(run_file, protocol="transfer", report=str(other)))
    config, best = trial_config(plan), plan.best_config(TRIAL, [TRIAL])
    assert (config.optim.epochs, config.tasks.limit) == (2, None)
    assert config.evaluation.split == "validation"
    assert (best.optim.epochs, best.name) == (5, "other_tuned")
    assert best.evaluation.exclude_tasks == 0


def test_repetitions_are_all_seeds_in_all_orders_of_classes(run_file):
    plan = load_plan(sweep_of(run_file, seeds=[1, 2], class_orders=[5, 6]))
    configs = [trial_config(plan, repetition) for repetition in range(4)]
    assert [(c.seed, c.tasks.order_seed) for c in configs] == [(1, 5), (2, 5), (1, 6), (2, 6)]
    assert len({config.output for config in configs}) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"space": {RATE: {"uniform": [-1.0, 1.0]}}}, "greater than 0, found -1.0"),
        ({"space": {"optim.rate": {"uniform": [0.1, 1.0]}}}, "optim.rate is not a known key"),
        ({"space": {"method.name": {"choice": ["finetune", "l3p"]}}}, "'l3p' is not a method"),
        (
            {"space": {"method.options.finetune.depht": {"int": [1, 2]}}},
            "depht is not a known key",
        ),
        ({"space": {"data.global_batch": {"int": [1, 8]}}, "resources": {"cpus": 2}}, "global_bat"),
        ({"run": "nowhere.yaml"}, "nowhere.yaml: no such configuration file"),
        ({"overrides": ["optim.epocs=2"]}, "did you mean 'epochs'"),
        (
            {"overrides": ["tasks.class_order=natural"], "class_orders": [1]},
            "'lamda' and 'mammoth' have a seed",
        ),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_it_starts(run_file, settings, words):
    with pytest.raises(ConfigError, match=words):
        load_plan(sweep_of(run_file, **settings))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: a.yaml\n", "space is missing"),
        ("run: a.yaml\nspace: {a: {}}\ntrails: 3\n", "did you mean 'trials'"),
        ("run: a.yaml\nspace: {a: {}}\nprotocol: transfer\n", "'transfer' needs"),
        ("run: a.yaml\nspace: {a: {}}\nreport: b.yaml\n", "'first_k_tasks' and report is"),
        ("run: a.yaml\nspace: {a: {}}\nseeds: [1, 1]\n", "lists a value twice"),
    ],
)
def test_errors_of_a_sweep_file_are_those_of_a_run_file(tmp_path, text, words):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_sweep(tmp_path / "sweep.yaml")


def test_a_sweep_is_resumed_only_as_itself_and_only_on_request(run_file):
    """must compare the settings that decide the trials, not their number nor the machine"""
    open_table(load_plan(sweep_of(run_file)), resume=False, watch=print)
    with pytest.raises(ConfigError, match="has a sweep; add --resume"):
        open_table(load_plan(sweep_of(run_file)), resume=False, watch=print)
    for same in ({}, {"trials": 50, "max_concurrent": 7, "resources": {"cpus": 2}}):
        open_table(load_plan(sweep_of(run_file, **same)), resume=True, watch=print)
    for other in ({"seeds": [2]}, {"k": 1}, {"overrides": ["optim.epochs=3"]}):
        with pytest.raises(ConfigError, match="has another sweep: its "):
            open_table(load_plan(sweep_of(run_file, **other)), resume=True, watch=print)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_settings_of_a_sweep_are_refused_in_one_sentence(run_file, text):
    plan = load_plan(sweep_of(run_file))
    open_table(plan, resume=False, watch=print)
    storage.write_atomically(storage.join(plan.sweep.output, "sweep.json"), text.encode())
    with pytest.raises(DataError, match=r"sweep.json: is no.* JSON.*; restore it from a copy"):
        open_table(plan, resume=True, watch=print)


def test_parameters_that_do_not_fit_together_are_a_refused_trial(run_file):
    """must not end the sweep, as no end of the space has shown it"""
    plan = load_plan(sweep_of(run_file))
    assert len(plan.trial_spec(3, {RATE: 0.005})["runs"]) == 1
    refused = plan.trial_spec(3, {RATE: -0.005})
    assert refused["runs"] == [] and "greater than 0" in refused["refused"]


def test_sweep_whose_trials_all_failed_ends_with_their_most_common_reason(run_file):
    plan = load_plan(sweep_of(run_file))
    table = open_table(plan, resume=False, watch=lambda record: None)
    for number, reason in enumerate(["the loss is nan", "out of memory", "out of memory"]):
        table.begin(number, {RATE: 0.001})
        table.end(number, "failed", reason=reason)
    with pytest.raises(SweepFailedError, match="none of 3 trials .*; 2 of them: out of memory"):
        conclude(plan, table)
    assert SweepFailedError.exit_status == 1
