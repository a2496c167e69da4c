"""A node that dies and a network that fails cost the steps since the last snapshot, no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launches import RANK, Science, Started, TinyRun, science
from tests.services.nodes import Nodes, wait_until

# Ranks that lost each other shall say so soon, and a run shall have something to go on from.
HASTY = ("engine.timeout_s=15", "snapshot.every_steps=3")
ENDS_WITHIN_S = 90  # the fifteen seconds, and what a busy machine and the launchers add
BEGINNING = "task 1/3 epoch 1/2 step 1/"


@pytest.fixture
def whole_nodes(nodes: Nodes) -> Iterator[Nodes]:
    """The nodes, which are made whole again afterwards."""
    yield nodes
    if not nodes["n2"].is_up:
        nodes.boot("n2")
    nodes.heal("n2")
    for node in nodes:
        node.signal(9, "train.py")


def assert_fails(started: Started) -> None:
    """must end by itself, soon, with a status that is neither success nor 'start me again'"""
    status = started.status(timeout_s=ENDS_WITHIN_S)
    said = started.log.read_text()
    assert status not in (0, 75), said[-4000:]
    assert "lost contact with the others" in said and "Traceback" not in said, said[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_node_and_cut_network_change_nothing(
    whole_nodes: Nodes, tiny_run: TinyRun, undisturbed: Science
):
    """must say on each side that is left what it lost, and go on from there when started again"""
    survivor, lost = tiny_run.start_on_each(whole_nodes, *HASTY)
    survivor.wait_for("task 2/3")
    whole_nodes["n2"].kill()
    assert lost.status() != 0
    assert_fails(survivor)
    assert wait_until(lambda: not whole_nodes["n1"].processes(RANK), timeout_s=10)

    whole_nodes.boot("n2")
    both = tiny_run.start_on_each(whole_nodes, *HASTY)
    both[0].wait_for("task 3/3")
    whole_nodes.cut("n2")
    for side in both:
        assert_fails(side)
    for node in whole_nodes:
        assert wait_until(lambda node=node: not node.processes(RANK), timeout_s=10)

    whole_nodes.heal("n2")
    again = tiny_run.start_on_each(whole_nodes)
    for each in again:
        each.assert_succeeds()
    for resumed in (both[0], again[0]):
        assert BEGINNING not in resumed.log.read_text()
    science(tiny_run.output).assert_equals(undisturbed)
