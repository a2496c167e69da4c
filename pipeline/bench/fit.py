"""Features per second of the closed-form classifiers, and the time to solve for their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.bench.drawn import class_names
from pipeline.bench.settings import BenchConfig
from pipeline.bench.stage import load_backbone
from pipeline.bench.timing import Figure, Timing, time_alternately, time_once
from pipeline.classifiers import ClassifierConfig, Embedded
from pipeline.distributed.world import World
from pipeline.methods import METHODS
from pipeline.methods.base import Method, MethodContext
from pipeline.model.prompts import unit
from pipeline.tasks import Task, split_classes

_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "class means": ("class_means", {}),
    "ridge": ("ridge", {}),
    "ridge, 2,000 random features": ("ridge", {"projection": 2000}),
}
_CHUNK = 64  # images of a pass, as data.eval_batch


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """Each head on the features of one task, of ``bench.features`` images."""
    clip = load_backbone(config, world)
    context = MethodContext.of(config, clip)
    classes = config.task_classes
    (task,) = split_classes(range(classes), class_names(classes), classes_per_task=classes)
    images = _draw(config.bench.features, task, clip.joint_width, world.device)
    for label, (name, options) in _HEADS.items():
        head = ClassifierConfig(name=name, options=options)
        method = METHODS["zeroshot"](context, METHODS["zeroshot"].Options(classifier=head))
        method.begin_task(task)
        yield from _measure_head(label, method, images, config)


def _measure_head(
    label: str, method: Method, images: list[tuple[Embedded, torch.Tensor]], config: BenchConfig
) -> Iterator[Figure]:
    device, count = method.clip.device, config.bench.features

    def fit() -> None:
        method.fit("end", images)

    def solve() -> None:
        method.end_task(method.task)
        method.logits(images[0][0])  # the weights are solved for when they are first needed

    yield Timing((time_once(fit, device),)).duration(f"{label}: first task, with its choices")
    works: dict[str, Callable[[], object]] = {"fit": fit, "solve": solve}
    timings = time_alternately(works, config.bench, device)
    yield timings["fit"].rate(f"{label}: later tasks", count, "features/s")
    yield timings["solve"].duration(f"{label}: weights and scores of {_CHUNK} images")


@torch.no_grad()
def _draw(
    count: int, task: Task, width: int, device: torch.device
) -> list[tuple[Embedded, torch.Tensor]]:
    """Random unit embeddings with the classes of ``task`` in turn."""
    embedding_SE = unit(torch.randn(count, width, device=device))
    label_S = (torch.arange(count, device=device) % len(task.labels)).add(task.first)
    parts = zip(embedding_SE.split(_CHUNK), label_S.split(_CHUNK), strict=True)
    return [(Embedded(embedding_BE), label_B) for embedding_BE, label_B in parts]
