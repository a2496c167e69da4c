"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, n_steps: int, *, warmup_steps: int, kind: str) -> float:
    """Factor in (0, 1] on the peak learning rate at ``step`` of a task's ``n_steps``.

    Linear from ``1 / warmup_steps`` over the warm-up, then ``constant``, or ``cosine`` to 0 at
    ``n_steps``.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, n_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
