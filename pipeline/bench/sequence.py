"""A closed-form method's complete sequence of tasks, beside encoding every image once.

Both read, decode and encode the same images; the sequence also fits, tests and writes its files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial

import torch

from pipeline.bench.settings import DRAWN, BenchConfig, BenchSizes
from pipeline.bench.stage import Stage, load_backbone, opened, with_drawn
from pipeline.bench.timing import Figure, NotMeasured, Timing, time_alternately
from pipeline.config import MethodConfig
from pipeline.data.index import Selection
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World, process_group
from pipeline.methods import find_method, parse_options
from pipeline.training.activations import FILE_IMAGES
from pipeline.training.checked_run import Run, check_run
from pipeline.training.features import in_equal_parts, part_images, pixels_of
from pipeline.training.run import open_trainer

_ONCE = BenchSizes(repeats=1, warmup=0)
_CLOSED_FORM = MethodConfig(name="ranpac", options={"ranpac": {"first_session": False}})


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """The configured method, if it reads frozen features alone; else RanPAC without prompts.

    Raises:
        NotMeasured: there are several ranks.
    """
    if world.world_size > 1:
        raise NotMeasured("one rank measures a complete sequence")
    if find_method(config.method.name).inputs_of(parse_options(config.method)).images:
        config = config.model_copy(update={"method": _CLOSED_FORM})
    clip = load_backbone(config, world)
    sizes, timings = config.bench, list[dict[str, Timing]]()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = _with_images(config, folder, clip.image_size, world)
        for number in range(sizes.warmup + sizes.repeats):
            run = check_run(config.model_copy(update={"output": f"{folder}/run-{number}"}), 1)
            with open_trainer(run, world, StopRequest()) as trainer:
                assert trainer, "the output is new"
                timed = time_alternately({"sequence": trainer.run}, _ONCE, world.device)
            with process_group(world, timeout_s=config.engine.timeout_s):
                with opened(run, clip, world) as stage:
                    encode = {"once": partial(encode_once, stage)}
                    timed |= time_alternately(encode, _ONCE, world.device)
            if number >= sizes.warmup:
                timings.append(timed)
    images = sum(len(part) for part in _selections(run))
    sequence, once = (
        Timing.joined(each[name] for each in timings) for name in ("sequence", "once")
    )
    label = f"{config.method.name}, {len(run.tasks)} tasks"
    yield sequence.rate(label, images, "images/s")
    yield once.rate("every image encoded once", images, "images/s")
    yield sequence.over(once, "the sequence against it", target="≤ 1.1")
    if world.device.type == "cpu":
        name = "the sequence against it, processor time"
        yield sequence.processor_over(once, name, target="≤ 1.1")


@torch.no_grad()
def encode_once(stage: Stage) -> None:
    """Read, decode and encode each image of the run once, in batches and parts as a run does."""
    clip, transform = stage.method.clip, stage.batches.eval_transform
    for selection in _selections(stage.run):
        for batch in stage.batches.all_of(selection, transform, batch_size=FILE_IMAGES):
            in_equal_parts(pixels_of(batch), clip.encode_image, part_images(clip.device))


def _selections(run: Run) -> list[Selection]:
    """The training and the test images of each task."""
    return [part for task in run.tasks for part in (run.data.train(task), run.data.test(task))]


def _with_images(config: BenchConfig, folder: str, image_size: int, world: World) -> BenchConfig:
    """The configuration without a cache of features, with drawn images if it names none."""
    data = config.data.model_copy(update={"feature_cache": None})
    config = config.model_copy(update={"data": data})
    if config.data.index != DRAWN:
        return config
    classes = 2 * config.task_classes
    per_class = [-(-config.bench.images // classes)] * classes
    with process_group(world, timeout_s=config.engine.timeout_s):
        return with_drawn(config, f"{folder}/images", per_class, per_class, image_size)
