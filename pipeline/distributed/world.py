"""The ranks of a run: the place of this process among them, and their process group."""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.distributed.collectives import gather_objects, sum_over_ranks
from pipeline.errors import ConfigError, LostRankError


@dataclass(frozen=True)
class World:
    """The place of this process among all ranks of a run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and writes for all."""
        return self.rank == 0


def read_world(environment: Mapping[str, str]) -> World:
    """The place that the launcher gave this process; rank 0 of 1 without a launcher.

    Raises:
        ConfigError: some variables of a launcher are set, and others are missing or wrong.
    """
    if ("RANK" in environment) != ("WORLD_SIZE" in environment):
        raise ConfigError(
            "the launcher set only one of RANK and WORLD_SIZE; start with `deepspeed`, `torchrun` "
            "or `srun`, or unset both for one process"
        )
    rank, world_size = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
    local_rank = _number(environment, "LOCAL_RANK", 0)
    if rank >= world_size:
        raise _wrong(f"RANK is {rank} and WORLD_SIZE is {world_size}; it must be less")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return World(rank, world_size, local_rank, device_of_rank(local_rank, n_gpus, visible))


def device_of_rank(local_rank: int, n_gpus: int, visible: str | None) -> torch.device:
    """GPU number ``local_rank`` of the ``n_gpus`` that a process sees; the CPU if it sees none.

    ``visible`` is its CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: this node has more ranks than GPUs, or fewer GPUs than the variable names.
    """
    if not n_gpus:
        return torch.device("cpu")
    named = [name for name in (visible or "").split(",") if name]
    if len(named) > n_gpus:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is {visible!r} and CUDA shows only {n_gpus} of these GPUs; name "
            "GPUs of this node (`nvidia-smi -L` lists them)"
        )
    if local_rank >= n_gpus:
        shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise _wrong(
            f"LOCAL_RANK is {local_rank} and this process sees {n_gpus} GPU(s){shown}; start one "
            "rank for each GPU"
        )
    return torch.device("cuda", local_rank)


def sharing_problem(gpus: Sequence[str]) -> str | None:
    """Why ranks with these ``gpus`` cannot train together: two have the same one; or None.

    ``gpus[rank]`` is a name that no GPU of another node has.
    """
    first: dict[str, int] = {}
    for rank, gpu in enumerate(gpus):
        if gpu in first:
            return (
                f"ranks {first[gpu]} and {rank} have the same GPU {gpu}; start one rank for each "
                "GPU, and give each its own CUDA_VISIBLE_DEVICES or LOCAL_RANK"
            )
        first[gpu] = rank
    return None


def ranks_on_this_node(environment: Mapping[str, str], world_size: int) -> int:
    """The number of ranks here, as the launcher says; at most ``world_size``, else that."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):  # of torchrun, of DeepSpeed
        if environment.get(name, "").isdigit():
            return max(1, min(world_size, int(environment[name])))
    nodes = environment.get("SLURM_STEP_NUM_NODES", "1")
    return -(-world_size // max(1, int(nodes))) if nodes.isdigit() else world_size


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    """The whole number in a variable of the launcher."""
    text = environment.get(name, str(default))
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or (name == "WORLD_SIZE" and not int(text)):
        raise _wrong(f"{name} is {text!r}, not a number of ranks")
    return int(text)


def _check_meeting(environment: Mapping[str, str]) -> None:
    """Check that the ranks know where they meet."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise _wrong(f"RANK and WORLD_SIZE are set, but not {' and '.join(missing)}")
    port = environment["MASTER_PORT"]
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise _wrong(f"MASTER_PORT is {port!r}, not a port from 1 to 65535")


def _wrong(problem: str) -> ConfigError:
    """The error for a variable of a launcher; often it was left in the shell by an earlier one."""
    return ConfigError(
        f"the launcher's environment: {problem}; start with `deepspeed`, `torchrun` or `srun`, or "
        "unset RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for one process"
    )


@contextmanager
def process_group(world: World, *, timeout_s: float) -> Iterator[None]:
    """A process group of all ranks for the duration of the block.

    A collective that takes longer than ``timeout_s`` seconds raises on every rank that waits in it.
    No rank leaves the block before all reach its end. If one hangs there, the others notice; else
    its launcher would wait for it for ever.

    Raises:
        ConfigError: the ranks cannot meet with these variables of the launcher, or share a GPU.
        LostRankError: another rank died, hangs or cannot be reached.
    """
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(world.device)
    else:
        _share_cores(world)
    _join(world, "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout_s)
    try:
        if on_gpu:
            _check_own_gpu(world.device)
        yield
        sum_over_ranks(torch.zeros(()))
    except RuntimeError as error:
        if not _is_lost_rank(error):
            raise
        raise LostRankError(
            f"rank {world.rank} lost contact with the others: {_first_line(error)}; "
            "find out what ended or stopped them, then start the same command again to continue"
        ) from error
    finally:
        _destroy_process_group()


def _join(world: World, backend: str, timeout_s: float) -> None:
    """Meet the other ranks.

    Raises:
        ConfigError: the variables for the meeting are missing or wrong, or the port is in use.
        LostRankError: the others did not come in time.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    if "RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed reads it
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch exports it, undeclared
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    _check_meeting(os.environ)
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:  # dist.DistError is a RuntimeError
        cause = _first_line(error)
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ConfigError(
                f"rank {world.rank} cannot listen at {place} (MASTER_ADDR, MASTER_PORT): the port "
                "is in use; give a free one, e.g. `deepspeed --master_port`, or end the other run"
            ) from error
        raise LostRankError(
            f"rank {world.rank} of {world.world_size} did not meet the others at {place} "
            f"(MASTER_ADDR, MASTER_PORT): {cause}; start every rank within engine.timeout_s "
            f"({timeout_s:g} s) and check that each node can reach that address"
        ) from error


def _check_own_gpu(device: torch.device) -> None:
    """Check that no other rank has the GPU of this one.

    Raises:
        ConfigError: one has.
    """
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    problem = sharing_problem(gather_objects(uuid))
    if problem:
        raise ConfigError(problem)


def new_world_group(timeout_s: float) -> dist.ProcessGroup:
    """A further process group of all ranks; a collective call, made on every rank."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)  # every rank is a member
    return group


def _destroy_process_group() -> None:
    """Leave the process group, through DeepSpeed if it is in use.

    DeepSpeed keeps its own handles of groups. A later group of this process would fail with them.
    """
    deepspeed = sys.modules.get("deepspeed.comm")
    owner = deepspeed if deepspeed and deepspeed.is_initialized() else dist
    owner.destroy_process_group()


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed, not a computation.

    Errors of NCCL have their own class; errors of gloo name a source file of gloo.
    """
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: Exception) -> str:
    """The message of a failed collective, without the source file in front of it."""
    return str(error).partition("\n")[0].rpartition("] ")[2].strip().rstrip(".")


def _share_cores(world: World) -> None:
    """Divide the cores of a CPU node among its ranks, unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    n_local = _number(os.environ, "LOCAL_WORLD_SIZE", world.world_size) or 1
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_local))
