"""The plan is a pure function of selection and key: exact, and well mixed."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from pipeline.data import plan
from pipeline.data.plan import (
    EpochKey,
    epoch_order,
    global_batches,
    rank_slice,
    replacement_candidates,
    steps_per_epoch,
)
from pipeline.errors import DataError
from tests.shards import TRAIN, draw_samples, store


@pytest.fixture(scope="module")
def selection():
    return store(f"memory://{uuid.uuid4().hex}", draw_samples()).select("train", range(5))


def test_epoch_has_every_sample_once(selection):
    order = epoch_order(selection, EpochKey(1, 0, 0))
    assert sorted(order) == list(range(sum(TRAIN)))


def test_order_is_the_same_in_every_version(selection):
    """must never change: a run that resumes with another version would train on other batches"""
    order = epoch_order(selection, EpochKey(1, 2, 3))
    assert order[:8].tolist() == [3, 26, 30, 16, 20, 22, 7, 21]


def test_order_depends_on_seed_task_and_epoch(selection):
    orders = {
        tuple(epoch_order(selection, EpochKey(seed, task, epoch)))
        for seed in range(3)
        for task in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 27


def test_large_selection_is_shuffled_in_blocks(selection, monkeypatch):
    """must read few segments at a time, yet mix classes within a block"""
    monkeypatch.setattr(plan, "BLOCK_BYTES", selection.bytes // 3)
    order = epoch_order(selection, EpochKey(1, 0, 0))
    assert sorted(order) == list(range(sum(TRAIN)))
    places = selection.place_S[order].tolist()
    first = {place: places.index(place) for place in set(places)}
    last = {place: len(places) - 1 - places[::-1].index(place) for place in set(places)}
    open_at_once = max(
        sum(first[place] <= at <= last[place] for place in first) for at in range(len(places))
    )
    assert open_at_once < len(first)
    assert len(set(selection.label_S[order[: len(order) // 3]].tolist())) > 1


@pytest.mark.parametrize("samples", [7, 8, 9, 23])
def test_tails_are_dropped_or_wrapped(samples):
    order = np.random.default_rng(1).permutation(samples)
    dropped = global_batches(order, global_batch=4, tail="drop")
    wrapped = global_batches(order, global_batch=4, tail="wrap")
    assert len(dropped) == steps_per_epoch(samples, 4, "drop") == samples // 4
    assert len(wrapped) == steps_per_epoch(samples, 4, "wrap") == -(-samples // 4)
    assert dropped.reshape(-1).tolist() == order[: samples // 4 * 4].tolist()
    assert wrapped.reshape(-1)[:samples].tolist() == order.tolist()
    surplus = wrapped.size - samples
    assert wrapped.reshape(-1)[samples:].tolist() == order[:surplus].tolist()


def test_wrapping_fills_a_batch_larger_than_the_selection():
    batches = global_batches(np.array([2, 0, 1]), global_batch=7, tail="wrap")
    assert batches.tolist() == [[2, 0, 1, 2, 0, 1, 2]]


def test_plan_without_a_full_batch_is_refused():
    with pytest.raises(DataError, match="3 samples do not fill one global batch of 4"):
        global_batches(np.arange(3), global_batch=4, tail="drop")


def test_ranks_share_a_batch_equally():
    batch = np.arange(12)
    for world_size in (1, 2, 3, 4, 6, 12):
        shares = [rank_slice(batch, rank, world_size) for rank in range(world_size)]
        assert np.concatenate(shares).tolist() == batch.tolist()
        assert {len(share) for share in shares} == {12 // world_size}
    with pytest.raises(DataError, match="12 cannot be divided among 5 ranks"):
        rank_slice(batch, 0, 5)


def test_replacements_are_the_class_in_order_after_the_bad_sample(selection):
    sample_of_key = dict(zip(selection.keys, selection.sample_S.tolist(), strict=True))
    for bad, expected in (
        ("dog/000", [1, 2, 3, 4]),
        ("dog/003", [4, 0, 1, 2]),
        ("dog/004", [0, 1, 2, 3]),
    ):
        positions = replacement_candidates(selection, sample_of_key[bad])
        assert [selection.keys[at] for at in positions] == [f"dog/{n:03d}" for n in expected]
