"""The job files, as they are shipped, on a real SLURM: what is interrupted is finished the same."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launches import RANK, ROOT, SECONDS, Science, TinyRun, environment, science
from tests.services.nodes import wait_until
from tests.services.slurm import Slurm

FILE = ROOT / "cluster" / "slurm" / "train.sbatch"
TWO_RANKS = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1")


class Job:
    """``train.sbatch`` with the tiny run, submitted with these options of ``sbatch``."""

    def __init__(self, slurm: Slurm, run: TinyRun, *options: str) -> None:
        self.slurm, self.log = slurm, run.folder / "job.log"
        self.output = run.folder / run.config.stem  # RUNS and the configuration's name make it
        self.number = slurm.submit(
            *TWO_RANKS, *options, f"--output={self.log}", str(FILE), str(run.config),
            folder=ROOT, environment=environment() | {"RUNS": str(run.folder)},
        )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything that all starts of the job have said."""
        return self.log.read_text() if self.log.exists() else ""

    def hold(self, words: str) -> list[int]:
        """Stop every rank, without its knowing, as soon as the job has said ``words``.

        A run that takes but seconds could else be over before SLURM interrupts it.
        """
        assert wait_until(lambda: words in self.said, timeout_s=SECONDS, every_s=0.01), self.said
        return [rank for node in self.slurm.compute for rank in node.signal(signal.SIGSTOP, RANK)]

    def let_go(self) -> None:
        """Undo :meth:`hold`."""
        for node in self.slurm.compute:
            node.signal(signal.SIGCONT, RANK)

    def assert_finishes_as(self, undisturbed: Science) -> None:
        """must complete after restarts, each of which goes on where the last start was stopped"""
        states = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
        job = self.slurm.wait(self.number, *states, timeout_s=SECONDS)
        assert job["JobState"] == "COMPLETED", self.said
        assert int(job["Restarts"]) >= 1
        assert (
            len(re.findall("^job .* start ", self.said, re.MULTILINE)) == int(job["Restarts"]) + 1
        )
        assert self.said.count("task 1/3 epoch 1/2 step 1/") == 1, self.said
        science(self.output).assert_equals(undisturbed)


@pytest.fixture
def free_slurm(slurm: Slurm) -> Iterator[Slurm]:
    """SLURM, which is freed of all jobs afterwards."""
    yield slurm
    slurm.cancel_all()


def awaits(pid: int, number: signal.Signals) -> bool:
    """Whether a process will be told of a signal as soon as it runs again."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = re.findall(r"^S(?:ig|hd)Pnd:\s*(\w+)", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in pending)


@pytest.mark.slow
def test_requeued_job_finishes_as_if_undisturbed(
    free_slurm: Slurm, tiny_run: TinyRun, undisturbed: Science
):
    job = Job(free_slurm, tiny_run)
    assert len(job.hold("task 2/3")) == 2
    done = free_slurm.run("scontrol", "requeue", job.number)  # wakes them and sends SIGTERM
    assert done.returncode == 0, done.stdout
    job.assert_finishes_as(undisturbed)


@pytest.mark.slow
def test_job_at_its_time_limit_finishes_as_if_undisturbed(
    free_slurm: Slurm, tiny_run: TinyRun, undisturbed: Science
):
    """must be warned by --signal, which comes up to half a minute early, and requeue itself"""
    job = Job(free_slurm, tiny_run, "--time=1", "--signal=USR2@10")
    ranks = job.hold("task 2/3")
    assert len(ranks) == 2
    warned = wait_until(lambda: all(awaits(rank, signal.SIGUSR2) for rank in ranks), timeout_s=90)
    assert warned, job.said
    job.let_go()
    job.assert_finishes_as(undisturbed)
    assert "goes back to the queue" in job.said


def test_array_index_beyond_the_table_is_refused(free_slurm: Slurm, tiny_run: TinyRun):
    """must end at once with the status of a mistake, not in the queue"""
    seeds = {"SEEDS": "1 2", "ORDERS": "1993 7"}
    number = free_slurm.submit(
        *TWO_RANKS, "--array=4", f"--output={tiny_run.folder}/job.log", str(FILE), "tiny.yaml",
        folder=ROOT, environment=environment() | seeds,
    )  # fmt: skip
    job = free_slurm.wait(number, "FAILED", timeout_s=60)
    assert job["ExitCode"] == "2:0"
    assert "2 SEEDS × 2 ORDERS" in (tiny_run.folder / "job.log").read_text()
