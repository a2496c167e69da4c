"""The learning rate's factor, by hand."""

from __future__ import annotations

import math

import pytest

from pipeline.training.schedule import learning_rate_factor


def factors(n_steps: int, warmup_steps: int, kind: str) -> list[float]:
    return [
        learning_rate_factor(step, n_steps, warmup_steps=warmup_steps, kind=kind)
        for step in range(n_steps)
    ]


def test_cosine_starts_at_the_peak_and_would_reach_zero_at_the_end():
    assert factors(4, 0, "cosine") == pytest.approx(
        [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert learning_rate_factor(4, 4, warmup_steps=0, kind="cosine") == pytest.approx(0.0)


def test_warmup_is_linear_and_meets_the_peak():
    assert factors(7, 3, "constant") == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1])
    assert factors(5, 3, "cosine") == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5])


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 9])
def test_factor_is_never_zero_nor_above_one(kind, warmup_steps):
    """must hold for a warm-up longer than the task too"""
    for n_steps in (1, 2, 5):
        assert all(0 < factor <= 1 for factor in factors(n_steps, warmup_steps, kind))
