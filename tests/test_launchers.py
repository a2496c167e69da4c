"""Two ranks learn the same, bit by bit, on one node and on two, whatever starts them."""

from __future__ import annotations

import pytest

from tests.launches import TRAIN, Science, TinyRun, science
from tests.services.nodes import Nodes

PORT = "29501"  # each node has all ports for itself


@pytest.mark.slow
def test_hostfile_over_ssh(nodes: Nodes, tiny_run: TinyRun, undisturbed: Science):
    """must also carry the settings of ``.deepspeed_env``, since pdsh forwards hardly any"""
    hostfile = tiny_run.folder / "hostfile"
    hostfile.write_text("n1 slots=1\nn2 slots=1\n")
    (tiny_run.folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    launcher = ("deepspeed", "--hostfile", str(hostfile), TRAIN)
    tiny_run.start(nodes["n1"], *launcher, *tiny_run.arguments).assert_succeeds()
    science(tiny_run.output).assert_equals(undisturbed)


@pytest.mark.slow
def test_deepspeed_started_on_each_node(nodes: Nodes, tiny_run: TinyRun, undisturbed: Science):
    hostfile = tiny_run.folder / "hostfile"
    hostfile.write_text("n1 slots=1\nn2 slots=1\n")
    place = ("--hostfile", str(hostfile), "--master_addr", "n1", "--master_port", PORT)
    started = [
        tiny_run.start(
            node, "deepspeed", "--no_ssh", "--node_rank", str(rank), *place,
            TRAIN, *tiny_run.arguments,
        )
        for rank, node in enumerate(nodes)
    ]  # fmt: skip
    for each in started:
        each.assert_succeeds()
    science(tiny_run.output).assert_equals(undisturbed)


@pytest.mark.slow
def test_torchrun_started_on_each_node(nodes: Nodes, tiny_run: TinyRun, undisturbed: Science):
    place = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "n1", "--master-port", PORT)
    started = [
        tiny_run.start(
            node, "torchrun", *place, "--node-rank", str(rank), TRAIN, *tiny_run.arguments
        )
        for rank, node in enumerate(nodes)
    ]
    for each in started:
        each.assert_succeeds()
    science(tiny_run.output).assert_equals(undisturbed)
