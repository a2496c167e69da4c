"""Sequences of complete benchmarks in use: MTIL and X-TAIL, each benchmark one task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.catalogue.entry import Split, read_benchmark


class BenchmarkSequence(NamedTuple):
    """Benchmarks that are learned one after another, with what a comparison must keep equal."""

    title: str
    source: str
    benchmarks: tuple[str, ...]
    label_space: Literal["task", "all"]  # evaluation.label_space
    templates: Mapping[str, tuple[str, ...]] = {}  # of those that do not use the catalogue's
    splits: Mapping[str, Split] = {}  # of those whose split the catalogue lacks; named SPLIT
    note: str = ""  # what a configuration cannot state

    def templates_of(self, benchmark: str) -> list[str]:
        """The templates of one of its benchmarks; training uses the first."""
        own = self.templates.get(benchmark)
        return [*own] if own else read_benchmark(benchmark).templates

    def splits_of(self, benchmark: str) -> dict[str, Split]:
        """The splits of one of its benchmarks by name: those of the catalogue, and its own."""
        own = {SPLIT: self.splits[benchmark]} if benchmark in self.splits else {}
        return read_benchmark(benchmark).splits | own


SPLIT = "mtil"  # the name of an index that was prepared with --split mtil.json
_IN_ORDER = (
    *("aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers102"),
    *("food101", "mnist", "pets", "cars", "sun397"),
)
_RANDOM = (
    *("cars", "food101", "mnist", "pets", "flowers102", "sun397"),
    *("aircraft", "caltech101", "dtd", "eurosat", "cifar100"),
)
_ZSCL = "ZSCL, arXiv 2303.06628"
_REPOSITORY = "github.com/Thunderbeee/ZSCL@08c6ef6"
# As a copy of its repository has them: github.com/AlexieLinardatos/ZSCL@9a47c0b, file
# mtil/src/datasets/collections.py. The test counts fit the accuracies in its notebook.
_ZSCL_TEMPLATES = {
    "food101": ("a photo of a {}, a type of food.",),
    "cars": (
        *("a photo of a {}, a type of car.", "a photo of a {}.", "a photo of the {}."),
        *("a photo of my {}.", "i love my {}!", "a photo of my dirty {}."),
        *("a photo of my clean {}.", "a photo of my new {}.", "a photo of my old {}."),
    ),
}
_DRAWN = "80 % of torchvision's data set, by torch.utils.data.random_split with seed 42"
_ZSCL_SPLITS = {
    "caltech101": Split(train=6941, test=1736, about=_DRAWN),
    "dtd": Split(train=1880, test=1880, about="train1 for training, test1 for tests"),
    "eurosat": Split(train=21_600, test=5400, about=_DRAWN),
    "flowers102": Split(train=1020, test=6149, about="its training images alone, its test images"),
    "sun397": Split(train=87_003, test=21_751, about=_DRAWN),
}

SEQUENCES = {
    "mtil": BenchmarkSequence(
        "MTIL, order I",
        f"{_ZSCL}; {_REPOSITORY}",
        _IN_ORDER,
        "task",
        _ZSCL_TEMPLATES,
        _ZSCL_SPLITS,
    ),
    "mtil-2": BenchmarkSequence(
        "MTIL, order II", _ZSCL, _RANDOM, "task", _ZSCL_TEMPLATES, _ZSCL_SPLITS
    ),
    "x-tail": BenchmarkSequence(
        "X-TAIL",
        "RAIL, arXiv 2406.18868; github.com/linghan1997/"
        "Regression-based-Analytic-Incremental-Learning@a0ecaef",
        tuple(name for name in _IN_ORDER if name != "cifar100"),
        "all",
        templates=dict.fromkeys(_IN_ORDER, ("a photo of a {}.",)),
        note="it learns from 16 images of each class of CoOp's splits; prepare with --split FILE",
    ),
}


def own_sequence(names: tuple[str, ...]) -> BenchmarkSequence:
    """A sequence of any benchmarks, tested over the classes of all."""
    return BenchmarkSequence(f"A sequence of {len(names)} benchmarks", "", names, "all")
