"""Test images per second, from the shards to the scores over all classes seen."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.bench.settings import BenchConfig
from pipeline.bench.stage import Stage, open_stage
from pipeline.bench.timing import Figure, Timing, time_alternately, time_once
from pipeline.distributed.world import World
from pipeline.training.evaluator import Evaluator


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """The test of one task: the first, which encodes frozen features too, and later ones."""
    sizes = config.bench
    tests = -(-sizes.images // config.tasks.classes_per_task)  # of each class of the task
    with open_stage(config, world, seen=sizes.seen, tests=tests) as stage:
        stage.method.eval()
        stage.method.end_task(stage.task)
        images = len(stage.run.data.test(stage.task))
        first = Timing((time_once(lambda: test(stage), world.device),))
        yield first.rate("first test of an image", images, "images/s")
        later = time_alternately({"later": lambda: test(stage)}, sizes, world.device)["later"]
        yield later.rate("later tests", images, "images/s")


def test(stage: Stage) -> None:
    """Test the task of the stage, as a trainer does."""
    Evaluator(stage.method, stage.run.data, stage.encoder).test([stage.task])
