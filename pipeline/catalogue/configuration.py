"""The configuration of a run on a benchmark, made from its entry in the catalogue."""

from __future__ import annotations

from typing import Any

from pipeline.catalogue.entry import Benchmark, Split, read_benchmark
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
    settings = _settings(name, entry, protocol, (arch, weights))
    parse_section(Config, settings, place=f"configuration of {name}")
    return _comment(name, entry, protocol) + format_yaml(settings)


def split_line(entry: Benchmark, split: Split) -> str:
    """Classes and images of a split, on one line."""
    train, test = ("?" if n is None else f"{n:,}" for n in (split.train, split.test))
    return f"{entry.classes_of(split)} classes, {train} training and {test} test images"


def _settings(
    name: str, entry: Benchmark, protocol: str, backbone: tuple[str, str]
) -> dict[str, Any]:
    arch, weights = backbone
    run = f"{name}_{arch.replace('/', '').lower()}_{protocol.lower()}"
    tasks = entry.protocols[protocol]
    return {
        "name": run,
        "output": f"runs/{run}",
        "data": {"index": f"data/{name}", "workers": 4},
        "tasks": {
            "class_order": entry.class_order,
            **({"initial_classes": tasks.initial} if tasks.initial != tasks.increment else {}),
            "classes_per_task": tasks.increment,
        },
        "model": {"arch": BACKBONES[backbone], "weights": weights},
        "text": {"templates": entry.templates, "ensemble": len(entry.templates) > 1},
        "method": {"name": "tppt_vt"},
        "optim": {"learning_rate": 1e-3, "epochs": 10},
    }


def _comment(name: str, entry: Benchmark, protocol: str) -> str:
    users = entry.protocols[protocol].users
    lines = [f"{entry.title}, protocol {protocol} ({users}), made from the catalogue.", ""]
    lines += [f"Data:    {entry.url}", f"Licence: {entry.licence}"]
    shard = f"python -m pipeline.prepare shard --benchmark {name} --source DIR --out data/{name}"
    lines.append(f"Prepare: {shard}")
    lines += [f"Split:   {split}: {split_line(entry, s)}" for split, s in entry.splits.items()]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
