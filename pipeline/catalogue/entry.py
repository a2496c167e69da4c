"""One benchmark of the catalogue, as its YAML file describes it.

The names, templates and counts are facts; ``sources`` of each file says where they are from.
"""

from __future__ import annotations

import re
from functools import cache, cached_property
from importlib import resources

from pydantic import Field, model_validator

from pipeline.errors import ConfigError
from pipeline.settings_file import Section, parse_section
from pipeline.templates import Templates
from pipeline.text import did_you_mean
from pipeline.yaml_text import parse_yaml

ANY_LAYOUT = "train/<class>/* and test/<class>/*; or <class>/* with --split FILE or --test-fraction"


class Split(Section):
    """A division of the images that papers use."""

    train: int | None = Field(gt=0)  # number of images; None: not known
    test: int | None = Field(gt=0)
    about: str
    classes: int | None = Field(None, gt=0)  # None: all classes of the benchmark
    file: str | None = None  # its list for --split FILE, by name
    sha256: str | None = Field(None, pattern="[0-9a-f]{64}")  # of the membership, if it is known


class Protocol(Section):
    """A division of the classes into tasks."""

    initial: int = Field(gt=0)  # classes of the first task
    increment: int = Field(gt=0)  # classes of each further task
    users: str  # toolboxes that use it


class Lists(Section):
    """Text files of the owner that name the images of a split, one a line.

    A line pattern has the groups ``path`` and ``label``; or ``id``, which the file ``ids`` maps to
    them. ``path`` makes the path from the groups, the number of the line and the split, such as
    ``image_{id:0>5}``, ``{line}`` and ``cars_{split}``. The file ``names`` maps a ``label`` to a
    class. An entry of ``train`` that ends with a slash is a folder of class folders. A MATLAB file
    counts as the lines of :func:`pipeline.data.prepare.matlab_file.matlab_text`.
    """

    split: str | None  # that they define; None: they only give the class of each image
    train: list[str] = Field(min_length=1)
    test: list[str] = []
    train_line: re.Pattern[str]
    test_line: re.Pattern[str] | None = None  # None: as train_line
    path: str = "{path}"
    ids: str | None = None
    ids_line: re.Pattern[str] | None = None
    names: str | None = None
    names_line: re.Pattern[str] | None = None
    heading: re.Pattern[str] | None = None  # a line without an image
    videos: bool = False  # the owner has videos, whose middle frames are the images

    @property
    def parts(self) -> tuple[tuple[str, list[str], re.Pattern[str]], ...]:
        """Split, files and pattern of a line; the paths of files start at any folder."""
        test_line = self.test_line or self.train_line
        return ("train", self.train, self.train_line), ("test", self.test, test_line)

    @property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """All forms of a line; one file may have lines of several."""
        lines = (self.train_line, self.test_line, self.ids_line, self.names_line, self.heading)
        return tuple(line for line in lines if line is not None)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files, without folders of class folders."""
        names = (*self.train, *self.test, self.ids, self.names)
        return tuple(dict.fromkeys(n for n in names if n is not None and not n.endswith("/")))


class Benchmark(Section):
    """A data set with all that a comparison must keep equal."""

    title: str
    url: str  # where a person gets it
    licence: str
    sources: dict[str, str]  # of the facts in this file
    class_count: int
    templates: Templates  # training uses the first, tests the ensemble
    splits: dict[str, Split]
    class_order: str
    protocols: dict[str, Protocol]  # the first one is the default
    published_orders: list[str] = []  # further class orders in use
    lists: list[Lists] = []  # the first one whose files are there is read
    other_layout: str | None = None  # of this benchmark, without lists
    ignored: list[str] = []  # class folders of the owner that are not classes
    classes: dict[str, str]  # the name of each class by its folder or label

    @model_validator(mode="after")
    def _check_facts(self) -> Benchmark:
        names = [" ".join(name.lower().split()) for name in self.classes.values()]
        if not len(set(names)) == len(names) == self.class_count:
            raise ValueError(f"has {len(set(names))} different names, not {self.class_count}")
        for name, protocol in self.protocols.items():
            if protocol.initial > self.class_count:
                raise ValueError(f"protocol {name} begins with more classes than there are")
        for lists in self.lists:
            if lists.split is not None and lists.split not in self.splits:
                raise ValueError(f"lists define {lists.split!r}, which is no split")
        return self

    @property
    def layout(self) -> str:
        """The forms in which its images are read, for people."""
        forms = []
        for lists in self.lists:
            folders = [f"{name}<class>/*" for name in lists.train if name.endswith("/")]
            files = " ".join(folders) or ("videos or images" if lists.videos else "images")
            form = f"{files} with {', '.join(lists.files)}"
            forms.append(form if lists.split else f"{form} and --split FILE")
        forms += [self.other_layout] if self.other_layout else []
        return "; or ".join(forms) or ANY_LAYOUT

    def classes_of(self, split: Split) -> int:
        """The number of classes of one of its splits."""
        return split.classes or self.class_count

    def find_class(self, folder: str) -> str | None:
        """The class folder of the catalogue for a folder or label of a source.

        Case and signs do not matter: owners and toolboxes write ``F-16A/B`` and ``f-16a b``.
        """
        return folder if folder in self.classes else self._similar.get(_letters(folder))

    @cached_property
    def _similar(self) -> dict[str, str]:
        by_name = {_letters(name): folder for folder, name in self.classes.items()}
        return by_name | {_letters(folder): folder for folder in self.classes}


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


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())
