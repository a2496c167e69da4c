"""A hang, a failure and an orphan of a round are found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import DataError
from tests.chaos.comparison import read_run
from tests.chaos.faults import draw_faults
from tests.chaos.injector import unfinished_files
from tests.chaos.processes import Start, send_signal
from tests.chaos.report import tally_all
from tests.chaos.rounds import Reference, Round, run_undisturbed
from tests.chaos.setup import Setup
from tests.chaos.timeline import EventFollower, Position, Timeline


def test_incomplete_snapshots_are_found(tmp_path):
    complete, partial = tmp_path / "task-000-step-000003", tmp_path / "task-000-step-000006"
    for folder in (complete, partial):
        folder.mkdir()
        (folder / "tensors.safetensors").touch()
    (complete / "state.json").touch()
    assert [Path(url).parent.name for url in unfinished_files(str(tmp_path))] == [partial.name]
    (partial / "state.json").touch()
    assert unfinished_files(str(tmp_path)) == set()
    (complete / ".state.json.x.part").touch()
    assert len(unfinished_files(str(tmp_path))) == 1


@dataclass(frozen=True)
class Scripted(Setup):
    """Starts another command instead of the training."""

    command: tuple[str, ...] = ()

    @contextmanager
    def start(self, name: str, number: int) -> Iterator[Start]:
        folder = self.logs / name
        folder.mkdir(exist_ok=True)
        environment = {"PATH": os.environ["PATH"]}
        start = Start(self.command, environment=environment, log=folder / f"{number}.log")
        try:
            yield start
        finally:
            start.kill()


@pytest.fixture
def scripted(tiny_run_config: Path, tmp_path: Path) -> Callable[..., Scripted]:
    config = load_config(tiny_run_config)
    return partial(Scripted, str(tiny_run_config), (), config, str(tmp_path), tmp_path, 2, None)


@pytest.fixture
def reference(finished: Path) -> Reference:
    timeline = Timeline((1, 1, 1), (0.0, 0.0, 0.0), seconds=1.0, startup_seconds=0.0)
    return Reference(timeline, read_run(str(finished)), limit_s=60)


def test_start_that_never_ends_is_a_hang_and_a_difference(scripted, reference):
    faults = draw_faults(1, 1, ["SIGKILL one rank"])
    reference = replace(reference, limit_s=0.2)
    outcome = Round(scripted(("sleep", "600")), reference, 1, faults).run()
    assert outcome.statuses == [None] * 3 and outcome.hangs == 3 and not outcome.is_good
    assert "a finished run is wanted" in outcome.differences[0]
    assert tally_all([outcome]).hangs == 3


@pytest.mark.parametrize("status", [0, 1, 75])
def test_start_that_ends_too_early_by_itself_is_a_failure(scripted, reference, status):
    """must hold for status 0 too, if the run has not finished"""
    setup = scripted(("sh", "-c", f"echo 'error: unknown'; exit {status}"))
    outcome = Round(setup, reference, 1, ()).run()
    assert outcome.failures[0] == f"start 1: status {status}: error: unknown"
    assert outcome.statuses == [status] * 3 and not outcome.is_good


def test_failed_undisturbed_run_ends_the_command(scripted):
    """must be an error at once, since no round could be compared with it"""
    with pytest.raises(DataError, match=r"ended with status 2: error: unknown; correct .*1\.log$"):
        run_undisturbed(scripted(("sh", "-c", "echo 'error: unknown'; exit 2")))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["launcher", "inner_launcher"])
def test_ranks_end_if_a_launcher_dies_before_they_look_for_it(tiny_run_config, tmp_path, victim):
    """must leave no process behind, although the ranks never saw their launcher"""
    config = load_config(tiny_run_config)
    setup = Setup(str(tiny_run_config), (), config, str(tmp_path), tmp_path, ranks=2)
    with setup.start("run", 1) as start:
        seen = start.inner_launcher if victim == "launcher" else start.ranks
        while not seen():
            assert start.wait(0.01) is None, start.log_text
        send_signal(getattr(start, victim)(), signal.SIGKILL)
        assert start.wait_for_all(180) == []
    assert EventFollower(start.events).position == Position(0, 0)
    assert not Path(setup.run_output("run"), "results.json").exists()
