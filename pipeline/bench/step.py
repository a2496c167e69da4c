"""A training step of the configured method, beside the straightforward one.

The batch of both is the same and lies in memory. The parts of a step are measured in a pass of
their own, on the stream of the run, with the device synchronised around each part.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch

from pipeline.bench.flops import step_flops
from pipeline.bench.memory import peak_bytes
from pipeline.bench.reference import ReferenceStep
from pipeline.bench.settings import BenchConfig, BenchSizes
from pipeline.bench.stage import Stage, open_stage
from pipeline.bench.timing import Figure, NotMeasured, Timing, synchronise, time_alternately
from pipeline.distributed.world import World
from pipeline.methods.finetune import Finetune
from pipeline.training.engine import Engine
from pipeline.training.features import pixels_of
from pipeline.training.inputs import StepInputs
from pipeline.training.transfer import ToDevice

_MANY_STEPS = 10**6  # of the task: no measured step is near the end of its schedule
_PARTS = ("data wait", "transfer", "forward", "communication", "backward", "optimizer")
# Of tppt_vt on ViT-B/16 with 200 classes seen and 20 current, by images of a rank.
_TARGETS = {8: "≥ 6", 32: "≥ 2.3"}


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """Images per second, use of the device, memory and parts of a step, for each size of batch."""
    sizes = config.bench
    current = config.tasks.classes_per_task
    images = -(-max(sizes.batches) * world.world_size // current)  # of each current class
    with open_stage(config, world, seen=sizes.seen, images=images) as stage:
        if not any(parameter.requires_grad for parameter in stage.method.parameters()):
            raise NotMeasured(f"{config.method.name} trains nothing in this task")
        ceiling = matrix_ceiling(sizes, world.device, stage.method.clip.dtype)
        yield ceiling
        for batch in sizes.batches:
            yield from _measure_batch(stage.with_batch(batch), sizes, ceiling.value)


def matrix_ceiling(sizes: BenchSizes, device: torch.device, dtype: torch.dtype) -> Figure:
    """FLOP/s of a large product of two matrices of random numbers: what this machine can do now."""
    side = sizes.ceiling_side or (8192 if device.type == "cuda" else 2048)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    timing = time_alternately({"product": lambda: left @ right}, sizes, device)["product"]
    return timing.rate(f"matrix product of {side}", 2 * side**3 / 1e9, "GFLOP/s")


def _measure_batch(stage: Stage, sizes: BenchSizes, ceiling: float) -> Iterator[Figure]:
    """The figures of one size of batch."""
    config, world = stage.run.config, stage.world
    images, label = config.data.global_batch, f"batch {config.data.global_batch}"
    inputs = stage.inputs()
    arguments = inputs.of(next(iter(inputs.epoch(0))))
    works: dict[str, Callable[[], object]] = {}
    with _engine(stage) as (engine, spans):
        works["ours"] = lambda: engine.step(0, *arguments)
        peak = peak_bytes(works["ours"], world.device)  # before the other side takes memory
        yield Figure.counted(f"{label}: peak memory", peak / 1e9, "GB")
        if isinstance(stage.method, Finetune) and world.world_size == 1:
            optim, queries = config.optim, sizes.reference_queries
            reference = ReferenceStep(stage.method, stage.tasks, optim, encodes_queries=queries)
            pixels = pixels_of(next(iter(stage.batches.train(stage.task, 0))))
            works["reference"] = lambda: reference.step(pixels, *arguments[1:])
        timings = time_alternately(works, sizes, world.device)
        ours = timings["ours"]
        yield ours.rate(f"{label}: ours", images, "images/s")
        if "reference" in timings:
            yield timings["reference"].rate(f"{label}: straightforward step", images, "images/s")
            target, name = _target(stage), f"{label}: ours against it"
            yield timings["reference"].over(ours, name, target)
            if world.device.type == "cpu":
                name = f"{name}, processor time"
                yield timings["reference"].processor_over(ours, name, target)
        needed = step_flops(stage.method, images=images) / world.world_size
        yield Figure.counted(f"{label}: needed per rank", needed / 1e9, "GFLOP")
        share = 100 * needed / 1e9 / ceiling
        yield ours.rate(f"{label}: needed FLOPs of the ceiling", share, "%")
        yield from _parts(label, engine, inputs, spans, sizes.repeats)


class Spans:
    """The seconds of each part of each step, with ``device`` synchronised before and after it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.is_on = False

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of the block to ``part`` of the current step."""
        if not self.is_on:
            yield
            return
        synchronise(self.device)
        started = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds[part][-1] += time.perf_counter() - started

    def start_step(self, wait_s: float) -> None:
        """Begin a step that has waited ``wait_s`` for its images."""
        self.is_on = True
        for part in _PARTS:
            self.seconds[part].append(0.0)
        self.seconds["data wait"][-1] = wait_s


@contextmanager
def _engine(stage: Stage) -> Iterator[tuple[Engine, Spans]]:
    spans = Spans(stage.world.device)
    engine = Engine(stage.method, stage.run.config, stage.world, _MANY_STEPS, span=spans)
    try:
        yield engine, spans
    finally:
        engine.close()


def _target(stage: Stage) -> str:
    """The target of the ratio, if this is what it was set for."""
    config = stage.run.config
    set_for = ("tppt_vt", "ViT-B-16", 200, 20)
    here = config.method.name, config.model.arch, stage.task.last, len(stage.task.labels)
    return _TARGETS.get(config.data.global_batch, "") if here == set_for else ""


def _parts(
    label: str, engine: Engine, inputs: StepInputs, spans: Spans, n_steps: int
) -> Iterator[Figure]:
    """The time of each part of ``n_steps`` steps, one epoch after another, on the run's stream."""
    stream = (batch for epoch in range(n_steps) for batch in inputs.epoch(epoch))
    to_device = ToDevice(spans.device)
    for batch in islice(stream, n_steps):
        spans.start_step(batch.wait_s)
        if batch.image_BCHW is not None:
            host_BCHW = batch.image_BCHW.cpu()
            with spans("transfer"):  # again, alone: a run copies during the step before
                to_device(host_BCHW)
        with spans("forward"):  # of the frozen tower, if the images are new in each epoch
            arguments = inputs.of(batch)
        engine.step(0, *arguments)
    for part in _PARTS:
        yield Timing(tuple(spans.seconds[part])).duration(f"{label}: {part}")
