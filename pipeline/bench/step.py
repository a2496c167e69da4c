"""A training step of the configured method, beside the straightforward one.

The images of both are the same and lie in memory: on our side as the tokens in front of the first
prompted block, which a run keeps, on the other side as pixels. The parts of a step are measured in
a pass of their own, on the stream of the run, with the device synchronised around each part.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.bench.flops import step_flops
from pipeline.bench.memory import peak_bytes
from pipeline.bench.reference import ReferenceStep
from pipeline.bench.settings import BenchConfig, BenchSizes
from pipeline.bench.stage import MANY_STEPS, Stage, open_stage
from pipeline.bench.timing import Figure, NotMeasured, Timing, synchronise, time_alternately
from pipeline.distributed.world import World
from pipeline.methods.finetune import Finetune
from pipeline.model.backbone import FrozenClip
from pipeline.training.engine import Engine
from pipeline.training.features import pixels_of
from pipeline.training.inputs import StepInputs
from pipeline.training.transfer import ToDevice

_PARTS = ("data wait", "transfer", "forward", "communication", "backward", "optimizer")
# Of tppt_vt on ViT-B/16 with 200 classes seen and 20 current, by images of a rank.
_TARGETS = {8: "≥ 6", 32: "≥ 2.3"}


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """Images per second, use of the device, memory and parts of a step, for each size of batch."""
    sizes = config.bench
    current = config.task_classes
    images = -(-max(sizes.batches) * world.world_size // current)  # of each current class
    with open_stage(config, world, seen=sizes.seen, images=images) as stage:
        if not any(parameter.requires_grad for parameter in stage.method.parameters()):
            raise NotMeasured(f"{config.method.name} trains nothing in this task")
        product = MatrixProduct(sizes, stage.method.clip)
        for batch in sizes.batches:
            yield from _measure_batch(stage.with_batch(batch), sizes, product)


class MatrixProduct:
    """A large product of two matrices of random numbers: the ceiling of FLOP/s on this machine."""

    def __init__(self, sizes: BenchSizes, clip: FrozenClip) -> None:
        side = sizes.ceiling_side or (8192 if clip.device.type == "cuda" else 2048)
        shape = side, side
        self._left, self._right = (
            torch.randn(shape, device=clip.device).to(clip.dtype) for _ in range(2)
        )
        self.device, self.flops = clip.device, 2.0 * side**3

    def __call__(self) -> Tensor:
        """Compute it."""
        return self._left @ self._right


def _measure_batch(stage: Stage, sizes: BenchSizes, product: MatrixProduct) -> Iterator[Figure]:
    """The figures of one size of batch."""
    config, world = stage.run.config, stage.world
    images, label = config.data.global_batch, f"batch {config.data.global_batch}"
    inputs = stage.inputs()
    arguments = inputs.of(next(iter(inputs.epoch(0))))
    works: dict[str, Callable[[], object]] = {"product": product}
    spans = Spans(world.device)
    with closing(Engine(stage.method, config, world, MANY_STEPS, span=spans)) as engine:
        works["ours"] = lambda: engine.step(0, *arguments)
        peak = peak_bytes(works["ours"], world.device)  # before the other side takes memory
        yield Figure.counted(f"{label}: peak memory", peak / 1e9, "GB")
        if isinstance(stage.method, Finetune) and world.world_size == 1:
            optim, queries = config.optim, sizes.reference_queries
            reference = ReferenceStep(stage.method, stage.tasks, optim, encodes_queries=queries)
            pixels = pixels_of(stage.first_pixels())
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
        yield from _use(label, step_flops(stage.method, images=images), timings, product)
        yield from _parts(label, engine, inputs, spans, sizes.repeats)


def _use(
    label: str, flops: float, timings: dict[str, Timing], product: MatrixProduct
) -> Iterator[Figure]:
    """The needed FLOPs per second of this rank, and their share of the ceiling beside them.

    On a CPU both are by processor time: others may use the machine.
    """
    ours, ceiling = timings["ours"], timings["product"]
    needed = flops / dist.get_world_size()
    yield Figure.counted(f"{label}: needed per rank", needed / 1e9, "GFLOP")
    yield ceiling.rate(f"{label}: matrix product", product.flops / 1e9, "GFLOP/s")
    own, most = ours.seconds, ceiling.seconds
    if product.device.type == "cpu":
        own, most = ours.processor_s, ceiling.processor_s
    pairs = zip(own, most, strict=True)
    shares = tuple(100 * needed / product.flops * limit / mine for mine, limit in pairs)
    yield Figure.of(f"{label}: needed FLOPs of the ceiling", shares, "%")


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
