"""Collectives give every rank the same values, and sums the same bits on any number of ranks."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.distributed.collectives import (
    gather,
    gather_objects,
    on_main,
    ordered_reduce_scatter,
    pairwise_sum,
    raise_on_all_ranks,
    sum_over_ranks,
)
from pipeline.distributed.world import World
from pipeline.errors import DataError
from tests.ranks import run_ranks


def rows_of(rank: int, n_rows: int) -> Tensor:
    return torch.arange(rank * n_rows, (rank + 1) * n_rows).float()[:, None] * torch.tensor([1, 10])


def exchange(world: World) -> dict[str, Any]:
    value = torch.tensor([float(world.rank), 1.0])
    return {
        "sum": sum_over_ranks(value),
        "value": value,
        "gathered": gather(rows_of(world.rank, 2)),
        "transposed": gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T + world.rank),
        "objects": gather_objects(("r", world.rank)),
    }


def test_every_rank_gets_the_same_values_in_rank_order():
    answers = run_ranks(exchange, 3)
    for rank, answer in enumerate(answers):
        assert torch.equal(answer["sum"], torch.tensor([3.0, 3.0]))
        assert torch.equal(answer["value"], torch.tensor([float(rank), 1.0]))  # unchanged
        assert torch.equal(answer["gathered"], torch.cat([rows_of(r, 2) for r in range(3)]))
        assert torch.equal(answer["transposed"][2:4], torch.tensor([[2.0, 4.0], [3.0, 5.0]]))
        assert answer["objects"] == [("r", 0), ("r", 1), ("r", 2)]


PARTS_PX = torch.rand(8, 7, generator=torch.Generator().manual_seed(1)).exp().sin()


def averaged_slices(world: World) -> Tensor:
    """The mean over ranks, as in the engine, of the slices of eight parts and a common one."""
    own = PARTS_PX.chunk(world.world_size)[world.rank]
    own_X = pairwise_sum(range(len(own)), lambda part: own[part])
    return sum_over_ranks(ordered_reduce_scatter(own_X, PARTS_PX[0])) / world.world_size


def test_ordered_sum_has_the_same_bits_on_any_number_of_ranks(alone):
    expected = averaged_slices(alone)
    exact = PARTS_PX.double().sum(dim=0) + PARTS_PX[0]
    torch.testing.assert_close(expected.double(), exact, rtol=1e-6, atol=1e-6)
    for world_size in (2, 4, 8):
        assert all(torch.equal(found, expected) for found in run_ranks(averaged_slices, world_size))
    for found in run_ranks(averaged_slices, 3):
        torch.testing.assert_close(found, expected)


def test_pairwise_sum_keeps_few_values():
    """must compute one value at a time, in order, and keep only one of each depth"""
    asked, alive = [], weakref.WeakSet()

    def value(item: int) -> Tensor:
        asked.append((item, len(alive)))
        alive.add(made := torch.ones(1))
        return made

    assert pairwise_sum(range(13), value) == 13
    assert [item for item, _ in asked] == [*range(13)]
    assert max(n_alive for _, n_alive in asked) <= 4


def raise_on(world: World, rank: int | None) -> str:
    try:
        with raise_on_all_ranks():
            if world.rank == rank:
                raise DataError("shard a.tar is damaged")
    except DataError as error:
        return str(error)
    return "no error"


def test_error_of_one_rank_is_raised_on_all():
    """must not leave the other ranks waiting: they would report a lost connection instead"""
    assert run_ranks(raise_on, 3, 1) == ["rank 1: shard a.tar is damaged"] * 3
    assert run_ranks(raise_on, 2, None) == ["no error"] * 2


def test_error_of_a_single_rank_is_raised_unchanged(alone):
    with pytest.raises(DataError, match="^shard a.tar is damaged$"), raise_on_all_ranks():
        raise DataError("shard a.tar is damaged")


def ask_main(world: World, is_wrong: bool) -> Any:
    def work() -> str:
        if is_wrong:
            raise DataError("no index")
        return f"from rank {world.rank}"

    try:
        return on_main(work)
    except DataError as error:
        return str(error)


def test_work_of_rank_0_gives_its_result_or_its_error_to_all():
    assert run_ranks(ask_main, 2, False) == ["from rank 0"] * 2
    assert run_ranks(ask_main, 2, True) == ["rank 0: no index"] * 2
