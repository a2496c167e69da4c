"""What the ranks of a run compute together: sums, gathers, shared answers and shared errors."""

from __future__ import annotations

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


def pairwise_sum(items: Sequence[T], value_of: Callable[[T], Tensor]) -> Tensor:
    """Sum of the values of all items: of the first half, plus of the second, each summed likewise.

    Asked for one after another, so that only as many are in memory as items can be halved.
    """
    if len(items) == 1:
        return value_of(items[0])
    middle = len(items) // 2
    return pairwise_sum(items[:middle], value_of) + pairwise_sum(items[middle:], value_of)


def ordered_reduce_scatter(value_X: Tensor, common_X: Tensor) -> Tensor:
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
    total = pairwise_sum(range(world_size), lambda index: received[index])
    result_X = torch.zeros_like(value_X)
    result_X[mine] = (total[: len(result_X[mine])] + common_X[mine]) * world_size
    return result_X


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank; for small things of plain types."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_main(answer: Callable[[], T]) -> T:
    """The result of ``answer`` on rank 0, on every rank; for small values of plain types.

    Raises:
        PipelineError: it failed there; on every rank.
    """
    value = None
    with raise_on_all_ranks():
        if dist.get_rank() == 0:
            value = answer()
    return broadcast_object(value)


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, in rank order; for small things of plain types."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
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
