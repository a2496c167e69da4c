"""Wall times of pieces of work that are measured in turn, and the figures made of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import median

import torch

from pipeline.bench.settings import BenchSizes


class NotMeasured(Exception):
    """A benchmark cannot be measured on this machine; the message is the reason."""


@dataclass(frozen=True)
class Figure:
    """One measured value: the median of the repeats, and their lowest and highest value."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    repeats: int
    target: str = ""  # for the reader: nothing depends on it

    @classmethod
    def of(cls, name: str, values: tuple[float, ...], unit: str, target: str = "") -> Figure:
        """The figure of one value per repeat."""
        return cls(name, unit, median(values), min(values), max(values), len(values), target)

    @classmethod
    def counted(cls, name: str, value: float, unit: str, target: str = "") -> Figure:
        """A value without spread: bytes, FLOPs, or a time that is measured once."""
        return cls.of(name, (value,), unit, target)


@dataclass(frozen=True)
class Timing:
    """The seconds of each repeat of one piece of work: on the clock, and of this processor."""

    seconds: tuple[float, ...]
    processor_s: tuple[float, ...] = ()

    @classmethod
    def joined(cls, timings: Iterable[Timing]) -> Timing:
        """The repeats of all ``timings`` together."""
        parts = [*timings]
        return cls(
            tuple(chain.from_iterable(part.seconds for part in parts)),
            tuple(chain.from_iterable(part.processor_s for part in parts)),
        )

    def rate(self, name: str, count: float, unit: str, target: str = "") -> Figure:
        """``count`` things of each repeat per second."""
        return Figure.of(name, tuple(count / each for each in self.seconds), unit, target)

    def duration(self, name: str, target: str = "") -> Figure:
        """The time in seconds."""
        return Figure.of(name, self.seconds, "s", target)

    def over(self, other: Timing, name: str, target: str = "") -> Figure:
        """How many times as long as ``other`` it took, repeat by repeat."""
        return Figure.of(name, _ratios(self.seconds, other.seconds), "×", target)

    def processor_over(self, other: Timing, name: str, target: str = "") -> Figure:
        """The same in processor time, which other programs on the machine hardly change."""
        return Figure.of(name, _ratios(self.processor_s, other.processor_s), "×", target)


def _ratios(ours: tuple[float, ...], others: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(mine / other for mine, other in zip(ours, others, strict=True))


def time_alternately(
    works: Mapping[str, Callable[[], object]], sizes: BenchSizes, device: torch.device
) -> dict[str, Timing]:
    """The times of each of ``works``: all of them once, then all of them again.

    ``sizes.warmup`` rounds are not counted. Neighbouring measurements see the same machine, so the
    ratio within a round is fair on a machine that others use too. There are ``sizes.repeats``
    rounds, or fewer if they would take longer than ``sizes.longest_s``, but at least one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    processor: dict[str, list[float]] = {name: [] for name in works}
    warm_s = 0.0  # the last round of the warm-up
    for _ in range(sizes.warmup):
        warm_s = sum(time_once(work, device) for work in works.values())
    repeats = min(sizes.repeats, max(1, int(sizes.longest_s / warm_s))) if warm_s else sizes.repeats
    for _ in range(repeats):
        for name, work in works.items():
            before = time.process_time()
            seconds[name].append(time_once(work, device))
            processor[name].append(time.process_time() - before)
    return {name: Timing(tuple(seconds[name]), tuple(processor[name])) for name in works}


def time_once(work: Callable[[], object], device: torch.device) -> float:
    """The seconds of one call, all work that it has started on ``device`` included."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has done all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
