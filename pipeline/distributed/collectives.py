"""Collectives over the ranks of a run: sums, gathers, values of rank 0, and errors.

X: any number of parameters in one flat vector.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import PipelineError

T = TypeVar("T")


def sum_over_ranks(value: Tensor) -> Tensor:
    """Elementwise sum of ``value`` over ranks, on every rank; ``value`` does not change."""
    total = value.clone()
    dist.all_reduce(total)
    return total


def gather(value_B: Tensor) -> Tensor:
    """The rows of all ranks in rank order, without gradient; B is equal on all ranks."""
    if dist.get_world_size() == 1:
        return value_B
    parts = [torch.empty_like(value_B) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value_B.contiguous())
    return torch.cat(parts)


def pairwise_sum(items: Sequence[T], value_of: Callable[[T], Tensor]) -> Tensor:
    """Sum of ``value_of(item)``: the sum of the first half plus that of the second, recursively.

    Values are computed one after another; only about log2(number of items) are in memory at once.
    """
    if len(items) == 1:
        return value_of(items[0])
    middle = len(items) // 2
    return pairwise_sum(items[:middle], value_of) + pairwise_sum(items[middle:], value_of)


def ordered_reduce_scatter(value_X: Tensor, common_X: Tensor) -> Tensor:
    """This rank's slice of the sum over ranks of ``value_X``, plus ``common_X``; zeros elsewhere.

    ``common_X`` is equal on all ranks and is added once. The result has shape X and is multiplied
    by the number of ranks: the mean over ranks, which the engine takes, is then the complete sum,
    and it adds only zeros. Ranks are summed pairwise. If the value of each rank is a pairwise sum
    too, and the number of ranks is a power of two, the bits do not depend on the number of ranks.
    """
    world_size, rank = dist.get_world_size(), dist.get_rank()
    if world_size == 1:
        return value_X + common_X
    size = -(-len(value_X) // world_size)
    own = slice(rank * size, (rank + 1) * size)
    sent = F.pad(value_X, (0, size * world_size - len(value_X))).view(world_size, size)
    received = torch.empty_like(sent)  # this rank's slice of each rank's value
    dist.all_to_all_single(received, sent)
    total = pairwise_sum(range(world_size), lambda index: received[index])
    result_X = torch.zeros_like(value_X)
    result_X[own] = (total[: len(result_X[own])] + common_X[own]) * world_size
    return result_X


def broadcast_object(value: Any) -> Any:
    """The value of rank 0, on every rank; for small values of plain types."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_main(work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 only; its result, on every rank; for small values of plain types.

    Raises:
        PipelineError: ``work`` failed; every rank raises it.
    """
    value = None
    with raise_on_all_ranks():
        if dist.get_rank() == 0:
            value = work()
    return broadcast_object(value)


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks in rank order; for small values of plain types."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def place_on_node() -> tuple[int, int]:
    """The place of this rank among the ranks of its machine, and their number; collective."""
    hosts = gather_objects(socket.gethostname())
    rank = dist.get_rank()
    return hosts[:rank].count(hosts[rank]), hosts.count(hosts[rank])


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """At the end of the block every rank raises the first error of any rank.

    Without it the other ranks would wait in their next collective until they time out.

    Raises:
        PipelineError: of the type that the rank raised; the message names the rank.
    """
    own_error: PipelineError | None = None
    try:
        yield
    except PipelineError as error:
        own_error = error
    if not int(sum_over_ranks(torch.tensor(int(own_error is not None)))):
        return
    if own_error and dist.get_world_size() == 1:
        raise own_error
    rank, first = next((r, error) for r, error in enumerate(gather_objects(own_error)) if error)
    raise type(first)(f"rank {rank}: {first}") from own_error
