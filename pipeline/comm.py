"""The ranks of a run: who they are, how they meet, and what they tell each other."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError, LostRankError, PipelineError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among all."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0


def read_world(environment: Mapping[str, str]) -> World:
    """The place that the launcher gave this process; alone if there was none.

    Raises:
        ConfigError: a launcher gave only part of what is needed.
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
    """Join the other ranks for the duration of the block.

    A collective that takes longer than ``timeout_s`` raises on every rank that waits in it. No rank
    leaves the block before all have come to its end: of one that stands still, when others have
    gone, no one would know, and its launcher would wait for it for ever.
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
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed reads it, whoever started the group
        alone = dist.HashStore()
        dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=timeout)
    try:
        yield
        sum_over_ranks(torch.zeros(()))
    except RuntimeError as error:
        if not _is_lost_rank(error):
            raise
        raise LostRankError(
            f"rank {world.rank} lost contact with the others: {_first_line(error)}; "
            "look for what ended or stopped them, then start the same command again to go on"
        ) from error
    finally:
        _destroy_process_group()


def clone_of_world(timeout_s: float) -> dist.ProcessGroup:
    """A further group of all ranks; every rank asks."""
    return dist.new_group(timeout=datetime.timedelta(seconds=timeout_s))


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of ``value`` over ranks, the same on each; ``value`` itself is left as it was."""
    total = value.clone()
    dist.all_reduce(total)
    return total


def gather(value_B: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient; every rank has equally many."""
    if dist.get_world_size() == 1:
        return value_B
    parts = [torch.empty_like(value_B) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value_B.contiguous())
    return torch.cat(parts)


def sum_in_halves(items: Sequence[T], value_of: Callable[[T], Tensor]) -> Tensor:
    """Sum of the values of all items: of the first half, plus of the second, each summed likewise.

    Asked for one after another, so that only as many are in memory as items can be halved.
    """
    if len(items) == 1:
        return value_of(items[0])
    middle = len(items) // 2
    return sum_in_halves(items[:middle], value_of) + sum_in_halves(items[middle:], value_of)


def share_of_sum(value_X: Tensor, common_X: Tensor) -> Tensor:
    """This rank's share, in its place among zeros, of the values of all ranks and ``common_X``.

    ``common_X`` is the same on every rank and enters once. The engine, which averages over ranks,
    puts the whole sum together from shares of this scale, adding only zeros. Ranks are summed in
    halves: if their values are sums in halves too, and the number of ranks is a power of two, the
    bits are those of the sum in halves of everything, on one rank or on many.
    """
    world_size, rank = dist.get_world_size(), dist.get_rank()
    if world_size == 1:
        return value_X + common_X
    share = -(-len(value_X) // world_size)
    mine = slice(rank * share, (rank + 1) * share)
    sent = F.pad(value_X, (0, share * world_size - len(value_X))).view(world_size, share)
    received = torch.empty_like(sent)  # this rank's share of each rank's value
    dist.all_to_all_single(received, sent)
    total = sum_in_halves(range(world_size), lambda index: received[index])
    result_X = torch.zeros_like(value_X)
    result_X[mine] = (total[: len(result_X[mine])] + common_X[mine]) * world_size
    return result_X


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank; for small things of plain types."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def from_main(world: World, answer: Callable[[], T]) -> T:
    """What ``answer`` gives on rank 0, on every rank; for small things.

    Raises:
        PipelineError: it failed there; on every rank.
    """
    value = None
    with faults_shared():
        if world.is_main:
            value = answer()
    return broadcast_object(value)


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, in rank order; for small things of plain types."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def faults_shared() -> Iterator[None]:
    """At the end of the block every rank raises the error that any rank met in it.

    Without it the ranks that are well would wait for the one that is not until they time out.
    """
    fault = None
    try:
        yield
    except PipelineError as error:
        fault = error
    if not int(sum_over_ranks(torch.tensor(int(fault is not None)))):
        return
    if dist.get_world_size() == 1:
        raise fault
    rank, first = next((r, error) for r, error in enumerate(gather_objects(fault)) if error)
    raise type(first)(f"rank {rank}: {first}") from fault


def _destroy_process_group() -> None:
    """Leave the group, by way of DeepSpeed if it was loaded.

    It keeps group handles of its own, with which the next group of this process would not work.
    """
    deepspeed = sys.modules.get("deepspeed.comm")
    owner = deepspeed if deepspeed and deepspeed.is_initialized() else dist
    owner.destroy_process_group()


def _is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed, rather than a computation.

    NCCL's failures have a class of their own; gloo's are told by the source file they name.
    """
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: RuntimeError) -> str:
    """A collective's complaint without the source file in front of it."""
    return str(error).partition("\n")[0].rpartition("] ")[2].strip().rstrip(".")


def _share_cores(world: World) -> None:
    """Divide the cores of a CPU node among its ranks, unless the user has decided."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", world.world_size))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_local))
