"""A step, its memory, a snapshot and the start of a task, as tasks and classes grow.

Then the bytes that a step sends, and the efficiency that they predict on many GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.bench.drawn import class_names
from pipeline.bench.flops import step_flops
from pipeline.bench.memory import peak_bytes
from pipeline.bench.network import Traffic
from pipeline.bench.settings import BenchConfig
from pipeline.bench.stage import MANY_STEPS, begin_tasks, load_backbone
from pipeline.bench.timing import Figure, Timing, time_alternately
from pipeline.distributed.world import World, process_group
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.model.backbone import ImageFeatures
from pipeline.output.snapshots import Snapshot
from pipeline.tasks import split_classes
from pipeline.training.engine import Engine

_RANKS = (8, 64, 512)
_GIGABITS = (100, 400)


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """One row of figures per number of tasks and classes."""
    batch = config.bench.batches[0]
    data = config.data.model_copy(update={"global_batch": batch * world.world_size})
    config = config.model_copy(update={"data": data})
    with process_group(world, timeout_s=config.engine.timeout_s):
        clip = load_backbone(config, world)
        for n_tasks, n_classes in config.bench.scale:
            method = build_method(config.method, MethodContext.of(config, clip))
            yield from _measure_point(method, n_tasks, n_classes, config, world)
        yield from _predict(method, config, world)


def _measure_point(
    method: Method, n_tasks: int, n_classes: int, config: BenchConfig, world: World
) -> Iterator[Figure]:
    """The figures of the last of ``n_tasks`` tasks."""
    per_task = -(-n_classes // n_tasks)
    tasks = split_classes(range(n_classes), class_names(n_classes), classes_per_task=per_task)
    label = f"task {len(tasks)}, {n_classes:,} classes"
    start_s = begin_tasks(method, tasks, seed=config.seed, seen=n_classes)
    yield Timing((start_s,)).duration(f"{label}: start")
    engine = Engine(method, config, world, MANY_STEPS)
    try:
        arguments = _draw(method, config.bench.batches[0])
        works = {"step": lambda: engine.step(0, *arguments)}
        yield time_alternately(works, config.bench, world.device)["step"].duration(f"{label}: step")
        peak = peak_bytes(works["step"], world.device)
        yield Figure.counted(f"{label}: peak memory", peak / 1e9, "GB")
        size = _snapshot_bytes(method, engine, n_classes)
        yield Figure.counted(f"{label}: snapshot", size / 1e6, "MB")
    finally:
        engine.close()


def _draw(method: Method, images: int) -> tuple[torch.Tensor, torch.Tensor, ImageFeatures]:
    """Random arguments of a step on this rank, with the classes of the task in turn."""
    clip, device = method.clip, method.clip.device
    image_BCHW = torch.randint(0, 256, (images, 3, clip.image_size, clip.image_size)).byte()
    label_B = method.task.first + torch.arange(images, device=device) % len(method.task.labels)
    widths = clip.vision_width, clip.joint_width, clip.vision_width
    return image_BCHW, label_B, ImageFeatures(*(torch.randn(images, w).to(device) for w in widths))


def _snapshot_bytes(method: Method, engine: Engine, n_classes: int) -> int:
    """The tensors of a snapshot in this task."""
    state, old = method.state_dict(), n_classes - len(method.task.labels)
    groups = {
        "learned": {n: state[n] for n in method.changeable_names() & state.keys()},
        "moments": engine.optimizer_state(),
        "class_means": {"0": torch.zeros(old, method.embedding_width)},
    }
    snapshot = Snapshot.take(method.task.index, 1, groups, {})
    return sum(tensor.nbytes for tensor in snapshot.tensors.values())


def _predict(method: Method, config: BenchConfig, world: World) -> Iterator[Figure]:
    """The traffic of the last point, and the efficiency at ``bench.gpu_tflops`` per GPU."""
    images = config.bench.batches[-1]
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    traffic = Traffic(images, method.embedding_width, terms=0, trained=trained)
    step_s = step_flops(method, images=images) / (config.bench.gpu_tflops * 1e12)
    rate = f"{config.bench.gpu_tflops:g} TFLOP/s, {images} images"
    for ranks in _RANKS:
        size = traffic.bytes_sent(ranks)
        yield Figure.counted(f"{ranks} ranks: sent per step and rank", size / 1e6, "MB")
        for gigabits in _GIGABITS:
            share = 100 * traffic.efficiency(ranks, step_s=step_s, gigabits=gigabits)
            label = f"{ranks} GPUs ({rate}): efficiency on {gigabits} Gb/s, predicted"
            yield Figure.counted(label, share, "%")
