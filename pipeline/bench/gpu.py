"""All figures of a GPU by one command, in less than 10 minutes.

Training, evaluation, ``tppt_vt`` beside ``tppt_v``, the busy share of the device with the real
loader, and the loss in bf16 beside that of the CPU in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.bench import eval as evaluation
from pipeline.bench import step
from pipeline.bench.settings import BenchConfig
from pipeline.bench.stage import MANY_STEPS, Stage, begin_tasks, open_stage
from pipeline.bench.timing import Figure, NotMeasured, time_alternately, time_once
from pipeline.distributed.world import World
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.model.weights import load_clip
from pipeline.training.engine import Engine
from pipeline.training.features import pixels_of

_STEPS = 20  # with the real loader
_COMPARED = 8  # images whose loss is computed on the CPU too


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """The figures of this GPU.

    Raises:
        NotMeasured: there is no GPU.
    """
    if world.device.type != "cuda":
        raise NotMeasured("no GPU")
    yield from step.measure(config, world)
    yield from evaluation.measure(config, world)
    current = config.task_classes
    images = -(-_STEPS * config.data.global_batch // current)
    with open_stage(config, world, seen=config.bench.seen, images=images) as stage:
        yield from moving_against_fixed(stage, config)
        yield from busy(stage)
        yield loss_difference(stage)


def _method(stage: Stage, name: str) -> Method:
    """Another method of the run, at the same task."""
    run, clip = stage.run, stage.method.clip
    settings = run.config.method.model_copy(update={"name": name})
    method = build_method(settings, MethodContext.of(run.config, clip))
    begin_tasks(method, run.tasks, seed=run.config.seed, seen=stage.task.last)
    return method


def moving_against_fixed(stage: Stage, config: BenchConfig) -> Iterator[Figure]:
    """A step of ``tppt_vt`` and one of ``tppt_v`` on the same batch, in turn."""
    inputs = stage.inputs()
    arguments = inputs.of(next(iter(inputs.epoch(0))))
    works, images = {}, config.data.global_batch
    with ExitStack() as stack:
        for name in ("tppt_v", "tppt_vt"):
            engine = Engine(_method(stage, name), stage.run.config, stage.world, MANY_STEPS)
            stack.enter_context(closing(engine))
            works[name] = partial(engine.step, 0, *arguments)
        timings = time_alternately(works, config.bench, stage.world.device)
    for name, timing in timings.items():
        yield timing.rate(f"{name}, {stage.task.last} classes", images, "images/s")
    yield timings["tppt_vt"].over(timings["tppt_v"], "tppt_vt against tppt_v", target="≤ 1.1")


def busy(stage: Stage) -> Iterator[Figure]:
    """Steps on the stream of the run, from the shards on."""
    inputs, config = stage.inputs(), stage.run.config
    kinds = [ProfilerActivity.CUDA] if stage.world.device.type == "cuda" else None

    def steps(epoch: int) -> None:
        for batch in inputs.epoch(epoch):
            engine.step(0, *inputs.of(batch))

    with closing(Engine(stage.method, config, stage.world, MANY_STEPS)) as engine:
        steps(0)  # starts the workers
        with profile(activities=kinds) as profiler:
            seconds = time_once(partial(steps, 1), stage.world.device)
    count = stage.run.data.steps_per_epoch(stage.task) * config.data.global_batch
    yield Figure.counted("from the shards", count / seconds, "images/s")
    events = (e for e in profiler.events() or () if e.device_type.name == "CUDA")
    busy_s = covered((e.time_range.start, e.time_range.end) for e in events) / 1e6
    yield Figure.counted("device busy", 100 * busy_s / seconds, "%", target="≥ 95")


def loss_difference(stage: Stage) -> Figure:
    """The loss of a few images, here and on the CPU in fp32."""
    run, cpu = stage.run, torch.device("cpu")
    model, batch, losses = run.config.model, stage.first_pixels(), []
    label_B = stage.batches.classes(batch.label_B)[:_COMPARED]
    for clip in (
        stage.method.clip,
        load_clip(model.arch, model.weights, device=cpu, precision="fp32"),
    ):
        method = build_method(run.config.method, MethodContext.of(run.config, clip))
        begin_tasks(method, run.tasks, seed=run.config.seed, seen=stage.task.last)
        image_BCHW = pixels_of(batch)[:_COMPARED].to(clip.device)
        with torch.no_grad():
            features = clip.encode_image(image_BCHW)
            losses.append(float(method(image_BCHW, label_B.to(clip.device), features).total))
    difference = 100 * abs(losses[0] - losses[1]) / abs(losses[1])
    return Figure.counted("loss against fp32 on the CPU", difference, "%", target="≤ 2")


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
