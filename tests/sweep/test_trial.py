"""A trial resumes runs that lost a process, and gives up those whose settings are at fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import pytest

from pipeline.errors import PipelineError, Preempted, TakenOverError
from pipeline.launching.command import Devices
from pipeline.launching.run_process import Ended
from pipeline.output.results import RunResults
from pipeline.sweep.actor import devices_of
from pipeline.sweep.config import ResourceSettings
from pipeline.sweep.trial import Trial, TrialFailed
from tests.stages import build_results, stage
from tests.tiny import build_config


class FakeRun:
    """A run that finishes one task in each launch, then ends in the given way."""

    def __init__(self, results: list[int], ended: Ended) -> None:
        self._results, self._ended = results, ended
        self.stopped = 0

    def is_running(self) -> bool:
        return False

    def end(self) -> Ended:
        self._results[0] = min(3, self._results[0] + 1)
        return self._ended

    def stop(self) -> None:
        self.stopped += 1

    def keep_log(self, url: str) -> None:
        assert self.stopped, "a log is kept once nothing writes to it"


@pytest.fixture
def tasks_done(monkeypatch) -> list[int]:
    """The number of tasks in the results of the run; a test may change it."""
    done = [0]

    def read(output: str) -> RunResults:
        stages = [stage([1] * (n + 1), [2] * (n + 1)) for n in range(done[0])]
        return build_results(stages).build()

    monkeypatch.setattr("pipeline.sweep.trial.read_results", read)
    return done


def trial(
    tasks_done: list[int],
    *ends: Ended,
    losses: int = 3,
    stop: bool = False,
    check_owner: Callable[[], None] = lambda: None,
) -> Trial:
    config = build_config("local-dir:x", "x", output="memory://trial")
    runs = iter([FakeRun(tasks_done, ended) for ended in ends])

    @contextmanager
    def launch(config: object):
        yield next(runs)

    return Trial(
        [config],
        n_tasks=3,
        launch=launch,
        must_stop=lambda: stop,
        check_owner=check_owner,
        node_losses=losses,
    )


LOST, BROKEN = Ended("a process was killed", lost=True), Ended("no such thing")


def test_a_run_that_lost_a_process_resumes_and_reports_each_task_once(tasks_done):
    reports = list(trial(tasks_done, LOST, LOST, Ended(None)).reports())
    assert [report.tasks_done for report in reports] == [1, 2, 3]


def test_a_run_whose_settings_are_at_fault_is_not_launched_again(tasks_done):
    reports = trial(tasks_done, LOST, BROKEN).reports()
    assert [next(reports).tasks_done, next(reports).tasks_done] == [1, 2]
    with pytest.raises(TrialFailed, match="no such thing"):
        next(reports)


def test_losses_are_tolerated_as_often_as_node_losses_says(tasks_done):
    with pytest.raises(TrialFailed, match="one loss too many, see node_losses"):
        list(trial(tasks_done, LOST, LOST, losses=1).reports())


def test_a_run_that_ends_with_too_few_tasks_is_not_launched_for_ever(tasks_done):
    with pytest.raises(TrialFailed, match="the finished run has 1 tasks, and 3 were expected"):
        list(trial(tasks_done, Ended(None)).reports())


def test_a_finished_run_is_not_launched_again(tasks_done):
    tasks_done[0] = 3
    assert len(list(trial(tasks_done).reports())) == 3


def test_a_trial_that_must_stop_launches_nothing(tasks_done):
    with pytest.raises(Preempted):
        list(trial(tasks_done, stop=True).reports())


def test_a_trial_of_an_earlier_start_launches_nothing_more(tasks_done):
    """must leave the run to the later start, which has ended its process"""

    def check_owner() -> None:
        if tasks_done[0]:
            raise TakenOverError("another start of the command has taken over")

    reports = trial(tasks_done, LOST, LOST, check_owner=check_owner).reports()
    assert next(reports).tasks_done == 1
    with pytest.raises(TakenOverError):
        next(reports)
    assert tasks_done == [1]


def test_two_trials_on_a_host_use_the_devices_that_ray_assigned_to_each():
    resources = ResourceSettings(gpus=2, cpus=8)
    one, two = (devices_of(names, resources) for names in (["0", "3"], ["1", "2"]))
    assert set(one.gpus).isdisjoint(two.gpus) and one == Devices(2, (0, 3), 4)
    assert devices_of([], ResourceSettings(cpus=2)) == Devices(2)
    with pytest.raises(PipelineError, match="deepspeed takes numbers only"):
        devices_of(["GPU-4c0ffee"], resources)
