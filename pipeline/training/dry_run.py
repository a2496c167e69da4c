"""The plan of a run for people: tasks, steps, bytes to fetch, memory; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.config import Config
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.model.backbone import FrozenClip, tower_dtype
from pipeline.model.weights import blank_clip, weights_place
from pipeline.tasks import Task
from pipeline.text import format_bytes
from pipeline.training.checked_run import Run
from pipeline.training.micro_batch import CPU_MICRO_BATCH
from pipeline.training.room import check_room_for_batches, check_room_on_disk

_MOMENTS_BYTES = 16  # of a trained scalar: value, gradient and two moments in float32
_ACTIVATIONS = 10  # tensors per block and token that the backward pass keeps, measured on ViT-L


@dataclass(frozen=True)
class _TaskPlan:
    """One row of the plan."""

    task: Task
    train_images: int
    test_images: int
    steps: int
    trainable: int
    bytes: int

    def __str__(self) -> str:
        n_known = len(self.task.known)
        classes = f"{len(self.task.labels)}+{n_known}" if n_known else len(self.task.labels)
        return (
            f"{self.task.index + 1:4}  {classes:>7}  {self.train_images:12,}  "
            f"{self.test_images:11,}  {self.steps:5,}  {self.trainable:9,}  "
            f"{format_bytes(self.bytes)}"
        )


def format_plan(run: Run) -> str:
    """The plan of a run: its tasks, their cost, the bytes that must be fetched.

    Raises:
        ConfigError: the batches of the loader workers do not fit into shared memory.
        WeightsError: the weights cannot be read or fetched.
        StorageError: the cache or an output cannot be written, or its disk is too full.
    """
    config, index = run.config, run.index
    arch, weights = config.model.arch, config.model.weights
    clip = blank_clip(arch, weights)
    method = build_method(config.method, MethodContext.of(config, clip))
    plans = _plan_tasks(run, method)
    trainable = [plan.trainable for plan in plans]
    fetched = sum(plan.bytes for plan in plans) + sum(_test_bytes(each) for each in run.held_out)
    check_room_for_batches(run, clip.image_size)
    check_room_on_disk(run, sum(trainable))
    per_rank = config.data.global_batch // run.world_size
    lines = [
        f"run        {config.name}: {config.method.name} on {index.url}",
        f"output     {config.output}",
        f"frozen     {clip.n_parameters:,} parameters of {arch}, "
        f"{weights or 'its own weights'} ({weights_place(arch, weights)})",
        f"ranks      {run.world_size}, {per_rank} images each in passes of "
        f"{min(config.engine.micro_batch or CPU_MICRO_BATCH, per_rank)}",
        *_notes(config),
        "",
        "task  classes  train images  test images  steps  trainable  to fetch",
        *map(str, plans),
        "",
        *_held_out_lines(run),
        f"steps      {sum(plan.steps for plan in plans):,} in all",
        f"trainable  {sum(trainable):,} parameters in all, {format_bytes(4 * sum(trainable))}",
        f"to fetch   {format_bytes(fetched)} in all",
        f"memory     {_estimate_memory(run, method, clip, max(trainable))}",
    ]
    return "\n".join(lines)


def trainable_parameters(method: Method, tasks: tuple[Task, ...]) -> list[int]:
    """The number of trained scalars of each task; ``method`` begins and ends every task."""
    counts = []
    for task in tasks:
        method.begin_task(task)
        counts.append(sum(p.numel() for p in method.parameters() if p.requires_grad))
        method.end_task(task)
    return counts


def _plan_tasks(run: Run, method: Method) -> list[_TaskPlan]:
    plans = []
    for task, trainable in zip(run.tasks, trainable_parameters(method, run.tasks), strict=True):
        train, test = run.data.train(task), run.data.test(task)
        reads_training_images = trainable > 0 or bool(method.fits)
        plans.append(
            _TaskPlan(
                task=task,
                train_images=len(train),
                test_images=len(test),
                steps=run.data.n_steps(task) if trainable else 0,
                trainable=trainable,
                bytes=test.bytes + (train.bytes if reads_training_images else 0),
            )
        )
    return plans


def _held_out_lines(run: Run) -> list[str]:
    """A line for each data set that is tested only."""
    return [
        f"held out   {each.index.url}: {len(each.tasks[0].names)} classes, "
        f"{len(each.data.test(each.tasks[0])):,} test images, {format_bytes(_test_bytes(each))}"
        for each in run.held_out
    ]


def _test_bytes(run: Run) -> int:
    return sum(run.data.test(task).bytes for task in run.tasks)


def _notes(config: Config) -> list[str]:
    """Lines about the summary figures and the source of the settings."""
    excluded = config.evaluation.exclude_tasks
    lines = [f"summary    leaves out the first {excluded} task(s)"] if excluded else []
    return [*lines, f"settings   {config.tuning.summary}"] if config.tuning else lines


def _estimate_memory(run: Run, method: Method, clip: FrozenClip, trainable: int) -> str:
    """Rough bytes per rank: towers, activations of one pass, trained tensors with their state."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = tower_dtype(run.config.model.precision, device).itemsize
    engine, per_rank = run.config.engine, run.config.data.global_batch // run.world_size
    micro_batch = engine.micro_batch or CPU_MICRO_BATCH
    images = min(micro_batch, per_rank) if engine.recompute else per_rank
    tokens = clip.image_tokens + method.n_prompt_tokens
    activations = _ACTIVATIONS * clip.vision_layers * tokens * clip.vision_width * width * images
    state = _MOMENTS_BYTES * trainable
    total = width * clip.n_parameters + activations + state
    return (
        f"about {total / 1e9:.1f} GB per rank: towers {width * clip.n_parameters / 1e9:.1f}, "
        f"activations {activations / 1e9:.1f}, learned tensors with gradient and moments "
        f"{state / 1e9:.2f}"
    )
