"""The place that SLURM's ``srun`` gave this process, told in the words of the other launchers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from pipeline.errors import ConfigError

# Below the ports that a kernel hands out by itself, above those of known services.
_FIRST_PORT, _N_PORTS = 10_000, 20_000
_STEPS_PER_JOB = 17  # told apart by their ports; odd, so that all ports are in use


def adopt_step(environment: MutableMapping[str, str]) -> None:
    """Write what ``srun`` says into ``environment`` as ``RANK``, ``WORLD_SIZE`` and so on.

    DeepSpeed and torch look for those only. Nothing is written where a launcher already did, in a
    batch script without ``srun``, in a step of one task and in a person's shell.

    Raises:
        ConfigError: SLURM says only part of what is needed.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment or os.isatty(0):
        return
    place = step_place(environment)
    # What the user has set, the place to meet above all, counts more.
    environment.update({name: value for name, value in place.items() if name not in environment})


def step_place(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that ``torchrun`` would have set for this task of a step; {} for one alone.

    Raises:
        ConfigError: SLURM says only part of what is needed.
    """
    # Only srun sets it; in a batch script SLURM_NTASKS and SLURM_PROCID are set nevertheless.
    n_tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if n_tasks == "1":
        return {}
    try:
        place = {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": n_tasks,
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(
                meeting_port(int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"]))
            ),
            "OMP_NUM_THREADS": environment.get("SLURM_CPUS_PER_TASK", "1"),
        }
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"SLURM's environment: SLURM_STEP_NUM_TASKS is {n_tasks}, but of the step's other "
            f"variables one is missing or no number: {error}; start with `srun`, or unset "
            "SLURM_STEP_NUM_TASKS for one process"
        ) from None
    # Given --gpus-per-task, a task sees but one GPU, which is its first.
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible and "," not in visible:
        place["LOCAL_RANK"] = "0"
    return place


def first_host(nodelist: str) -> str:
    """The first host of a list in SLURM's notation: ``n003`` of ``n[003-005,009],m1``."""
    opened = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodelist)
    return opened.partition(",")[0]


def meeting_port(job: int, step: int) -> int:
    """Where the tasks of a step meet, in [10000, 30000).

    Jobs that share a node have numbers less than a thousand apart: no two of their first steps
    share a port.
    """
    return _FIRST_PORT + (job * _STEPS_PER_JOB + step % _STEPS_PER_JOB) % _N_PORTS
