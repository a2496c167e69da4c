"""A run's launch: its devices and no other, a port of its own, an end that is told rightly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.errors import PipelineError, Preempted
from pipeline.launching.run_process import (
    Devices,
    Ended,
    Place,
    hostfile,
    how_it_ended,
    launch_command,
    launch_environment,
    reserved_port,
)
from pipeline.output.results import RunResults
from pipeline.sweep.actor import devices_of
from pipeline.sweep.config import ResourceSettings
from pipeline.sweep.trial import Trial, TrialFailed
from tests.stages import build_results, stage
from tests.tiny import build_config

ROOT = Path(__file__).parents[2]
CONFIG = Path("/private/config.yaml")


def command(*nodes: Devices, node: int = 0) -> list[str]:
    place = Place(nodes, node, "10.0.0.1", 4711)
    return launch_command(CONFIG, place, hostfile=Path("/private/hostfile"))


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_a_run_is_told_its_gpus_by_their_numbers_on_the_node():
    words = command(Devices(2, (5, 7)))
    assert after(words, "--include") == "localhost:5,7"
    assert after(words, "--master_port") == "4711"
    assert not {"--num_gpus", "--num_accelerators"} & set(words), "they ignore which GPUs are ours"


def test_a_run_without_gpus_has_a_rank_for_each_core():
    assert after(command(Devices(3)), "--num_accelerators") == "3"


def test_a_run_on_several_nodes_names_the_devices_of_all_to_each():
    nodes = Devices(2, (0, 3)), Devices(2, (1, 2))
    first, second = command(*nodes), command(*nodes, node=1)
    assert after(second, "--include") == "node-0:0,3@node-1:1,2"
    assert after(second, "--node_rank") == "1" and after(second, "--master_addr") == "10.0.0.1"
    assert "--no_ssh" in second
    assert [a for a, b in zip(first, second, strict=True) if a != b] == ["0"]
    assert hostfile(Place(nodes, 0, "", 1)) == "node-0 slots=4\nnode-1 slots=3\n"
    assert "--include" not in command(Devices(2), Devices(2))


def test_the_environment_of_a_run_holds_its_devices_and_nothing_of_ray():
    before = {
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        "RANK": "3",
        "MASTER_ADDR": "x",
        "RAY_AUTH_TOKEN": "secret",
        "TUNE_ORIG_WORKING_DIR": "/x",
        "AWS_PROFILE": "mine",
    }
    assert launch_environment(before, Devices(2, (2, 3), threads=4)) == {
        "CUDA_VISIBLE_DEVICES": "2,3",
        "OMP_NUM_THREADS": "4",
        "AWS_PROFILE": "mine",
    }
    on_cpu = launch_environment(before, Devices(2))
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == "" and on_cpu["DS_ACCELERATOR"] == "cpu"


def test_two_trials_on_a_host_are_given_what_ray_gave_each():
    resources = ResourceSettings(gpus=2, cpus=8)
    one, two = (devices_of(names, resources) for names in (["0", "3"], ["1", "2"]))
    assert set(one.gpus).isdisjoint(two.gpus) and one == Devices(2, (0, 3), 4)
    assert devices_of([], ResourceSettings(cpus=2)) == Devices(2)
    with pytest.raises(PipelineError, match="deepspeed takes numbers only"):
        devices_of(["GPU-4c0ffee"], resources)


def test_no_two_runs_on_a_host_have_the_same_port(monkeypatch):
    """must hold even where the system offers a port twice"""
    with socket.socket() as probe:
        probe.bind(("", 0))
        offered = probe.getsockname()[1]
    real = socket.socket.getsockname
    offers = iter([offered, offered])
    monkeypatch.setattr("socket.socket.getsockname", lambda self: ("", next(offers, real(self)[1])))
    with reserved_port() as first, reserved_port() as second:
        assert first == offered and second != offered
    offers = iter([offered])
    with reserved_port() as again:
        assert again == offered


@pytest.mark.parametrize(
    ("status", "tail", "ended"),
    [
        (2, "noise\nerror: data.index: gone\nnoise", Ended("data.index: gone")),
        (1, "error: rank 1 lost contact with the others: x", None),
        (75, "error: stopped by SIGUSR2; start again", None),
        (247, "noise", None),
        (0, "noise", None),
        (1, "Traceback\n[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\nx", Ended(
            "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
        )),
        (1, "usage: deepspeed", Ended("exit status 1: usage: deepspeed")),
    ],
)  # fmt: skip
def test_the_end_of_a_run_is_a_fault_of_its_settings_or_a_loss(status, tail, ended):
    """must not believe an exit status of 0 without results: a killed launcher gives it"""
    found = how_it_ended(status, tail, finished=False)
    assert found == ended if ended else found.lost
    assert how_it_ended(status, tail, finished=True) == Ended(None)


TETHER = str(ROOT / "pipeline/launching/end_with_parent.py")
SLEEPER = "import os,time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.fixture
def tethered() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A parent, and the child of the program that it started on a tether."""
    starter = f"import subprocess,sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
    parent = (
        "import os,subprocess,sys\n"
        f"subprocess.run([sys.executable, '-I', {TETHER!r}, str(os.getpid()), "
        f"sys.executable, '-c', {starter!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    yield process, psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate(timeout=30)


def test_a_tethered_program_ends_with_its_parent(tethered):
    """must end with everything that it started, whatever ends the parent"""
    parent, grandchild = tethered
    parent.send_signal(signal.SIGKILL)
    grandchild.wait(30)


def test_a_tethered_program_ends_with_its_tether(tethered):
    _, grandchild = tethered
    program, tether = grandchild.parent(), grandchild.parent().parent()
    assert TETHER in tether.cmdline()
    tether.kill()
    program.wait(30)
    grandchild.kill()


def test_a_tether_gives_the_status_of_its_program():
    words = [sys.executable, "-I", TETHER, str(os.getpid()), sys.executable, "-c"]
    assert subprocess.run([*words, "raise SystemExit(75)"]).returncode == 75
    killed = "import os; os.kill(os.getpid(), 9)"
    assert subprocess.run([*words, killed]).returncode == 128 + 9


def test_a_program_whose_parent_has_gone_is_not_started():
    words = [sys.executable, "-I", TETHER, "1", "/bin/true"]
    if os.getpid() == 1:
        pytest.skip("this is process 1")
    assert subprocess.run(words, capture_output=True).returncode == 1


class FakeRun:
    """A run that finishes one task in each launch, then ends as it was told to."""

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
        assert self.stopped, "a log is taken once nothing writes to it"


@pytest.fixture
def tasks_done(monkeypatch) -> list[int]:
    """How many tasks the run's results hold; a test may change it."""
    done = [0]

    def read(output: str) -> RunResults:
        stages = [stage([1] * (n + 1), [2] * (n + 1)) for n in range(done[0])]
        return build_results(stages).build()

    monkeypatch.setattr("pipeline.sweep.trial.read_results", read)
    return done


def trial(tasks_done: list[int], *ends: Ended, losses: int = 3, stop: bool = False) -> Trial:
    config = build_config("local-dir:x", "x", output="memory://trial")
    runs = iter([FakeRun(tasks_done, ended) for ended in ends])

    @contextmanager
    def launch(config: object):
        yield next(runs)

    return Trial([config], n_tasks=3, launch=launch, must_stop=lambda: stop, losses=losses)


LOST, BROKEN = Ended("a process was killed", lost=True), Ended("no such thing")


def test_a_run_that_lost_a_process_goes_on_and_tells_each_task_once(tasks_done):
    reports = list(trial(tasks_done, LOST, LOST, Ended(None)).reports())
    assert [report.tasks_done for report in reports] == [1, 2, 3]


def test_a_run_with_a_fault_of_its_own_is_not_tried_again(tasks_done):
    reports = trial(tasks_done, LOST, BROKEN).reports()
    assert [next(reports).tasks_done, next(reports).tasks_done] == [1, 2]
    with pytest.raises(TrialFailed, match="no such thing"):
        next(reports)


def test_losses_are_borne_as_often_as_was_said(tasks_done):
    with pytest.raises(TrialFailed, match="once too often, see node_losses"):
        list(trial(tasks_done, LOST, LOST, losses=1).reports())


def test_a_run_that_ends_with_too_few_tasks_is_not_tried_for_ever(tasks_done):
    with pytest.raises(TrialFailed, match="it has 1 tasks, and 3 were expected"):
        list(trial(tasks_done, Ended(None)).reports())


def test_a_finished_run_is_not_launched_again(tasks_done):
    tasks_done[0] = 3
    assert len(list(trial(tasks_done).reports())) == 3


def test_a_trial_that_is_to_stop_starts_nothing(tasks_done):
    with pytest.raises(Preempted):
        list(trial(tasks_done, stop=True).reports())
