"""Sequences of complete benchmarks in use: MTIL and X-TAIL, each benchmark one task."""

from __future__ import annotations

from typing import Literal, NamedTuple


class BenchmarkSequence(NamedTuple):
    """Benchmarks that are learned one after another, with what a comparison must keep equal."""

    title: str
    source: str
    benchmarks: tuple[str, ...]
    label_space: Literal["task", "all"]  # evaluation.label_space
    templates: tuple[str, ...] = ()  # of all of them; empty: each has those of the catalogue
    note: str = ""  # what a configuration cannot state


_IN_ORDER = (
    *("aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers102"),
    *("food101", "mnist", "pets", "cars", "sun397"),
)
_RANDOM = (
    *("cars", "food101", "mnist", "pets", "flowers102", "sun397"),
    *("aircraft", "caltech101", "dtd", "eurosat", "cifar100"),
)
_ZSCL = "ZSCL, arXiv 2303.06628"

SEQUENCES = {
    "mtil": BenchmarkSequence(
        "MTIL, order I", f"{_ZSCL}; github.com/Thunderbeee/ZSCL@08c6ef6", _IN_ORDER, "task"
    ),
    "mtil-2": BenchmarkSequence("MTIL, order II", _ZSCL, _RANDOM, "task"),
    "x-tail": BenchmarkSequence(
        "X-TAIL",
        "RAIL, arXiv 2406.18868; github.com/linghan1997/"
        "Regression-based-Analytic-Incremental-Learning@a0ecaef",
        tuple(name for name in _IN_ORDER if name != "cifar100"),
        "all",
        templates=("a photo of a {}.",),
        note="it learns from 16 images of each class of CoOp's splits; prepare with --split FILE",
    ),
}


def own_sequence(names: tuple[str, ...]) -> BenchmarkSequence:
    """A sequence of any benchmarks, tested over the classes of all."""
    return BenchmarkSequence(f"A sequence of {len(names)} benchmarks", "", names, "all")
