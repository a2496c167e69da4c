"""A run in the middle: its method at the start of a task, all earlier tasks behind it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.bench.drawn import write_drawn
from pipeline.bench.settings import DRAWN, BenchConfig
from pipeline.bench.timing import NotMeasured
from pipeline.data.stream import ShardSource
from pipeline.distributed.collectives import on_main
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.model.backbone import FrozenClip
from pipeline.model.weights import load_clip
from pipeline.rng import seed_torch
from pipeline.tasks import Task
from pipeline.training.batches import TaskBatches
from pipeline.training.checked_run import Run, check_run
from pipeline.training.encoder import Encoder
from pipeline.training.features import FrozenStore
from pipeline.training.inputs import StepInputs
from pipeline.training.run import open_source
from pipeline.training.task_data import TaskData

_DRAWN_SIDE = 8 / 7  # of a drawn image, in sides of the tower's input: 256 pixels for 224


@dataclass(frozen=True)
class Stage:
    """A checked run, its method, and the parts of a trainer that benchmarks measure."""

    run: Run
    world: World
    source: ShardSource
    method: Method
    batches: TaskBatches
    encoder: Encoder

    @property
    def task(self) -> Task:
        """The task that has begun."""
        return self.method.task

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks so far."""
        return self.run.tasks[: self.task.index + 1]

    def inputs(self) -> StepInputs:
        """The inputs of the optimizer steps of the task; frozen features are computed now."""
        return StepInputs(
            self.method,
            self.task,
            self.run.data.train(self.task),
            self.batches,
            self.encoder,
            micro_batch=self.run.config.engine.micro_batch,
        )

    def with_batch(self, images: int) -> Stage:
        """The same stage with ``images`` of each rank in an optimizer step."""
        batch = {"global_batch": images * self.world.world_size}
        data = self.run.config.data.model_copy(update=batch)
        config = self.run.config.model_copy(update={"data": data})
        shown = self.method.training_images
        plan = TaskData(config, self.run.index, self.run.tasks, training_images=shown)
        run = replace(self.run, config=config, data=plan)
        return replace(self, run=run, batches=_batches(run, self.world, self.source, self.method))


@contextmanager
def open_stage(
    config: BenchConfig, world: World, *, seen: int, images: int = 1, tests: int = 1
) -> Iterator[Stage]:
    """The run of ``config`` at the start of the task with which ``seen`` classes are seen.

    Drawn images are ``images`` for each class of the last task, one for each earlier class, and
    ``tests`` test images for each class.

    Raises:
        NotMeasured: the run has fewer classes.
    """
    clip = load_clip(config.model.arch, config.model.weights, device=world.device)
    folder = on_main(lambda: tempfile.mkdtemp(prefix="bench-"))
    try:
        if config.data.index == DRAWN:
            last = config.tasks.classes_per_task
            train = [1] * (seen - last) + [images] * last
            side = round(clip.image_size * _DRAWN_SIDE)
            on_main(lambda: write_drawn(folder, train, [tests] * seen, side))
            data = config.data.model_copy(update={"index": folder})
            config = config.model_copy(update={"data": data})
        run = check_run(config, world.world_size)
        with _opened(run, clip, world) as stage:
            begin_tasks(stage, seen)
            yield stage
    finally:
        on_main(lambda: shutil.rmtree(folder))


@contextmanager
def _opened(run: Run, clip: FrozenClip, world: World) -> Iterator[Stage]:
    source = open_source(run)
    try:
        method = build_method(run.config.method, MethodContext.of(run.config, clip))
        batches = _batches(run, world, source, method)
        folder, first_layer = run.config.data.feature_cache, method.inputs.first_layer
        store = FrozenStore(clip, world, folder, first_layer=first_layer)
        encoder = Encoder(method, world, batches, store, batch=run.config.data.eval_batch)
        yield Stage(run, world, source, method, batches, encoder)
    finally:
        source.close()


def _batches(run: Run, world: World, source: ShardSource, method: Method) -> TaskBatches:
    size = method.clip.image_size
    return TaskBatches(run, world, source, image_size=size, stop=StopRequest())


def begin_tasks(stage: Stage, seen: int) -> None:
    """Begin and end one task after another, without training, until ``seen`` classes are seen."""
    for task in stage.run.tasks:
        seed_torch("task", stage.run.config.seed, task.index)
        stage.method.begin_task(task)
        if task.last >= seen:
            return
        stage.method.end_task(task)
    raise NotMeasured(f"the run has {stage.run.tasks[-1].last} classes, and bench.seen is {seen}")
