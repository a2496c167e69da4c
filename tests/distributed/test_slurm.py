"""A task of ``srun`` finds its place; any other process in a SLURM job runs alone."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from pipeline.distributed.slurm import adopt_step, first_host, meeting_port
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]

BATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "n[3-4]",
    "SLURM_CPUS_PER_TASK": "12",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "n[3-4]",
    "SLURM_PROCID": "13",
    "SLURM_LOCALID": "5",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}


def added(environment: dict[str, str]) -> dict[str, str]:
    """The variables that :func:`adopt_step` adds to an environment."""
    after = dict(environment)
    adopt_step(after)
    assert environment.items() <= after.items()
    return {name: value for name, value in after.items() if name not in environment}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task has no terminal, but the tests may have one."""
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)


def test_task_of_a_step_gets_its_place():
    assert added(STEP) == {
        "RANK": "13",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "5",
        "MASTER_ADDR": "n3",
        "MASTER_PORT": str(meeting_port(4711, 2)),
        "OMP_NUM_THREADS": "12",
    }


def test_task_that_sees_one_gpu_uses_it():
    """must not use number 5 if SLURM shows each task only its own GPU"""
    assert added(STEP | {"CUDA_VISIBLE_DEVICES": "5"})["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(
    "environment",
    [
        {"PATH": "/bin"},
        BATCH,
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        STEP | {"RANK": "0", "WORLD_SIZE": "2"},
        STEP | {"WORLD_SIZE": "2"},  # refused by read_world, not completed
    ],
    ids=[
        "no SLURM",
        "batch script",
        "step of one task",
        "launcher in a step",
        "incomplete launcher",
    ],
)
def test_environment_of_any_other_process_does_not_change(environment):
    assert added(environment) == {}


def test_variables_of_the_user_are_kept():
    chosen = {"MASTER_ADDR": "10.0.0.3", "MASTER_PORT": "4000", "OMP_NUM_THREADS": "1"}
    assert set(added(STEP | chosen)) == {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"])
def test_incomplete_step_is_refused(name):
    """must not run alone: other tasks would write to the same output"""
    incomplete = {key: value for key, value in STEP.items() if key != name}
    with pytest.raises(ConfigError, match=f"SLURM_STEP_NUM_TASKS is 16, but .*{name}.*`srun`"):
        adopt_step(incomplete)


def test_interactive_shell_is_no_task():
    """must hold for ``srun --ntasks=16 --pty bash``: its first task is a shell"""
    script = "import os; from pipeline.distributed.slurm import adopt_step; adopt_step(os.environ);"
    script += "print(os.environ.get('RANK'))"
    keyboard, terminal = pty.openpty()
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PATH": os.environ["PATH"], **STEP},
            cwd=ROOT,
            stdin=stdin,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for stdin in (terminal, subprocess.DEVNULL)
    ]
    os.close(keyboard)
    os.close(terminal)
    assert found == ["None", "13"]


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[3-5,9]", "n3"),
        ("n[003-005],m1", "n003"),
        ("n[9,3]", "n9"),
        ("gpu-a[10-11].site.org,n1", "gpu-a10.site.org"),
        ("rack[2-4]-n[07,09-12]", "rack2-n07"),
        ("login,n[1-2]", "login"),
    ],
)
def test_first_host_of_a_list(nodelist, host):
    assert first_host(nodelist) == host


def test_jobs_of_one_node_have_different_ports():
    """must hold for jobs with near numbers, and stay below the ports that the kernel assigns"""
    for first in (1, 1_175, 4_000_000):
        pairs = list(product(range(first, first + 1_000), range(17)))
        ports = {meeting_port(job, step) for job, step in pairs}
        assert len(ports) == len(pairs)
        assert 10_000 <= min(ports) and max(ports) < 30_000
