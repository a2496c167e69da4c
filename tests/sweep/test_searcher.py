"""Proposals depend on the seed, the number of the trial and known outcomes, on nothing else."""

from __future__ import annotations

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipeline.sweep.config import SamplerSettings, SchedulerSettings
from pipeline.sweep.searcher import Proposer, TrialSearcher
from pipeline.sweep.space import Space, parse_space
from pipeline.sweep.sweep import build_scheduler, replay_trial
from pipeline.sweep.trial_table import TaskReport, TrialRecord

METRIC = "average_incremental_accuracy"
SPACE = {
    "method.name": {"choice": ["finetune", "tppt_vt"]},
    "optim.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "optim.weight_decay": {"uniform": [0, 1], "when": {"method.name": "tppt_vt"}},
}


@pytest.fixture
def space() -> Space:
    return parse_space(SPACE, {"method": {"name": "finetune"}})


def ended(number: int, parameters: dict, *values: float, status: str = "finished") -> TrialRecord:
    """A trial that reported these values, one for each task."""
    reports = [
        TaskReport(
            tasks_done=task + 1,
            repetition=0,
            task=task,
            average_incremental_accuracy=value,
            last_accuracy=value,
            forgetting=None,
            seconds=1.0,
        )
        for task, value in enumerate(values)
    ]
    return TrialRecord(number=number, parameters=parameters, status=status, reports=reports)


def accuracy_of(parameters: dict) -> float:
    """A made-up accuracy."""
    return parameters["optim.learning_rate"] ** 0.5


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_later_start_proposes_the_same_as_the_first(space, sampler):
    """must hold whether the earlier trials ended in this start or in one before"""
    settings = SamplerSettings(name=sampler, seed=3)
    first = Proposer(space, settings, METRIC, trials=12)
    drawn = [first.propose(number) for number in range(6)]
    records = [
        ended(number, parameters, accuracy_of(parameters), status=status)
        for (number, parameters), status in zip(
            enumerate(drawn), ["finished", "stopped", "failed"] * 2, strict=True
        )
    ]
    for record in records:
        first.add_outcome(record)
    later = Proposer(space, settings, METRIC, trials=12)
    for record in records:
        later.add_outcome(record)
    assert [later.propose(n) for n in (6, 7)] == [first.propose(n) for n in (6, 7)]


def test_random_proposals_do_not_depend_on_other_trials(space):
    settings = SamplerSettings(name="random", seed=3)
    ordered, alone = (Proposer(space, settings, METRIC, trials=5) for _ in range(2))
    drawn = [ordered.propose(number) for number in range(5)]
    assert alone.propose(4) == drawn[4]
    assert len({parameters["optim.learning_rate"] for parameters in drawn}) == 5
    other = Proposer(space, SamplerSettings(name="random", seed=4), METRIC, trials=5)
    assert other.propose(4) != drawn[4]


def test_tpe_learns_from_trials_that_ended(space):
    """must propose better settings than random search once it knows some"""
    proposer = Proposer(space, SamplerSettings(name="tpe", seed=1), METRIC, trials=30)
    for number in range(30):
        parameters = proposer.propose(number)
        proposer.add_outcome(ended(number, parameters, accuracy_of(parameters)))
    late = [proposer.propose(number)["optim.learning_rate"] for number in range(30, 40)]
    assert sorted(late)[5] > 3e-3, "the median of log-uniform draws is 1e-3"


def test_trials_with_known_parameters_come_first_and_under_their_number(space):
    known = {
        4: {"method.name": "finetune", "optim.learning_rate": 2e-3},
        2: {"method.name": "tppt_vt", "optim.learning_rate": 1e-3, "optim.weight_decay": 0.5},
    }
    stop = []
    searcher = TrialSearcher(
        Proposer(space, SamplerSettings(), METRIC, trials=6),
        known=known,
        new=[5, 6],
        begin=lambda number, parameters: {"number": number, "parameters": parameters},
        is_over=lambda: bool(stop),
    )
    specs = [searcher.suggest(str(n)) for n in range(3)]
    assert [each["number"] for each in specs] == [2, 4, 5]
    assert [each["parameters"] for each in specs[:2]] == [known[2], known[4]]
    stop.append(True)
    assert searcher.suggest("x") == Searcher.FINISHED


def result(tasks_done: int, value: float) -> dict:
    return {"tasks_done": tasks_done, "value": value}


class Named:
    """The part of a trial that a scheduler reads."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


@pytest.mark.parametrize("known", [True, False])
def test_weak_trials_are_stopped_against_those_of_earlier_starts_too(known):
    """must stop a trial that is worse than the better half at the same task, and not earlier"""
    scheduler = build_scheduler(SchedulerSettings(name="asha", grace_tasks=2), 4)
    if known:
        for number, values in enumerate([(0.9, 0.8, 0.8), (0.9, 0.7, 0.6)]):
            record = ended(number, {}, *values, status="stopped")
            replay_trial(scheduler, record, METRIC)
    trial = Named("new")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, result(1, 0.1)) == TrialScheduler.CONTINUE
    decision = scheduler.on_trial_result(None, trial, result(2, 0.74))
    assert decision == (TrialScheduler.STOP if known else TrialScheduler.CONTINUE)


def test_grace_is_never_longer_than_the_trial():
    scheduler = build_scheduler(SchedulerSettings(name="asha", grace_tasks=5), 3)
    trial = Named("only")
    scheduler.on_trial_add(None, trial)
    decisions = [scheduler.on_trial_result(None, trial, result(n, 0.5)) for n in (1, 2, 3)]
    assert decisions == [TrialScheduler.CONTINUE] * 2 + [TrialScheduler.STOP]
