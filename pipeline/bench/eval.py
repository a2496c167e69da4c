"""Test images per second, from the shards to the scores over all classes seen."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.bench.settings import BenchConfig
from pipeline.bench.stage import Stage, open_stage
from pipeline.bench.timing import Figure, Timing, time_alternately, time_once
from pipeline.distributed.world import World
from pipeline.training.encoder import Encoder
from pipeline.training.evaluator import Evaluator


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """The test of one task: the first, which encodes frozen features too; after another task, whose
    prompts give other embeddings; and once more, while embeddings stay.
    """
    sizes = config.bench
    tests = -(-sizes.images // config.task_classes)  # of each class of the task
    with open_stage(config, world, seen=sizes.seen, tests=tests) as stage:
        stage.method.eval()
        stage.method.end_task(stage.task)
        images = len(stage.run.data.test(stage.task))
        first = Timing((time_once(lambda: _test(stage, stage.new_encoder()), world.device),))
        yield first.rate("first test of an image", images, "images/s")
        kept = stage.new_encoder()
        _test(stage, kept)  # twice: an encoder keeps embeddings once it has seen that they stay
        works = {
            "after another task": lambda: _test(stage, stage.new_encoder()),
            "while embeddings stay": lambda: _test(stage, kept),
        }
        works["while embeddings stay"]()
        for name, timing in time_alternately(works, sizes, world.device).items():
            yield timing.rate(name, images, "images/s")


def _test(stage: Stage, encoder: Encoder) -> None:
    """Test the task of the stage, as a trainer does."""
    Evaluator(stage.method, stage.run.data, encoder).test([stage.task])
