"""The ranks of a run: the place of this process among them, and their process group."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.distributed.collectives import sum_over_ranks
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
        ConfigError: only one of RANK and WORLD_SIZE is set.
    """
    rank, world_size = environment.get("RANK"), environment.get("WORLD_SIZE")
    if (rank is None) != (world_size is None):
        raise ConfigError(
            "the launcher set only one of RANK and WORLD_SIZE; start with `deepspeed`, `torchrun` "
            "or `srun`, or unset both for one process"
        )
    local_rank = int(environment.get("LOCAL_RANK", 0))
    use_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    return World(int(rank or 0), int(world_size or 1), local_rank, device)


@contextmanager
def process_group(world: World, *, timeout_s: float) -> Iterator[None]:
    """A process group of all ranks for the duration of the block.

    A collective that takes longer than ``timeout_s`` seconds raises on every rank that waits in it.
    No rank leaves the block before all reach its end. If one hangs there, the others notice; else
    its launcher would wait for it for ever.

    Raises:
        LostRankError: another rank died, hangs or cannot be reached.
    """
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(world.device)
    else:
        _share_cores(world)
    timeout = datetime.timedelta(seconds=timeout_s)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed reads it
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch exports it, undeclared
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    try:
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


def _first_line(error: RuntimeError) -> str:
    """The message of a failed collective, without the source file in front of it."""
    return str(error).partition("\n")[0].rpartition("] ")[2].strip().rstrip(".")


def _share_cores(world: World) -> None:
    """Divide the cores of a CPU node among its ranks, unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", world.world_size))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_local))
