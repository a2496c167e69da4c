"""Runs that are stopped or die at a chosen point."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import Config
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World, read_world
from pipeline.errors import Preempted
from pipeline.model.weights import load_clip
from pipeline.output.recovery import snapshot_folder
from pipeline.settings_file import parse_section
from pipeline.training.checked_run import check_run
from pipeline.training.engine import Engine
from pipeline.training.run import execute
from tests.chaos.comparison import read_run
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def one_clip() -> Iterator[None]:
    """Loads the frozen CLIP once for all starts of this process; no run changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.run.load_clip", functools.cache(load_clip))
        yield


class StopAt(StopRequest):
    """A request to stop that comes at its ``count``-th check: before a step, or in a test."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def raise_if_requested(self) -> None:
        self.count -= 1
        if self.count == 0:
            self._reason = "stopped by the test"
        super().raise_if_requested()


class Died(BaseException):
    """The process ended here, without any handler."""


@contextmanager
def dying_before_step(task_steps: list[int], number: int) -> Iterator[None]:
    """A context in which a run dies before its optimizer step ``number``, counted over all tasks.

    ``task_steps`` are the steps of each task.
    """
    step = Engine.step

    def die_or_step(engine: Engine, index: int, *arguments: Any) -> Any:
        task = engine._method.task.index
        if sum(task_steps[:task]) + index == number:
            raise Died
        return step(engine, index, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", die_or_step)
        yield


@contextmanager
def dying_before_change(number: int) -> Iterator[None]:
    """A context in which a run dies before its ``number + 1``-th write or removal of a file."""
    left = [number]

    def counted(change: Any) -> Any:
        def die_or_change(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread().name == "progress":  # writes when it likes
                return change(*arguments, **options) if left[0] else None
            if not left[0]:  # and for every later change: a dead process writes nothing
                raise Died
            left[0] -= 1
            return change(*arguments, **options)

        return die_or_change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_atomically", "remove"):
            patch.setattr(storage, name, counted(getattr(storage, name)))
        yield


def start(config: Config, stop: StopRequest | None = None, world: World | None = None) -> bool:
    """Start or resume a run; returns whether it has finished and was not stopped or killed."""
    world = world or read_world({})
    try:
        execute(check_run(config, world.world_size), world, stop)
    except (Preempted, Died):
        return False
    return True


def start_on_ranks(
    world_size: int, config: Config, stop_at: int = -1, *, timeout_s: float = 120.0
) -> bool:
    """Start or resume on ranks of this machine; returns whether the run has finished.

    The last rank is asked to stop at its ``stop_at``-th check.
    """
    ranks = run_ranks(
        _start_rank, world_size, config, stop_at, collective_s=None, timeout_s=timeout_s
    )
    (has_finished,) = {*ranks}
    return has_finished


def _start_rank(world: World, config: Config, stop_at: int) -> bool:
    is_last = world.rank == world.world_size - 1
    return start(config, StopAt(stop_at) if is_last else None, world)


def changed(config: Config, **sections: Any) -> Config:
    """A copy of a configuration with other settings in some sections."""
    tree = config.model_dump(mode="json")
    for name, value in sections.items():
        tree[name] = tree[name] | value if isinstance(tree[name], dict) else value
    return parse_section(Config, tree, place="the test's configuration")


def newest_snapshot(config: Config) -> str | None:
    """The name of the newest complete snapshot; these names sort by age."""
    files = storage.list_files(snapshot_folder(config))
    names = [url.split("/")[-2] for url in files if url.endswith("/state.json")]
    return max(names, default=None)


class Reference:
    """A configuration and the content of its undisturbed run."""

    def __init__(self, config: Config) -> None:
        self.config = config
        assert start(config)
        self.content = read_run(config.output)

    def assert_equals_run(self, config: Config) -> None:
        """must hold for every finished run with the same identity"""
        read_run(config.output).assert_equals(self.content)
