"""The settings of a benchmark: those of a run, and the sizes of the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline.config import Config
from pipeline.settings_file import Section, load_section

DRAWN = "drawn"  # as data.index: images that the benchmark draws and writes as shards itself
_DEFAULT = Path(__file__).with_name("vitb16.yaml")


class BenchSizes(Section):
    """How much each benchmark measures."""

    repeats: int = Field(5, gt=0)  # measurements of each piece of work
    warmup: int = Field(1, ge=0)  # rounds before them that are not counted
    seen: int = Field(200, gt=0)  # step: classes seen, tasks.classes_per_task of them current
    batches: tuple[int, ...] = (8, 32)  # step: images of one rank per optimizer step
    reference_queries: bool = False  # step: the reference computes frozen features in each step
    ceiling_side: int | None = None  # of the matrices whose product is the ceiling of FLOP/s


class BenchConfig(Config):
    """A run whose parts are measured; ``bench.KEY=VALUE`` changes a size."""

    bench: BenchSizes = BenchSizes()


def load_bench_config(path: str | Path | None, overrides: Sequence[str]) -> BenchConfig:
    """The settings in a configuration of a run, or the default: ViT-B/16 with random weights.

    Raises:
        ConfigError: as :func:`pipeline.settings_file.load_section`.
    """
    return load_section(BenchConfig, path or _DEFAULT, overrides)
