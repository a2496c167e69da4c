"""A dead node or a failed network costs the steps since the last snapshot, no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.comparison import RunContent, read_run
from tests.launches import RANK, Started, TinyRun
from tests.services.nodes import Nodes, wait_until

# Ranks report a lost rank soon, and a run has a snapshot to resume from.
HASTY = ("engine.timeout_s=15", "snapshot.every_steps=3")


@pytest.fixture
def repaired_nodes(nodes: Nodes) -> Iterator[Nodes]:
    """The nodes, which are repaired afterwards."""
    yield nodes
    if not nodes["n2"].is_up:
        nodes.boot("n2")
    nodes.heal("n2")
    for node in nodes:
        node.signal(9, "train.py")


def assert_fails(started: Started) -> None:
    """must end by itself, soon, with a status that is neither 0 nor 75, 'start again'"""
    status = started.status()
    text = started.log.read_text()
    assert status not in (0, 75), text[-4000:]
    assert "lost contact with the others" in text and "Traceback" not in text, text[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_node_and_cut_network_change_nothing(
    repaired_nodes: Nodes, tiny_run: TinyRun, undisturbed: RunContent
):
    """must report the lost rank on each side that is left, and resume when started again"""
    tiny_run.hold_at(1, 1)
    survivor, lost = tiny_run.start_on_each(repaired_nodes, *HASTY)
    survivor.wait_for_task(1)
    repaired_nodes["n2"].kill()
    assert lost.status() != 0
    assert_fails(survivor)
    assert wait_until(lambda: not repaired_nodes["n1"].processes(RANK), timeout_s=60)

    repaired_nodes.boot("n2")
    both = tiny_run.start_on_each(repaired_nodes, *HASTY)
    both[0].wait_for_task(1)
    repaired_nodes.cut("n2")
    for side in both:
        assert_fails(side)
    for node in repaired_nodes:
        assert wait_until(lambda node=node: not node.processes(RANK), timeout_s=60)

    repaired_nodes.heal("n2")
    tiny_run.hold.unlink()
    again = tiny_run.start_on_each(repaired_nodes)
    for each in again:
        each.assert_succeeds()
    for resumed in (both[0], again[0]):
        assert resumed.has_resumed()
    read_run(tiny_run.output).assert_equals(undisturbed)
