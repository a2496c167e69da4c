"""Configurations of runs on benchmarks, made from their entries in the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.catalogue.entry import Benchmark, Split, read_benchmark
from pipeline.catalogue.sequences import SPLIT, BenchmarkSequence
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.settings_file import parse_section
from pipeline.text import did_you_mean
from pipeline.yaml_text import format_yaml

# OpenAI's weights were trained with QuickGELU, those of LAION with plain GELU.
BACKBONES = {
    ("B/16", "openai"): "ViT-B-16-quickgelu",
    ("L/14", "openai"): "ViT-L-14-quickgelu",
    ("B/16", "laion400m_e32"): "ViT-B-16",
    ("L/14", "laion400m_e32"): "ViT-L-14",
}
ARCHITECTURES = tuple(dict.fromkeys(arch for arch, _ in BACKBONES))
WEIGHTS = tuple(dict.fromkeys(weights for _, weights in BACKBONES))


def configuration_text(
    name: str, arch: str, *, weights: str = "openai", protocol: str | None = None
) -> str:
    """A configuration as YAML, with a comment that says how to prepare its data.

    ``arch`` and ``weights`` are a key of ``BACKBONES``; ``protocol`` None is the first one.

    Raises:
        ConfigError: the benchmark or its protocol is not in the catalogue.
    """
    entry = read_benchmark(name)
    protocol = protocol or next(iter(entry.protocols))
    if protocol not in entry.protocols:
        remedy = did_you_mean(protocol, entry.protocols)
        raise ConfigError(f"{protocol!r} is not a protocol of {name}; {remedy}")
    run = f"{name}_{_short(arch)}_{protocol.lower()}"
    tasks = entry.protocols[protocol]
    sections = {
        "data": {"index": f"data/{name}", "workers": 4},
        "tasks": {
            "class_order": entry.class_order,
            **({"initial_classes": tasks.initial} if tasks.initial != tasks.increment else {}),
            "classes_per_task": tasks.increment,
        },
    }
    settings = _settings(run, sections, (arch, weights), [entry.templates])
    return _comment(_lines(name, entry, protocol)) + _checked(settings)


def sequence_text(
    name: str, sequence: BenchmarkSequence, arch: str, *, weights: str = "openai"
) -> str:
    """The same for a sequence of benchmarks; each is one task, with its own templates.

    Raises:
        ConfigError: a benchmark is not in the catalogue, or is named twice.
    """
    names = sequence.benchmarks
    entries = [read_benchmark(each) for each in names]
    if len({*names}) < len(names):
        raise ConfigError(f"a benchmark is named twice in {', '.join(names)}; name each once")
    sections = {
        "data": {"index": [f"data/{each}" for each in names], "workers": 4},
        "tasks": {"classes_per_task": "all", "known_classes": "apart"},
    }
    templates = [sequence.templates_of(each) for each in names]
    settings = _settings(f"{name}_{_short(arch)}", sections, (arch, weights), templates)
    settings["evaluation"] = {"label_space": sequence.label_space, "future_tasks": True}
    return _comment(_sequence_lines(sequence, entries)) + _checked(settings)


def split_line(entry: Benchmark, split: Split) -> str:
    """Classes and images of a split, on one line."""
    train, test = ("?" if n is None else f"{n:,}" for n in (split.train, split.test))
    return f"{entry.classes_of(split)} classes, {train} training and {test} test images"


def _short(arch: str) -> str:
    return arch.replace("/", "").lower()


def _settings(
    run: str,
    sections: dict[str, Any],
    backbone: tuple[str, str],
    templates: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """The settings of a run; ``sections`` are its data and tasks."""
    is_shared = all(each == templates[0] for each in templates)
    return {
        "name": run,
        "output": f"runs/{run}",
        **sections,
        "model": {"arch": BACKBONES[backbone], "weights": backbone[1]},
        "text": {
            "templates": templates[0] if is_shared else templates,
            "ensemble": any(len(each) > 1 for each in templates),
        },
        "method": {"name": "tppt_vt"},
        "optim": {"learning_rate": 1e-3, "epochs": 10},
    }


def _checked(settings: dict[str, Any]) -> str:
    """The settings as YAML that a run accepts."""
    parse_section(Config, settings, place=f"configuration {settings['name']}")
    return format_yaml(settings)


def _lines(name: str, entry: Benchmark, protocol: str) -> Iterator[str]:
    users = entry.protocols[protocol].users
    yield f"{entry.title}, protocol {protocol} ({users}), made from the catalogue."
    yield ""
    yield f"Data:    {entry.url}"
    yield f"Licence: {entry.licence}"
    yield f"Prepare: {_prepare(name)}"
    yield from (f"Split:   {split}: {split_line(entry, s)}" for split, s in entry.splits.items())


def _sequence_lines(sequence: BenchmarkSequence, entries: Sequence[Benchmark]) -> Iterator[str]:
    yield f"{sequence.title}, made from the catalogue."
    if sequence.source:
        yield f"Source:  {sequence.source}"
    if sequence.note:
        yield f"Note:    {sequence.note}"
    for name, entry in zip(sequence.benchmarks, entries, strict=True):
        yield ""
        yield f"{entry.title}; licence: {entry.licence}; {entry.url}"
        split = f"{SPLIT}.json" if name in sequence.splits else "|".join(entry.splits)
        yield f"  {_prepare(name)}" + (f" --split {split}" if split not in entry.splits else "")


def _prepare(name: str) -> str:
    return f"python -m pipeline.prepare shard --benchmark {name} --source DIR --out data/{name}"


def _comment(lines: Iterable[str]) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
