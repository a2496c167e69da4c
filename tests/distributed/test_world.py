"""A process finds its place among the ranks, and notices a rank that is lost."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist

from pipeline.distributed.collectives import gather_objects, sum_over_ranks
from pipeline.distributed.world import (
    World,
    device_of_rank,
    new_world_group,
    process_group,
    read_world,
    sharing_problem,
)
from pipeline.errors import ConfigError, LostRankError
from tests.ranks import run_ranks
from tests.services.object_store import free_ports


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number of ranks"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a number of ranks"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', not a number of ranks"),
        ({"RANK": "-1"}, "RANK is '-1', not a number of ranks"),
        ({"RANK": "1.0"}, "RANK is '1.0', not a number of ranks"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2; it must be less"),
        ({"LOCAL_RANK": "gpu0"}, "LOCAL_RANK is 'gpu0', not a number of ranks"),
    ],
)
def test_wrong_variables_are_refused(changes, words):
    with pytest.raises(ConfigError, match=f"the launcher's environment: {words}; .* or unset RANK"):
        read_world({"RANK": "0", "WORLD_SIZE": "2"} | changes)


@pytest.mark.parametrize(
    ("local_rank", "n_gpus", "visible", "expected"),
    [
        (0, 0, None, "cpu"),
        (5, 0, "", "cpu"),  # the user hides the GPUs
        (0, 8, None, "cuda:0"),
        (7, 8, None, "cuda:7"),
        (1, 2, "4,6", "cuda:1"),  # numbers count the visible GPUs
        (0, 1, "GPU-5ebe9f43", "cuda:0"),
    ],
)
def test_rank_has_the_gpu_of_its_number(local_rank, n_gpus, visible, expected):
    assert device_of_rank(local_rank, n_gpus, visible) == torch.device(expected)


@pytest.mark.parametrize(
    ("local_rank", "n_gpus", "visible", "words"),
    [
        (
            2,
            2,
            None,
            r"LOCAL_RANK is 2 and this process sees 2 GPU\(s\); start one rank",
        ),
        (1, 1, "3", r"sees 1 GPU\(s\) \(CUDA_VISIBLE_DEVICES=3\); start one rank for each GPU"),
        (0, 1, "0,9", "CUDA_VISIBLE_DEVICES is '0,9' and CUDA shows only 1 of these GPUs; name"),
    ],
)
def test_more_ranks_than_gpus_are_refused(local_rank, n_gpus, visible, words):
    with pytest.raises(ConfigError, match=words):
        device_of_rank(local_rank, n_gpus, visible)


def test_ranks_that_share_a_gpu_are_refused():
    """must hold where each rank sees one GPU only, which may be the same"""
    assert sharing_problem(["GPU-a", "GPU-b", "GPU-c"]) is None
    assert sharing_problem(["GPU-a", "GPU-b", "GPU-c", "GPU-b"]).startswith(
        "ranks 1 and 3 have the same GPU GPU-b; start one rank for each GPU"
    )


MEETING = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}


def join(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], timeout_s: float) -> None:
    """Form the process group with these variables of a launcher."""
    for name, value in (MEETING | changes).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, False)
    with process_group(read_world(os.environ), timeout_s=timeout_s):
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MASTER_ADDR": None}, "are set, but not MASTER_ADDR"),
        ({"MASTER_PORT": None}, "are set, but not MASTER_PORT"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "but not MASTER_ADDR and MASTER_PORT"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http', not a port from 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is '0', not a port"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999', not a port"),
        ({"LOCAL_WORLD_SIZE": "some"}, "LOCAL_WORLD_SIZE is 'some', not a number of ranks"),
    ],
)
def test_half_a_rendezvous_is_refused(monkeypatch, changes, words):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(ConfigError, match=words):
        join(monkeypatch, changes, 5)
    assert not dist.is_initialized()


def test_port_in_use_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{port} .* is in use"):
            join(monkeypatch, {"MASTER_PORT": port}, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "no-such-host.invalid"},
    ],
)
def test_ranks_that_do_not_come_are_an_error_at_the_limit(monkeypatch, changes):
    port = str(free_ports(1)[0])
    with pytest.raises(LostRankError, match=r"did not meet the others at .*engine\.timeout_s"):
        join(monkeypatch, changes | {"MASTER_PORT": port}, 2)
    assert not dist.is_initialized()


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
    """The error of rank 0 when rank 1 hangs until then."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*address, is_master=False)
    store.set(f"rank {world.rank} is up", "")
    store.wait([f"rank {rank} is up" for rank in range(world.world_size)])  # may take long
    try:
        with process_group(world, timeout_s=3):
            if world.rank == 1:
                store.wait(["rank 0 has noticed it"])
            elif place == "in a collective":
                sum_over_ranks(torch.zeros(1))
    except LostRankError as error:
        return str(error)
    finally:
        store.set(f"rank {world.rank} has noticed it", "")
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
