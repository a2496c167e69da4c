"""The job files, as they are shipped, on a real SLURM: what is interrupted is finished the same."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.sweep.trial_table import TrialRecord
from tests.launches import RANK, ROOT, SECONDS, Science, TinyRun, environment, science
from tests.services.nodes import wait_until
from tests.services.slurm import ENDED, Slurm

FILE = ROOT / "cluster" / "slurm" / "train.sbatch"
SWEEP_FILE = ROOT / "cluster" / "slurm" / "sweep.sbatch"
TWO_RANKS = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1")
START = "job {number}, start {start}, on n[1-2]\n"


class Job:
    """A job file with a configuration, in its own words but for its lines on resources."""

    def __init__(self, slurm: Slurm, folder: Path, file: Path, config: Path) -> None:
        self.slurm, self.log = slurm, folder / "job.log"
        self.output = folder / config.stem  # RUNS and the configuration's name make it
        self.number = slurm.submit(
            *TWO_RANKS, f"--output={self.log}", str(file), str(config),
            folder=ROOT, environment=environment() | {"RUNS": str(folder)},
        )  # fmt: skip

    def said(self, *, start: int = 1) -> str:
        """Everything that the job has said since it was started for the nth time."""
        said = self.log.read_text() if self.log.exists() else ""
        return "".join(said.partition(START.format(number=self.number, start=start))[1:])

    def wait_for(self, words: str, *, start: int) -> None:
        """Return as soon as that start has said ``words``."""
        wait_until(lambda: words in self.said(start=start), timeout_s=2 * SECONDS, every_s=0.01)
        assert words in self.said(start=start), self.said()

    def has_ended(self) -> bool:
        """Whether it is neither running nor in the queue."""
        return self.slurm.job(self.number)["JobState"] in ENDED

    def hold(self, words: str, *, start: int) -> list[int]:
        """Stop every rank, without its knowing, as soon as that start has said ``words``.

        A run that takes but seconds could else be over before SLURM interrupts it.
        """
        self.wait_for(words, start=start)
        held = [rank for node in self.slurm.compute for rank in node.signal(signal.SIGSTOP, RANK)]
        assert len(held) == 2
        return held

    def let_go(self, held: list[int], number: signal.Signals) -> None:
        """Undo :meth:`hold` once all have been sent a signal."""
        told = wait_until(lambda: all(is_told(rank, number) for rank in held), timeout_s=120)
        assert told, (self.slurm.job(self.number), self.said())
        for node in self.slurm.compute:
            node.signal(signal.SIGCONT, RANK)


@pytest.fixture
def free_slurm(slurm: Slurm) -> Iterator[Slurm]:
    """SLURM, which is freed of all jobs afterwards."""
    yield slurm
    slurm.cancel_all()


def is_told(pid: int, number: signal.Signals) -> bool:
    """Whether a process that was stopped will hear a signal once it runs, or runs already.

    SLURM wakes those that it warns, and srun does not those that it forwards a signal to.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = re.findall(r"^S(?:ig|hd)Pnd:\s*(\w+)", status, re.MULTILINE)
    is_pending = any(int(mask, 16) >> (number - 1) & 1 for mask in pending)
    return is_pending or not re.search(r"^State:\s*T", status, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupted_job_finishes_as_if_undisturbed(
    free_slurm: Slurm, tiny_run: TinyRun, undisturbed: Science
):
    """must survive TERM to its batch script, ``scontrol requeue`` and its time limit, in turn"""
    job = Job(free_slurm, tiny_run.folder, FILE, tiny_run.config)
    held = job.hold("task 1/3 epoch 2/2", start=1)
    free_slurm.do("scancel", "--signal=TERM", "--batch", job.number)
    job.let_go(held, signal.SIGUSR2)  # which is what the script makes of it

    job.hold("task 2/3", start=2)
    free_slurm.do("scontrol", "requeue", job.number)  # wakes them and sends SIGTERM

    held = job.hold("task 3/3", start=3)
    # Not --time: who knows how long a busy machine takes to come this far?
    minutes = free_slurm.minutes(job.number) + 2
    free_slurm.do("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    job.let_go(held, signal.SIGUSR2)  # two minutes ahead, and up to half a minute earlier
    job.wait_for("goes back to the queue", start=3)
    free_slurm.do("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")

    job.wait_for("task 3/3", start=4)
    ended = free_slurm.wait(job.number, *ENDED, timeout_s=SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), job.said()
    assert job.said().count("goes back to the queue") == 2  # the other time SLURM did it
    assert job.said().count("task 1/3 epoch 1/2 step 1/") == 1  # it never began again
    science(job.output).assert_equals(undisturbed)


def test_job_that_is_cancelled_stays_away(free_slurm: Slurm, tiny_run: TinyRun):
    """must not return to the queue, though it ends by the same signals as one that shall"""
    job = Job(free_slurm, tiny_run.folder, FILE, tiny_run.config)
    job.wait_for("start 1", start=1)
    ranks = wait_until(
        lambda: all(node.processes(RANK) for node in free_slurm.compute), timeout_s=60
    )
    assert ranks
    free_slurm.do("scancel", job.number)
    ended = free_slurm.wait(job.number, *ENDED, timeout_s=SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), job.said()


def test_array_is_a_table_of_seeds_and_orders(free_slurm: Slurm, tiny_run: TinyRun):
    """must give each index a run of its own, and end at once where the table has no such row"""
    folder = tiny_run.folder
    table = {"SEEDS": "5 6", "ORDERS": "1993 7", "RUNS": "runs"}
    number = free_slurm.submit(
        "--nodes=1", *TWO_RANKS[1:], "--array=1,2,4", f"--output={folder}/%a.log",
        str(FILE), str(tiny_run.config), "--print-config",
        folder=ROOT, environment=environment() | table,
    )  # fmt: skip
    ended = {
        index: free_slurm.wait(f"{number}_{index}", *ENDED, timeout_s=SECONDS)
        for index in (1, 2, 4)
    }
    for index, seed, order in ((1, 6, 1993), (2, 5, 7)):
        said = (folder / f"{index}.log").read_text()
        assert ended[index]["ExitCode"] == "0:0", said
        resolved = folder / f"{index}.yaml"
        resolved.write_text(said.partition("\n")[2])
        config = load_config(resolved)
        assert (config.seed, config.tasks.order_seed) == (seed, order)
        assert config.output == f"runs/tiny/{index}"
    assert ended[4]["ExitCode"] == "2:0"
    assert "array index 4: there are 2 SEEDS × 2 ORDERS" in (folder / "4.log").read_text()


SWEEP = """
name: tiny_sweep
output: {output}
run: {run}
space: {{optim.learning_rate: {{log_uniform: [1.0e-3, 1.0e-2]}}}}
trials: 3
protocol: first_k_tasks
k: 2
validation_fraction: 0.4
sampler: {{name: random, seed: 1}}
scheduler: {{name: none}}
resources: {{cpus: 1}}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_requeued_sweep_finishes_without_repeating_a_trial(
    free_slurm: Slurm, tiny_run: TinyRun, tmp_path: Path
):
    """must run its trials on both nodes, stop them on a signal, and resume them afterwards"""
    output, config = tmp_path / "sweep", tmp_path / "tiny_sweep.yaml"
    config.write_text(SWEEP.format(output=output, run=tiny_run.config))
    job = Job(free_slurm, tmp_path, SWEEP_FILE, config)

    def is_under_way() -> bool:
        begun = list(output.glob("trials/*/run-0/snapshots"))
        return len(begun) >= 2 and all(node.processes(RANK) for node in free_slurm.compute)

    wait_until(lambda: is_under_way() or job.has_ended(), timeout_s=2 * SECONDS, every_s=0.2)
    assert is_under_way(), job.said()
    free_slurm.do("scancel", "--signal=TERM", "--batch", job.number)

    job.wait_for("Running command on head node", start=2)
    ended = free_slurm.wait(job.number, *ENDED, timeout_s=2 * SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.said()
    records = [
        TrialRecord.model_validate_json(file.read_text())
        for file in sorted(output.glob("trials/*/trial.json"))
    ]
    assert [(record.status, record.tasks_done) for record in records] == [("finished", 2)] * 3
    assert load_config(output / "best.yaml").optim.learning_rate in {
        record.parameters["optim.learning_rate"] for record in records
    }
    for node in free_slurm.compute:
        assert wait_until(lambda node=node: not node.processes("ray|deepspeed"), timeout_s=60)
