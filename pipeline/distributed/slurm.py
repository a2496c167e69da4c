"""The place of a task of SLURM's ``srun``, as the variables that other launchers set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from pipeline.errors import ConfigError

# Below the ports that the kernel assigns, above those of known services.
_FIRST_PORT, _N_PORTS = 10_000, 20_000
_STEPS_PER_JOB = 17  # each has its own port; an odd number, so that all ports are used


def adopt_step(environment: MutableMapping[str, str]) -> None:
    """Set ``RANK``, ``WORLD_SIZE`` and so on in ``environment`` from the variables of ``srun``.

    DeepSpeed and torch read only those. Nothing is set if a launcher has set them, in a batch
    script without ``srun``, in a step of one task, or in an interactive shell.

    Raises:
        ConfigError: a variable of SLURM is missing or not a number.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment or os.isatty(0):
        return
    place = step_place(environment)
    # A variable that the user has set, such as MASTER_ADDR, is kept.
    environment.update({name: value for name, value in place.items() if name not in environment})


def step_place(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that ``torchrun`` would set for this task; empty in a step of one task.

    Raises:
        ConfigError: a variable of SLURM is missing or not a number.
    """
    # Only srun sets this variable; SLURM_NTASKS and SLURM_PROCID are also set in a batch script.
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
            f"SLURM's environment: SLURM_STEP_NUM_TASKS is {n_tasks}, but another variable of the "
            f"step is missing or not a number: {error}; start with `srun`, or unset "
            "SLURM_STEP_NUM_TASKS for one process"
        ) from None
    # With --gpus-per-task a task sees one GPU only, as number 0.
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible and "," not in visible:
        place["LOCAL_RANK"] = "0"
    return place


def first_host(nodelist: str) -> str:
    """The first host of a list in the notation of SLURM: ``n003`` of ``n[003-005,009],m1``."""
    opened = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodelist)
    return opened.partition(",")[0]


def meeting_port(job: int, step: int) -> int:
    """The port at which the tasks of a step meet, in [10000, 30000).

    Jobs that share a node have numbers that differ by less than a thousand; their first 17 steps
    get different ports.
    """
    return _FIRST_PORT + (job * _STEPS_PER_JOB + step % _STEPS_PER_JOB) % _N_PORTS
