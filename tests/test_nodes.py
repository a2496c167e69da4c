"""A node that dies and a network that fails cost the steps since the last snapshot, no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launches import RANK, Science, Started, TinyRun, science
from tests.services.nodes import Nodes, wait_until

# Ranks that lost each other shall say so soon, and a run shall have something to go on from.
HASTY = ("engine.timeout_s=10", "snapshot.every_steps=3")
ENDS_WITHIN_S = 60  # the ten seconds, and what a busy machine and the launchers add


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
    assert status not in (0, 75), started.log.read_text()[-4000:]


def assert_goes_on(nodes: Nodes, run: TinyRun, undisturbed: Science) -> None:
    """must go on, not begin again, when the same commands are given, and find the same"""
    again = run.start_on_each(nodes, *HASTY)
    for each in again:
        each.assert_succeeds()
    said = again[0].log.read_text()
    assert "task 3/3" in said and "task 1/3 epoch 1/2 step 1/" not in said
    science(run.output).assert_equals(undisturbed)


@pytest.mark.slow
def test_killed_node_changes_nothing(whole_nodes: Nodes, tiny_run: TinyRun, undisturbed: Science):
    survivor, lost = tiny_run.start_on_each(whole_nodes, *HASTY)
    survivor.wait_for("task 2/3")
    whole_nodes["n2"].kill()
    assert lost.status() != 0
    assert_fails(survivor)
    assert "error: " in survivor.log.read_text()
    assert wait_until(lambda: not whole_nodes["n1"].processes(RANK), timeout_s=10)

    whole_nodes.boot("n2")
    assert_goes_on(whole_nodes, tiny_run, undisturbed)


@pytest.mark.slow
def test_cut_network_stops_both_sides_and_changes_nothing(
    whole_nodes: Nodes, tiny_run: TinyRun, undisturbed: Science
):
    both = tiny_run.start_on_each(whole_nodes, *HASTY)
    both[0].wait_for("task 2/3")
    whole_nodes.cut("n2")
    for side in both:
        assert_fails(side)
        assert "lost contact" in side.log.read_text(), side.log.read_text()[-4000:]
    for node in whole_nodes:
        assert wait_until(lambda node=node: not node.processes(RANK), timeout_s=10)

    whole_nodes.heal("n2")
    assert_goes_on(whole_nodes, tiny_run, undisturbed)
