"""Public results on the benchmarks of the catalogue, each with what is known of its protocol.

A file of results is a list of tables. ``shared`` holds for all results of a table; a result may
state a fact otherwise. A fact that is left out is not known, which is never read as equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline import storage
from pipeline.catalogue.entry import Benchmark, read_benchmark
from pipeline.errors import ConfigError
from pipeline.settings_file import Section, parse_section
from pipeline.tasks import SEEDED_ORDERS, class_order
from pipeline.yaml_text import parse_yaml

Order = Literal["natural", "lamda", "mammoth", "icarl", "other"]


class PublishedResult(Section):
    """The figures of one method in one protocol, in per cent; None: not known."""

    benchmark: str  # a name of the catalogue
    protocol: str  # one of the benchmark, such as B0-10
    split: str | None = None  # one of the benchmark
    class_order: Order | list[int] | None = None  # other: a list that is not in this file
    order_seed: int = 1993  # of lamda and mammoth
    arch: str | None = None  # as open_clip names it; local-dir for a folder
    weights: str | None = Field(
        None, min_length=1
    )  # a tag of open_clip, or the sha256 of the backbone
    eval_transforms: list[Literal["clip", "squash"]] = []  # that give the published images
    metric: Literal["micro", "macro"] | None = None  # micro: over images; macro: mean over tasks
    method: str  # as its authors write it
    average: float | None = Field(None, ge=0, le=100)  # of the accuracies after each task
    last: float | None = Field(None, ge=0, le=100)
    forgetting: float | None = Field(None, ge=-100, le=100)
    forgetting_formula: str | None = None
    exemplars: int | None = Field(None, ge=0)  # kept images of old classes; 0: none
    note: str | None = None
    source: str  # paper, repository or thread

    @model_validator(mode="after")
    def _check_protocol(self) -> PublishedResult:
        """Refuse a benchmark, protocol, split or order that the catalogue does not have."""
        try:
            entry = read_benchmark(self.benchmark)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        for kind, found, known in (
            ("protocol", self.protocol, entry.protocols),
            ("split", self.split, entry.splits),
        ):
            if found is not None and found not in known:
                there = ", ".join(known)
                raise ValueError(f"{found!r} is no {kind} of {self.benchmark}; there are {there}")
        if self.average is None and self.last is None:
            raise ValueError(f"{self.method} has neither average nor last")
        _labels(self, entry)
        return self

    @property
    def task_sizes(self) -> tuple[int, ...]:
        """The number of classes of each task."""
        entry = read_benchmark(self.benchmark)
        protocol, n_classes = entry.protocols[self.protocol], _n_classes(self, entry)
        starts = [0, *range(protocol.initial, n_classes, protocol.increment)]
        return tuple(b - a for a, b in zip(starts, [*starts[1:], n_classes], strict=True))

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The class order as labels of the index; None if it is not known."""
        return _labels(self, read_benchmark(self.benchmark))

    @property
    def order_name(self) -> str | None:
        """The class order in words; None if it is not known."""
        if isinstance(self.class_order, list):
            return "a list"
        if self.class_order == "other":
            return "a list of its authors"
        if self.class_order in SEEDED_ORDERS:
            return f"{self.class_order} with tasks.order_seed={self.order_seed}"
        return self.class_order


class _Table(Section):
    source: str
    about: str | None = None
    shared: dict[str, Any] = {}
    results: list[dict[str, Any]] = Field(min_length=1)


class _File(Section):
    tables: list[_Table]


def read_published(files: Sequence[str] = ()) -> tuple[PublishedResult, ...]:
    """The results of the catalogue, and those of further ``files`` or URLs.

    Raises:
        ConfigError: a file is missing or has another form, or names what the catalogue lacks.
    """
    results = list(_of_catalogue())
    for url in files:
        place = storage.redact(url)
        if not storage.exists(url):
            raise ConfigError(f"{place}: is no file of published results; correct the path")
        results += _parse(storage.read_text(url), place)
    return tuple(results)


@cache
def _of_catalogue() -> tuple[PublishedResult, ...]:
    file = resources.files(__package__) / "results" / "published.yaml"
    return tuple(_parse(file.read_text(encoding="utf-8"), "published.yaml"))


def _parse(text: str, place: str) -> list[PublishedResult]:
    file = parse_section(_File, {"tables": parse_yaml(text, place=place)}, place=place)
    return [
        parse_section(
            PublishedResult,
            {"source": table.source, **table.shared, **result},
            place=f"{place}: table {number} ({table.source}), result {position}",
        )
        for number, table in enumerate(file.tables, start=1)
        for position, result in enumerate(table.results, start=1)
    ]


def _n_classes(result: PublishedResult, entry: Benchmark) -> int:
    return entry.classes_of(entry.splits[result.split]) if result.split else entry.class_count


def _labels(result: PublishedResult, entry: Benchmark) -> tuple[int, ...] | None:
    if result.class_order in (None, "other"):
        return None
    try:
        return class_order(result.class_order, _n_classes(result, entry), result.order_seed)
    except ConfigError as error:
        raise ValueError(str(error)) from None
