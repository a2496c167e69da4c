"""The settings of a benchmark: those of a run, and the sizes of the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.settings_file import Section, load_section

DRAWN = "drawn"  # as data.index: images that the benchmark draws and writes as shards itself
_DEFAULTS = {"gpu": "vitl14.yaml"}  # by benchmark; vitb16.yaml for the others


class BenchSizes(Section):
    """How much each benchmark measures."""

    repeats: int = Field(5, gt=0)  # measurements of each piece of work
    warmup: int = Field(1, ge=0)  # rounds before them that are not counted
    longest_s: float = Field(120.0, gt=0)  # all repeats of some pieces of work; else fewer repeats
    seen: int = Field(200, gt=0)  # classes seen, tasks.classes_per_task of them current
    images: int = Field(64, gt=0)  # eval, sequence: drawn test images; as many for training
    batches: tuple[int, ...] = (8, 32)  # step: images of one rank per optimizer step
    reference_queries: bool = False  # step: the reference computes frozen features in each step
    text_classes: tuple[int, ...] = (20, 200, 1000, 10_000)  # text: classes encoded together
    features: int = Field(2000, gt=0)  # fit: images of a task
    # scale: tasks, and classes of all tasks together
    scale: tuple[tuple[int, int], ...] = ((1, 10), (10, 100), (100, 1000), (100, 10_000))
    gpu_tflops: float = Field(400.0, gt=0)  # scale: of one GPU, where none is measured
    ranks: int = Field(1, gt=0)  # launch
    # data: pixels per side of stored and of streamed images, and number of drawn ones
    streams: tuple[tuple[int, int, int], ...] = ((64, 64, 10_000), (256, 224, 2_000))
    url: str | None = None  # data: a folder of an object store to write to and to read from
    large: tuple[int, int, int] = (1000, 10_000, 10_000)  # data: shards, samples of each, classes
    large_ranks: int = Field(8, gt=0)  # data: processes of a node that start on these
    ceiling_side: int | None = None  # of the matrices whose product is the ceiling of FLOP/s


class BenchConfig(Config):
    """A run whose parts are measured; ``bench.KEY=VALUE`` changes a size."""

    bench: BenchSizes = BenchSizes()

    @property
    def task_classes(self) -> int:
        """Classes of the task that is measured.

        Raises:
            ConfigError: ``tasks.classes_per_task`` is no number.
        """
        if self.tasks.classes_per_task == "all":
            raise ConfigError("tasks.classes_per_task is 'all'; a benchmark needs a number")
        return self.tasks.classes_per_task


def load_bench_config(name: str, path: str | None, overrides: Sequence[str]) -> BenchConfig:
    """The settings in a configuration of a run, or the default of the benchmark ``name``.

    Raises:
        ConfigError: as :func:`pipeline.settings_file.load_section`.
    """
    default = Path(__file__).with_name(_DEFAULTS.get(name, "vitb16.yaml"))
    return load_section(BenchConfig, path or default, overrides)
