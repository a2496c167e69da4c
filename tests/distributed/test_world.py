"""A process finds its place among the ranks, and notices a rank that is lost."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed.collectives import gather_objects, sum_over_ranks
from pipeline.distributed.world import World, new_world_group, process_group, read_world
from pipeline.errors import ConfigError, LostRankError
from tests.ranks import run_ranks


def test_world_is_read_from_the_variables_of_a_launcher():
    world = read_world({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (world.rank, world.world_size, world.local_rank) == (3, 8, 1)
    assert not world.is_main


def test_process_without_a_launcher_is_rank_0_of_1():
    world = read_world({"PATH": "/bin"})
    assert (world.rank, world.world_size, world.local_rank, world.is_main) == (0, 1, 0, True)


@pytest.mark.parametrize("environment", [{"RANK": "0"}, {"WORLD_SIZE": "2"}])
def test_incomplete_variables_are_refused(environment):
    with pytest.raises(ConfigError, match="set only one of RANK and WORLD_SIZE; start with"):
        read_world(environment)


def test_group_of_one_needs_no_launcher_and_can_be_formed_again():
    for _ in range(2):
        with process_group(read_world({}), timeout_s=30):
            assert dist.get_world_size() == 1
            assert gather_objects({"a": 1}) == [{"a": 1}]
        assert not dist.is_initialized()


def test_group_ends_when_the_block_fails():
    with pytest.raises(ZeroDivisionError), process_group(read_world({}), timeout_s=30):
        raise ZeroDivisionError
    assert not dist.is_initialized()


def sum_in_a_new_group(world: World) -> float:
    total = torch.tensor(float(world.rank + 1))
    dist.all_reduce(total, group=new_world_group(30))
    return float(total)


def test_new_group_has_all_ranks():
    assert run_ranks(sum_in_a_new_group, 2) == [3.0, 3.0]


def hang_on_rank_one(world: World, place: str) -> str:
    """The error of each rank when rank 1 hangs for longer than the timeout."""
    try:
        with process_group(world, timeout_s=2):
            if world.rank == 1:
                time.sleep(4)
            elif place == "in a collective":
                sum_over_ranks(torch.zeros(1))
    except LostRankError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("place", ["in a collective", "at the end"])
def test_rank_that_hangs_is_noticed_in_time(place):
    """must raise on the rank that waits; it must neither hang nor leave the other behind"""
    waiting, _ = run_ranks(hang_on_rank_one, 2, place, collective_s=None)
    assert waiting.startswith("rank 0 lost contact with the others: ") and "imed out" in waiting
    assert waiting.endswith("then start the same command again to continue")


def fail_on_rank_one(world: World) -> None:
    if world.rank == 1:
        raise ValueError("no such value")
    sum_over_ranks(torch.zeros(1))


def test_error_of_a_rank_reaches_the_test():
    with pytest.raises(RuntimeError, match="(?s)rank 1: .*no such value"):
        run_ranks(fail_on_rank_one, 2)
