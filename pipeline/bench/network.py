"""The bytes that a step sends, and the efficiency that they predict.

A step has these collectives: the embeddings and the labels of all images go to every rank; every
rank gets its slice of the gradient of each other rank, and the mean of all gradients; two flags say
whether any rank has failed. Nothing is assumed to overlap with computation, so the prediction is
cautious.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HOP_S = 10e-6  # of one message between two nodes, software included
_COLLECTIVES = 6  # per step


@dataclass(frozen=True)
class Traffic:
    """What the ranks of a run exchange in each step."""

    images: int  # of one rank
    width: int  # of an embedding, float32
    terms: int  # loss terms of each image
    trained: int  # scalars, float32

    def bytes_sent(self, ranks: int) -> float:
        """By one rank in one step, by algorithms of least traffic (rings)."""
        others = ranks - 1
        gathered = self.images * (4 * self.width + 4 * self.terms + 8) * others
        exchanged = 4 * self.trained * others / ranks
        averaged = 2 * 4 * self.trained * others / ranks
        return gathered + exchanged + averaged

    def efficiency(self, ranks: int, *, step_s: float, gigabits: float) -> float:
        """Speed per rank of ``ranks`` ranks against one alone, in (0, 1].

        Each rank has a link of ``gigabits`` per second; each collective passes through a tree.
        """
        if ranks == 1:
            return 1.0
        send_s = self.bytes_sent(ranks) / (gigabits * 1e9 / 8)
        wait_s = _COLLECTIVES * 2 * math.ceil(math.log2(ranks)) * HOP_S
        return step_s / (step_s + send_s + wait_s)
