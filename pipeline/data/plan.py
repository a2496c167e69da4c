"""The samples of each global batch: pure functions of a selection and an epoch's key.

The numbers of ranks and of loader workers do not appear before ``rank_slice``, so every layout
trains on the same global batches, and a run can resume at any step on any other layout.

A selection larger than ``BLOCK_BYTES`` is shuffled in blocks of segments drawn at random over all
classes: batches stay mixed, while the cache needs only about two blocks at a time.

S samples, G segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.data.index import Selection
from pipeline.errors import DataError
from pipeline.rng import numpy_stream

BLOCK_BYTES = 1 << 30  # of a block of the shuffle

Tail = Literal["drop", "wrap"]


@dataclass(frozen=True)
class EpochKey:
    """The name of one epoch of one task; with a selection it fixes the order of the samples."""

    seed: int
    task: int
    epoch: int


@dataclass(frozen=True)
class Layout:
    """The place of one rank in its world, and its number of loader workers (0: no process)."""

    rank: int = 0
    world_size: int = 1
    workers: int = 0


ONE_PROCESS = Layout()


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The global batches of one epoch of ``selection``, each of ``global_batch`` samples."""

    selection: Selection
    key: EpochKey
    global_batch: int
    tail: Tail

    def shares(self, layout: Layout, *, start_step: int = 0) -> list[np.ndarray]:
        """The positions in ``selection`` that a rank trains on, by step, from ``start_step`` on.

        Raises:
            DataError: the epoch has no batch, or the ranks cannot share a batch equally.
        """
        order = epoch_order(self.selection, self.key)
        batches = global_batches(order, global_batch=self.global_batch, tail=self.tail)[start_step:]
        return [rank_slice(batch, layout.rank, layout.world_size) for batch in batches]


def epoch_order(selection: Selection, key: EpochKey) -> np.ndarray:
    """Every position of ``selection`` once, shuffled differently for each key."""
    # random_raw is the bare counter-based generator: its bits never change with numpy's version.
    draw = numpy_stream(key.seed, "order", key.task, key.epoch).bit_generator.random_raw
    priority_S, priority_G = draw(len(selection)), draw(len(selection.place_G))
    return np.lexsort((priority_S, _blocks(selection, priority_G)))


def steps_per_epoch(samples: int, global_batch: int, tail: Tail) -> int:
    """The number of global batches in one epoch of ``samples`` samples."""
    return samples // global_batch if tail == "drop" else -(-samples // global_batch)


def global_batches(order: np.ndarray, *, global_batch: int, tail: Tail) -> np.ndarray:
    """``order`` cut into rows of ``global_batch``; ``wrap`` fills the last row from the beginning.

    Raises:
        DataError: ``drop`` leaves no batch.
    """
    steps = steps_per_epoch(len(order), global_batch, tail)
    if not steps:
        raise DataError(
            f"{len(order)} samples do not fill one global batch of {global_batch}; "
            "lower data.global_batch or set data.tail to wrap"
        )
    return np.resize(order, steps * global_batch).reshape(steps, global_batch)


def rank_slice(batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The share of one global batch for ``rank``: contiguous, of equal size on every rank.

    Raises:
        DataError: the batch is not divisible by ``world_size``.
    """
    share, rest = divmod(len(batch), world_size)
    if rest:
        raise DataError(
            f"a global batch of {len(batch)} cannot be divided among {world_size} ranks; "
            "choose a multiple of the world size"
        )
    return batch[rank * share : (rank + 1) * share]


def replacement_candidates(selection: Selection, bad_sample: int) -> np.ndarray:
    """The positions in ``selection`` of the samples that may replace ``bad_sample``, in order.

    They are the other samples of its class: first those after it, then those from the beginning.
    The first usable one is taken, so the choice depends neither on the ranks nor on the workers.
    ``bad_sample`` is a number of ``selection.sample_S``.
    """
    label = selection.label_S[np.searchsorted(selection.sample_S, bad_sample)]
    peers = np.flatnonzero(selection.label_S == label)
    after = np.searchsorted(selection.sample_S[peers], bad_sample, side="right")
    return np.roll(peers, -after)[:-1]  # the last is the bad sample


def _blocks(selection: Selection, priority_G: np.ndarray) -> np.ndarray:
    """The block of each sample: segments by ``priority_G``, cut every ``BLOCK_BYTES``."""
    bytes_G = selection.index.segments.bytes_G[selection.place_G]
    order_G = np.argsort(priority_G, kind="stable")
    block_G = np.empty(len(order_G), dtype=np.int64)
    block_G[order_G] = np.cumsum(bytes_G[order_G]) // BLOCK_BYTES
    return block_G[np.searchsorted(selection.place_G, selection.place_S)]
