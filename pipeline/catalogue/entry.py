"""One benchmark of the catalogue, as its YAML file describes it.

The names, templates and counts are facts; ``sources`` of each file says where they are from.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from pydantic import Field, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.settings_file import Section, parse_section
from pipeline.text import did_you_mean
from pipeline.yaml_text import parse_yaml


class Split(Section):
    """A division of the images that papers use."""

    train: int | None = Field(gt=0)  # number of images; None: not known
    test: int | None = Field(gt=0)
    about: str
    classes: int | None = Field(None, gt=0)  # None: all classes of the benchmark
    lists: bool = False  # the lists of the owner define it
    sha256: str | None = Field(None, pattern="[0-9a-f]{64}")  # of the membership, if it is known


class Protocol(Section):
    """A division of the classes into tasks."""

    initial: int = Field(gt=0)  # classes of the first task
    increment: int = Field(gt=0)  # classes of each further task
    users: str  # toolboxes that use it


class Lists(Section):
    """Text files of the owner that name the images of each split, one a line.

    A line pattern has the groups ``path`` and ``label``; or ``id``, which the file ``ids`` maps to
    them. ``train_path`` and ``test_path`` make the path from the groups and the number of the line,
    such as ``image_{id:0>5}`` and ``{line}``. The file ``names`` maps a ``label`` to a class. An
    entry of ``train`` that ends with a slash is a folder of class folders. A MATLAB file counts as
    the lines of :func:`pipeline.data.prepare.matlab_file.matlab_text`.
    """

    train: list[str] = Field(min_length=1)
    test: list[str] = Field(min_length=1)
    train_line: str
    test_line: str | None = None  # None: as train_line
    train_path: str | None = None
    test_path: str | None = None
    ids: str | None = None
    ids_line: str | None = None
    names: str | None = None
    names_line: str | None = None
    images: str | None = None  # the folder that has the images, if others are beside it

    @field_validator("train_line", "test_line", "ids_line", "names_line")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            re.compile(pattern)
        return pattern

    @property
    def lines(self) -> dict[str, re.Pattern[str]]:
        """The pattern of a line of each split."""
        test_line = self.test_line or self.train_line
        return {"train": re.compile(self.train_line), "test": re.compile(test_line)}

    @property
    def path_formats(self) -> dict[str, str]:
        """The format of the path of each split."""
        return {"train": self.train_path or "{path}", "test": self.test_path or "{path}"}

    @property
    def files(self) -> dict[str, list[str]]:
        """The files of each split; their paths start at any folder of the source."""
        return {"train": self.train, "test": self.test}


class Benchmark(Section):
    """A data set with all that a comparison must keep equal."""

    title: str
    url: str  # where a person gets it
    licence: str
    sources: dict[str, str]  # of the facts in this file
    class_count: int
    templates: list[str] = Field(min_length=1)  # training uses the first, tests the ensemble
    splits: dict[str, Split]
    class_order: str
    protocols: dict[str, Protocol]  # the first one is the default
    layout: str  # of its images, for people
    published_orders: list[str] = []  # further class orders in use
    lists: Lists | None = None
    ignored: list[str] = []  # class folders of the owner that are not classes
    classes: dict[str, str]  # the name of each class by its folder or label

    @model_validator(mode="after")
    def _check_facts(self) -> Benchmark:
        names = [" ".join(name.lower().split()) for name in self.classes.values()]
        if not len(set(names)) == len(names) == self.class_count:
            raise ValueError(f"has {len(set(names))} different names, not {self.class_count}")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} needs exactly one '{{}}'")
        for name, protocol in self.protocols.items():
            if protocol.initial > self.class_count:
                raise ValueError(f"protocol {name} begins with more classes than there are")
        return self

    def classes_of(self, split: Split) -> int:
        """The number of classes of one of its splits."""
        return split.classes or self.class_count


@cache
def benchmark_names() -> tuple[str, ...]:
    """The names of all benchmarks, sorted."""
    files = resources.files(__package__).iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


@cache
def read_benchmark(name: str) -> Benchmark:
    """The benchmark ``name``.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in benchmark_names():
        remedy = did_you_mean(name, benchmark_names())
        raise ConfigError(f"{name!r} is not a benchmark of the catalogue; {remedy}")
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return parse_section(Benchmark, parse_yaml(text, place=name), place=name)
