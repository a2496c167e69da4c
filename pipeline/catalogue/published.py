"""Public results on the benchmarks and sequences of the catalogue, with their known protocol.

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
from pipeline.catalogue.entry import Split, read_benchmark
from pipeline.catalogue.sequences import SEQUENCES, BenchmarkSequence, own_sequence
from pipeline.errors import ConfigError
from pipeline.settings_file import Section, parse_section
from pipeline.tasks import SEEDED_ORDERS, class_order
from pipeline.text import did_you_mean
from pipeline.yaml_text import parse_yaml

Order = Literal["natural", "lamda", "mammoth", "icarl", "other"]
_OF_SEQUENCES = {"label_space", "splits", "templates", "transfer"}
_OF_BENCHMARKS = {
    *("benchmark", "protocol", "split", "class_order", "order_seed"),
    *("forgetting", "forgetting_formula"),
}


class PublishedResult(Section):
    """The figures of one method in one protocol, in per cent; None: not known.

    Of a sequence, ``average`` and ``last`` are the Average and Last of the papers, see
    :mod:`pipeline.output.transfer_metrics`.
    """

    benchmark: str | None = None  # a name of the catalogue
    protocol: str | None = None  # one of the benchmark, such as B0-10
    sequence: str | list[str] | None = None  # instead of the two: its name, or its benchmarks
    label_space: Literal["task", "all"] | None = None  # of a sequence; None: as in the catalogue
    split: str | None = None  # one of the benchmark
    splits: dict[str, str] = {}  # of a sequence: one of each benchmark, by its name
    class_order: Order | list[int] | None = None  # other: a list that is not in this file
    order_seed: int = 1993  # of lamda and mammoth
    templates: Literal["sequence"] | None = None  # those that the catalogue has for the sequence
    arch: str | None = None  # as open_clip names it; local-dir for a folder
    weights: str | None = Field(
        None, min_length=1
    )  # a tag of open_clip, or the sha256 of the backbone
    eval_transforms: list[Literal["clip", "squash"]] = []  # that give the published images
    metric: Literal["micro", "macro"] | None = None  # micro: over images; macro: mean over tasks
    method: str  # as its authors write it
    transfer: float | None = Field(None, ge=0, le=100)  # of a sequence
    average: float | None = Field(None, ge=0, le=100)  # of the accuracies after each task
    last: float | None = Field(None, ge=0, le=100)
    forgetting: float | None = Field(None, ge=-100, le=100)
    forgetting_formula: str | None = None
    exemplars: int | None = Field(None, ge=0)  # kept images of old classes; 0: none
    note: str | None = None
    source: str  # paper, repository or thread

    @model_validator(mode="after")
    def _check_protocol(self) -> PublishedResult:
        """Refuse what the catalogue does not have, and facts of the other kind of protocol."""
        try:
            self._check_names()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        for benchmark, split in zip(self.benchmarks, self.split_names, strict=True):
            known = self.splits_of(benchmark)
            if split is not None and split not in known:
                there = ", ".join(known)
                raise ValueError(f"{split!r} is no split of {benchmark}; there are {there}")
        if self.average is None and self.last is None:
            raise ValueError(f"{self.method} has neither average nor last")
        _ = self.labels
        return self

    def _check_names(self) -> None:
        if self.sequence is None:
            if self.benchmark is None or self.protocol is None:
                raise ConfigError("needs benchmark and protocol, or sequence")
            protocols = read_benchmark(self.benchmark).protocols
            if self.protocol not in protocols:
                there = ", ".join(protocols)
                raise ConfigError(
                    f"{self.protocol!r} is no protocol of {self.benchmark}; there are {there}"
                )
        elif isinstance(self.sequence, str) and self.sequence not in SEQUENCES:
            remedy = did_you_mean(self.sequence, SEQUENCES)
            raise ConfigError(f"{self.sequence!r} is no sequence of the catalogue; {remedy}")
        elif isinstance(self.sequence, list) and self.label_space is None:
            raise ConfigError("a sequence that is a list needs label_space: task or all")
        other = _OF_BENCHMARKS if self.sequence else _OF_SEQUENCES
        if given := sorted(other & self.model_fields_set):
            raise ConfigError(f"{given[0]} is no fact of {self.title}; leave it out")
        if unknown := sorted({*self.splits} - {*self.benchmarks}):
            raise ConfigError(f"splits: {unknown[0]} is no benchmark of {self.title}")
        for name in self.benchmarks:
            read_benchmark(name)

    @property
    def title(self) -> str:
        """The benchmark; of a sequence: its name and its benchmarks in order."""
        names = ", ".join(self.benchmarks)
        return f"{self.sequence} ({names})" if isinstance(self.sequence, str) else names

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks of the sequence in order, or the only one."""
        found = self.found_sequence
        return found.benchmarks if found else (str(self.benchmark),)

    @property
    def found_sequence(self) -> BenchmarkSequence | None:
        """The sequence, of the catalogue or of its own."""
        if isinstance(self.sequence, list):
            return own_sequence(tuple(self.sequence))
        return SEQUENCES[self.sequence] if self.sequence else None

    @property
    def split_names(self) -> tuple[str | None, ...]:
        """The split of each benchmark; None if it is not known."""
        return tuple(map(self.splits.get, self.benchmarks)) if self.sequence else (self.split,)

    def splits_of(self, benchmark: str) -> dict[str, Split]:
        """The splits of one of its benchmarks by name."""
        found = self.found_sequence
        return found.splits_of(benchmark) if found else read_benchmark(benchmark).splits

    @property
    def tested_among(self) -> str:
        """The classes that an image may get, as ``evaluation.label_space``."""
        found = self.found_sequence
        return self.label_space or (found.label_space if found else "seen")

    @property
    def figures(self) -> dict[str, float | None]:
        """Its figures in per cent, by their key in results.json."""
        if self.sequence:
            return {
                "transfer": self.transfer,
                "average_over_matrix": self.average,
                "last_over_tasks": self.last,
            }
        return {
            "average_incremental_accuracy": self.average,
            "last_accuracy": self.last,
            "forgetting": self.forgetting,
        }

    @property
    def task_sizes(self) -> tuple[int, ...]:
        """The number of classes of each task."""
        if self.sequence:
            return self._class_counts
        (n_classes,) = self._class_counts
        protocol = read_benchmark(self.benchmarks[0]).protocols[str(self.protocol)]
        starts = [0, *range(protocol.initial, n_classes, protocol.increment)]
        return tuple(b - a for a, b in zip(starts, [*starts[1:], n_classes], strict=True))

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The class order as labels of the index; None if it is not known."""
        if self.class_order in (None, "other"):
            return None
        try:
            return class_order(self.class_order, sum(self._class_counts), self.order_seed)
        except ConfigError as error:
            raise ValueError(str(error)) from None

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

    @property
    def _class_counts(self) -> tuple[int, ...]:
        """The number of classes of each benchmark."""
        return tuple(
            read_benchmark(name).classes_of(self.splits_of(name)[split])
            if split
            else read_benchmark(name).class_count
            for name, split in zip(self.benchmarks, self.split_names, strict=True)
        )


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
