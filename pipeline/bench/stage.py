"""A run in the middle: its method at the start of a task, all earlier tasks behind it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from pipeline.bench.drawn import write_drawn
from pipeline.bench.settings import DRAWN, BenchConfig
from pipeline.bench.timing import NotMeasured, time_once
from pipeline.config import Config
from pipeline.data.batch import Batch
from pipeline.data.stream import ShardSource
from pipeline.distributed.collectives import on_main
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World, process_group
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.model.backbone import FrozenClip, PromptTokens
from pipeline.model.weights import load_clip
from pipeline.rng import seed_torch
from pipeline.tasks import Task
from pipeline.training.batches import TaskBatches
from pipeline.training.checked_run import Run, check_run
from pipeline.training.encoder import Encoder
from pipeline.training.features import FrozenStore
from pipeline.training.inputs import StepInputs
from pipeline.training.micro_batch import CPU_MICRO_BATCH
from pipeline.training.run import open_batches, open_source
from pipeline.training.task_data import TaskData

MANY_STEPS = 10**6  # of a task: no measured step is near the end of its schedule
_DRAWN_SIDE = 8 / 7  # of a drawn image, in sides of the tower's input: 256 pixels for 224


@dataclass(frozen=True)
class Stage:
    """A checked run, its method, and the parts of a trainer that benchmarks measure."""

    run: Run
    world: World
    source: ShardSource
    method: Method
    batches: TaskBatches
    store: FrozenStore

    @property
    def task(self) -> Task:
        """The task that has begun."""
        return self.method.task

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks so far."""
        return self.run.tasks[: self.task.index + 1]

    def new_encoder(self) -> Encoder:
        """An encoder that knows the frozen features of earlier ones, and no embedding."""
        size = self.run.config.data.eval_batch
        return Encoder(self.method, self.world, self.batches, self.store, batch=size)

    def inputs(self) -> StepInputs:
        """The inputs of the optimizer steps of the task; frozen features are computed now."""
        return StepInputs(
            self.method,
            self.task,
            self.run.data.train(self.task),
            self.batches,
            self.new_encoder(),
            micro_batch=self.run.config.engine.micro_batch or CPU_MICRO_BATCH,
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

    def first_pixels(self) -> Batch:
        """The first batch of the task as pixels, also if the method starts from tokens."""
        run, size, stop = self.run, self.method.clip.image_size, StopRequest()
        batches = TaskBatches(run, self.world, self.source, image_size=size, stop=stop)
        return next(iter(batches.train(self.task, 0)))


@contextmanager
def open_stage(
    config: BenchConfig, world: World, *, seen: int, images: int = 1, tests: int = 1
) -> Iterator[Stage]:
    """The run of ``config`` at the start of the task with which ``seen`` classes are seen.

    Drawn images are ``images`` for each class of that task and ``tests`` for its test, and one of
    each kind for every earlier class. The ranks meet for the duration of the block.

    Raises:
        NotMeasured: the run has fewer classes.
    """
    with process_group(world, timeout_s=config.engine.timeout_s), _folder() as folder:
        clip = load_backbone(config, world)
        if config.data.index == DRAWN:
            last = config.task_classes
            config = with_drawn(
                config,
                folder,
                [1] * (seen - last) + [images] * last,
                [1] * (seen - last) + [tests] * last,
                clip.image_size,
            )
        run = check_run(config, world.world_size)
        with opened(run, clip, world) as stage:
            begin_tasks(stage.method, run.tasks, seed=run.config.seed, seen=seen)
            yield stage


def load_backbone(config: Config, world: World) -> FrozenClip:
    """The CLIP of the configuration on the device of this rank."""
    model = config.model
    return load_clip(model.arch, model.weights, device=world.device, precision=model.precision)


def with_drawn(
    config: BenchConfig, folder: str, train: Sequence[int], test: Sequence[int], image_size: int
) -> BenchConfig:
    """The configuration with drawn images in ``folder``: their numbers by class."""
    side = round(image_size * _DRAWN_SIDE)
    on_main(lambda: write_drawn(folder, train, test, side))
    data = config.data.model_copy(update={"index": folder})
    return config.model_copy(update={"data": data})


@contextmanager
def _folder() -> Iterator[str]:
    """A folder that all ranks of this node see."""
    folder = on_main(lambda: tempfile.mkdtemp(prefix="bench-"))
    try:
        yield folder
    finally:
        on_main(lambda: shutil.rmtree(folder))


@contextmanager
def opened(run: Run, clip: FrozenClip, world: World) -> Iterator[Stage]:
    """The run before its first task."""
    source = open_source(run)
    try:
        method = build_method(run.config.method, MethodContext.of(run.config, clip))
        batches = _batches(run, world, source, method)
        folder, first_layer = run.config.data.feature_cache, method.inputs.first_layer
        store = FrozenStore(clip, world, folder, first_layer=first_layer)
        yield Stage(run, world, source, method, batches, store)
    finally:
        source.close()


def _batches(run: Run, world: World, source: ShardSource, method: Method) -> TaskBatches:
    return open_batches(run, world, source, method, StopRequest())


def begin_tasks(method: Method, tasks: Sequence[Task], *, seed: int, seen: int) -> float:
    """Begin and end one task after another, without training, until ``seen`` classes are seen.

    Only the last task encodes texts: the anchors before it are zeros, which takes as long to
    compare. Returns the seconds of its start.

    Raises:
        NotMeasured: there are fewer classes.
    """
    for task in tasks:
        seed_torch("task", seed, task.index)
        if task.last >= seen:
            return time_once(partial(method.begin_task, task), method.clip.device)
        with _blank_texts(method.clip):
            method.begin_task(task)
            method.end_task(task)
    raise NotMeasured(f"the run has {tasks[-1].last} classes, and bench.seen is {seen}")


@contextmanager
def _blank_texts(clip: FrozenClip) -> Iterator[None]:
    """Let texts cost nothing within the block."""

    def encode(prompt: PromptTokens, context_DLW: Tensor | None = None) -> Tensor:
        return torch.zeros(len(prompt.end_C), clip.joint_width, device=clip.device)

    with patch.object(clip, "encode_text", encode):
        yield
