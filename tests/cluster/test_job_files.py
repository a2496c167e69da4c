"""The shipped job files on a real SLURM: an interrupted job ends with the same results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.events import VARIABLE, read_events
from pipeline.sweep.trial_table import TrialRecord
from tests.chaos.comparison import RunContent, read_run
from tests.launches import RANK, ROOT, SECONDS, TinyRun, environment, event_file
from tests.probes import Held
from tests.services.nodes import wait_until
from tests.services.slurm import ENDED, Slurm

FILE = ROOT / "cluster" / "slurm" / "train.sbatch"
SWEEP_FILE = ROOT / "cluster" / "slurm" / "sweep.sbatch"
TWO_RANKS = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1")
START = "job {number}, start {start}, on n[1-2]\n"
QUICK_END = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # of Ray on a node without its head


class Job:
    """A job of a job file with a configuration; only its resources differ from the file."""

    def __init__(self, slurm: Slurm, folder: Path, file: Path, config: Path) -> None:
        self.slurm, self.log = slurm, folder / "job.log"
        self.output = folder / config.stem  # from RUNS and the name of the configuration
        self.number = slurm.submit(
            *TWO_RANKS, f"--output={self.log}", str(file), str(config),
            folder=ROOT,
            environment=environment() | QUICK_END
            | {
                "RUNS": str(folder),
                VARIABLE: str(event_file(self.log)),
                Held.HOLD: str(folder / "hold"),
            },
        )  # fmt: skip

    def log_text(self, *, start: int = 1) -> str:
        """The log of the job from its ``start``-th start on."""
        text = self.log.read_text() if self.log.exists() else ""
        return "".join(text.partition(START.format(number=self.number, start=start))[1:])

    def wait_for(self, words: str, *, start: int) -> None:
        """Return as soon as the log of that start contains ``words``."""
        wait_until(lambda: words in self.log_text(start=start), timeout_s=2 * SECONDS, every_s=0.01)
        assert words in self.log_text(start=start), self.log_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events ``name`` of rank 0 in all starts so far."""
        events, _ = read_events(event_file(self.log))
        return [event for event in events if event["event"] == name]

    def wait_for_resumption(self, count: int) -> None:
        """Return as soon as ``count`` starts have continued from a snapshot."""
        wait_until(lambda: len(self.events("resumed")) >= count, timeout_s=2 * SECONDS)
        assert len(self.events("resumed")) == count, self.log_text()

    def has_ended(self) -> bool:
        """Whether it is neither running nor in the queue."""
        return self.slurm.job(self.number)["JobState"] in ENDED

    def wait_for_step(self, task: int, step: int) -> None:
        """Return as soon as a start has done this step of a task, both from 0, or a later one."""

        def is_done() -> bool:
            return any((e["task"], e["step"]) >= (task, step) for e in self.events("step"))

        assert wait_until(is_done, timeout_s=2 * SECONDS, every_s=0.05), self.log_text()


@pytest.fixture
def free_slurm(slurm: Slurm) -> Iterator[Slurm]:
    """SLURM; all jobs are cancelled afterwards."""
    yield slurm
    slurm.cancel_all()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interrupted_job_finishes_as_if_undisturbed(
    free_slurm: Slurm, tiny_run: TinyRun, undisturbed: RunContent
):
    """must survive TERM to its batch script, ``scontrol requeue`` and its time limit, in turn"""
    tiny_run.hold_at(0, 3)
    job = Job(free_slurm, tiny_run.folder, FILE, tiny_run.config)
    job.wait_for_step(0, 2)
    free_slurm.do("scancel", "--signal=TERM", "--batch", job.number)
    job.wait_for("goes back to the queue", start=1)

    tiny_run.hold_at(1, 1)
    job.wait_for_step(1, 0)
    free_slurm.do("scontrol", "requeue", job.number)
    job.wait_for("start 3", start=3)

    tiny_run.hold_at(2, 1)
    job.wait_for_step(2, 0)
    # Not --time: a busy machine may take longer to come this far.
    minutes = free_slurm.minutes(job.number) + 2
    free_slurm.do("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    job.wait_for("goes back to the queue", start=3)
    tiny_run.hold.unlink()
    free_slurm.do("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")

    job.wait_for_resumption(3)
    ended = free_slurm.wait(job.number, *ENDED, timeout_s=SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), job.log_text()
    assert job.log_text().count("goes back to the queue") == 2  # the other time SLURM did it
    steps = [(event["task"], event["step"]) for event in job.events("step")]
    assert steps == sorted(set(steps))  # no step is repeated
    read_run(job.output).assert_equals(undisturbed)


def test_cancelled_job_is_not_requeued(free_slurm: Slurm, tiny_run: TinyRun):
    """must hold although it gets the same signals as a job that must be requeued"""
    tiny_run.hold_at(0, 1)
    job = Job(free_slurm, tiny_run.folder, FILE, tiny_run.config)
    job.wait_for("start 1", start=1)
    ranks = wait_until(
        lambda: all(node.processes(RANK) for node in free_slurm.compute), timeout_s=60
    )
    assert ranks
    free_slurm.do("scancel", job.number)
    ended = free_slurm.wait(job.number, *ENDED, timeout_s=SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), job.log_text()


def test_array_is_a_table_of_seeds_and_orders(free_slurm: Slurm, tiny_run: TinyRun):
    """must give each index its own run, and end at once if the table has no such row"""
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
        text = (folder / f"{index}.log").read_text()
        assert ended[index]["ExitCode"] == "0:0", text
        resolved = folder / f"{index}.yaml"
        resolved.write_text(text.partition("\n")[2])
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
    config, output = tmp_path / "tiny_sweep.yaml", tmp_path / "sweep"
    config.write_text(SWEEP.format(output=output, run=tiny_run.config))
    tiny_run.hold_at(1, 0)
    job = Job(free_slurm, tmp_path, SWEEP_FILE, config)

    def is_under_way() -> bool:
        started = list(output.glob("trials/*/run-0/snapshots"))
        return len(started) == 2 and all(node.processes(RANK) for node in free_slurm.compute)

    wait_until(lambda: is_under_way() or job.has_ended(), timeout_s=2 * SECONDS, every_s=0.2)
    assert is_under_way(), job.log_text()
    free_slurm.do("scancel", "--signal=TERM", "--batch", job.number)
    job.wait_for("goes back to the queue", start=1)
    tiny_run.hold.unlink()

    job.wait_for("Running command on head node", start=2)
    ended = free_slurm.wait(job.number, *ENDED, timeout_s=2 * SECONDS)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.log_text()
    logs = [file.read_text() for file in output.glob("trials/*/run-0.log")]
    assert sum("continuing at task 2" in log for log in logs) == 2
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
