"""Ranks find each other, agree, and pass gradients as one process would."""

from __future__ import annotations

import time
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.distributed.collectives import (
    gather,
    gather_objects,
    ordered_reduce_scatter,
    pairwise_sum,
    raise_on_all_ranks,
    sum_over_ranks,
)
from pipeline.distributed.world import World, process_group, read_world
from pipeline.errors import ConfigError, DataError, LostRankError
from tests.ranks import run_ranks


def test_world_is_read_from_what_a_launcher_sets():
    world = read_world({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (world.rank, world.world_size, world.local_rank) == (3, 8, 1)
    assert not world.is_main


def test_no_launcher_means_alone():
    world = read_world({"PATH": "/bin"})
    assert (world.rank, world.world_size, world.local_rank, world.is_main) == (0, 1, 0, True)


@pytest.mark.parametrize("environment", [{"RANK": "0"}, {"WORLD_SIZE": "2"}])
def test_half_a_launcher_is_refused(environment):
    with pytest.raises(ConfigError, match="set only one of RANK and WORLD_SIZE; start with"):
        read_world(environment)


def test_group_of_one_needs_no_launcher_and_leaves_none_behind():
    for _ in range(2):
        with process_group(read_world({}), timeout_s=30):
            assert dist.get_world_size() == 1
            assert gather_objects({"a": 1}) == [{"a": 1}]
        assert not dist.is_initialized()


def test_group_is_left_when_the_block_fails():
    with pytest.raises(ZeroDivisionError), process_group(read_world({}), timeout_s=30):
        raise ZeroDivisionError
    assert not dist.is_initialized()


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


def test_every_rank_gets_the_same_in_rank_order():
    answers = run_ranks(exchange, 3)
    for rank, answer in enumerate(answers):
        assert torch.equal(answer["sum"], torch.tensor([3.0, 3.0]))
        assert torch.equal(answer["value"], torch.tensor([float(rank), 1.0]))  # left as it was
        assert torch.equal(answer["gathered"], torch.cat([rows_of(r, 2) for r in range(3)]))
        assert torch.equal(answer["transposed"][2:4], torch.tensor([[2.0, 4.0], [3.0, 5.0]]))
        assert answer["objects"] == [("r", 0), ("r", 1), ("r", 2)]


PARTS_PX = torch.rand(8, 7, generator=torch.Generator().manual_seed(1)).exp().sin()


def averaged_shares(world: World) -> Tensor:
    """What an engine, which averages over ranks, makes of the shares of eight parts and a ninth."""
    own = PARTS_PX.chunk(world.world_size)[world.rank]
    own_X = pairwise_sum(range(len(own)), lambda part: own[part])
    return sum_over_ranks(ordered_reduce_scatter(own_X, PARTS_PX[0])) / world.world_size


def test_sum_in_shares_has_the_same_bits_on_any_number_of_ranks(alone):
    expected = averaged_shares(alone)
    exact = PARTS_PX.double().sum(dim=0) + PARTS_PX[0]
    torch.testing.assert_close(expected.double(), exact, rtol=1e-6, atol=1e-6)
    for world_size in (2, 4, 8):
        assert all(torch.equal(found, expected) for found in run_ranks(averaged_shares, world_size))
    for found in run_ranks(averaged_shares, 3):
        torch.testing.assert_close(found, expected)


def test_sum_in_halves_keeps_few_values():
    """must ask for one value at a time, in order, and hold only one of each depth"""
    asked, alive = [], weakref.WeakSet()

    def value(item: int) -> Tensor:
        asked.append((item, len(alive)))
        alive.add(made := torch.ones(1))
        return made

    assert pairwise_sum(range(13), value) == 13
    assert [item for item, _ in asked] == [*range(13)]
    assert max(n_alive for _, n_alive in asked) <= 4


def come_late(world: World, place: str) -> str:
    """What is said to each rank when rank 1 stands still for longer than it may."""
    try:
        with process_group(world, timeout_s=2):
            if world.rank == 1:
                time.sleep(4)
            elif place == "in a collective":
                sum_over_ranks(torch.zeros(1))
    except LostRankError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("place", ["in a collective", "at the end"])
def test_rank_that_stands_still_is_noticed_in_time(place):
    """must raise on the rank that waits instead of hanging for ever, or leaving the other behind"""
    waiting, _ = run_ranks(come_late, 2, place, collective_s=None)
    assert waiting.startswith("rank 0 lost contact with the others: ") and "imed out" in waiting


def fail_on_rank_one(world: World) -> None:
    if world.rank == 1:
        raise ValueError("no such luck")
    sum_over_ranks(torch.zeros(1))


def test_rank_that_fails_is_heard():
    with pytest.raises(RuntimeError, match="(?s)rank 1: .*no such luck"):
        run_ranks(fail_on_rank_one, 2)


def share_a_fault(world: World, faulty: int | None) -> str:
    try:
        with raise_on_all_ranks():
            if world.rank == faulty:
                raise DataError("shard a.tar is damaged")
    except DataError as error:
        return str(error)
    return "well"


def test_fault_of_one_rank_ends_all_with_its_words():
    """must not leave the healthy ranks waiting: they would speak of a lost connection instead"""
    assert run_ranks(share_a_fault, 3, 1) == ["rank 1: shard a.tar is damaged"] * 3
    assert run_ranks(share_a_fault, 2, None) == ["well"] * 2
