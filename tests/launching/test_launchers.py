"""Two ranks learn the same, bit by bit, on one node and on two, with every launcher.

``deepspeed --no_ssh`` on each node is tested in test_nodes.py and in tests/cluster.
"""

from __future__ import annotations

import pytest

from tests.chaos.comparison import RunContent, read_run
from tests.launches import PORT, SECONDS, TRAIN, TinyRun, environment
from tests.services.nodes import Nodes
from tests.services.slurm import Slurm


@pytest.mark.slow
def test_hostfile_over_ssh(nodes: Nodes, tiny_run: TinyRun, undisturbed: RunContent):
    """must also pass on the settings of ``.deepspeed_env``, since pdsh forwards few variables"""
    hostfile = tiny_run.folder / "hostfile"
    hostfile.write_text("n1 slots=1\nn2 slots=1\n")
    (tiny_run.folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    launcher = ("deepspeed", "--hostfile", str(hostfile), TRAIN)
    tiny_run.start(nodes["n1"], *launcher, *tiny_run.arguments).assert_succeeds()
    read_run(tiny_run.output).assert_equals(undisturbed)


@pytest.mark.slow
def test_torchrun_started_on_each_node(nodes: Nodes, tiny_run: TinyRun, undisturbed: RunContent):
    place = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "n1", "--master-port", PORT)
    started = [
        tiny_run.start(
            node, "torchrun", *place, "--node-rank", str(rank), TRAIN, *tiny_run.arguments
        )
        for rank, node in enumerate(nodes)
    ]
    for each in started:
        each.assert_succeeds()
    read_run(tiny_run.output).assert_equals(undisturbed)


@pytest.mark.slow
def test_srun(slurm: Slurm, tiny_run: TinyRun, undisturbed: RunContent):
    """must take rank, world size and address from the variables that SLURM sets"""
    tasks = ("srun", "--nodes=2", "--ntasks-per-node=1")
    done = slurm.run(
        *tasks, "python", TRAIN, *tiny_run.arguments,
        folder=tiny_run.folder, environment=environment(), timeout_s=2 * SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    read_run(tiny_run.output).assert_equals(undisturbed)
