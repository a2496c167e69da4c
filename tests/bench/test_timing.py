"""Times are taken in turn, and a figure has the median and the spread of its repeats."""

from __future__ import annotations

import time

import pytest
import torch

from pipeline.bench.gpu import covered
from pipeline.bench.network import Traffic
from pipeline.bench.settings import BenchSizes
from pipeline.bench.timing import Figure, Timing, time_alternately

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of a clock that only the works of a test move on."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_works_take_turns_and_the_warm_up_does_not_count(clock):
    calls: list[str] = []

    def work(name: str, *seconds: float) -> None:
        calls.append(name)
        clock[0] += seconds[min(calls.count(name), len(seconds)) - 1]

    works = {"a": lambda: work("a", 9.0, 1.0, 3.0), "b": lambda: work("b", 9.0, 2.0)}
    found = time_alternately(works, BenchSizes(repeats=2, warmup=1), CPU)
    assert calls == ["a", "b"] * 3
    assert {name: timing.seconds for name, timing in found.items()} == {
        "a": (1.0, 3.0),
        "b": (2.0, 2.0),
    }
    assert all(len(timing.processor_s) == 2 for timing in found.values())


def test_long_works_are_repeated_less(clock):
    def work() -> None:
        clock[0] += 40.0

    sizes = BenchSizes(repeats=5, longest_s=100.0)
    assert len(time_alternately({"long": work}, sizes, CPU)["long"].seconds) == 2
    shortest = BenchSizes(repeats=5, longest_s=1.0)
    assert len(time_alternately({"long": work}, shortest, CPU)["long"].seconds) == 1


def test_figures_have_median_and_spread():
    slow, fast = Timing((4.0, 8.0, 6.0)), Timing((2.0, 2.0, 1.0))
    assert slow.rate("speed", 24, "images/s") == Figure("speed", "images/s", 4.0, 3.0, 6.0, 3)
    processor = Timing((), (2.0,)).processor_over(Timing((), (4.0,)), "of the processor")
    assert (processor.value, processor.repeats) == (0.5, 1)
    ratio = slow.over(fast, "ratio", target="≥ 3")
    assert ratio == Figure("ratio", "×", 4.0, 2.0, 6.0, 3, "≥ 3")


def test_ratio_pairs_neighbours():
    """must not compare a repeat of one work with a later one of the other"""
    with pytest.raises(ValueError):
        Timing((1.0, 2.0)).over(Timing((1.0,)), "ratio")


def test_covered_time_counts_overlaps_once():
    assert covered([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5
    assert covered([]) == 0


def test_one_rank_sends_nothing():
    traffic = Traffic(images=32, width=512, terms=1, trained=10**6)
    assert traffic.bytes_sent(1) == 0
    assert traffic.efficiency(1, step_s=0.1, gigabits=100) == 1


def test_two_ranks_send_their_embeddings_and_half_the_gradient_thrice():
    traffic = Traffic(images=3, width=5, terms=2, trained=14)
    assert traffic.bytes_sent(2) == 3 * (4 * 5 + 4 * 2 + 8) + 3 * (4 * 14 / 2)


@pytest.mark.parametrize("ranks", [8, 64, 512])
def test_efficiency_falls_with_traffic_and_waiting(ranks: int):
    traffic = Traffic(images=32, width=768, terms=0, trained=10**6)
    slow = traffic.efficiency(ranks, step_s=0.05, gigabits=100)
    fast = traffic.efficiency(ranks, step_s=0.05, gigabits=400)
    assert 0 < slow < fast < 1
    assert traffic.efficiency(2 * ranks, step_s=0.05, gigabits=100) < slow
    assert traffic.efficiency(ranks, step_s=0.1, gigabits=100) > slow
