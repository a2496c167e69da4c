"""From a configuration to a finished run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import CacheConfig, Config
from pipeline.data.cache import SegmentCache
from pipeline.data.index import ShardIndex, join_indexes, read_index
from pipeline.data.stream import ShardSource
from pipeline.distributed.collectives import on_main
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World, process_group
from pipeline.errors import ConfigError, StorageError
from pipeline.methods import build_method, find_method, parse_options
from pipeline.methods.base import Inputs, MethodContext
from pipeline.model.backbone import FrozenClip
from pipeline.model.weights import load_clip, weights_problem
from pipeline.output.identity import identify
from pipeline.output.manifest import build_manifest
from pipeline.output.ownership import Ownership
from pipeline.output.recovery import is_finished, recover
from pipeline.output.results import update_summary
from pipeline.output.results_builder import ResultsBuilder
from pipeline.output.writer import OutputWriter
from pipeline.tasks import Task, grouped_class_order, split_classes
from pipeline.training.batches import TaskBatches
from pipeline.training.engine import layout_problem
from pipeline.training.task_data import TaskData
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A configuration that was found to fit its data and the number of ranks."""

    config: Config
    index: ShardIndex
    tasks: tuple[Task, ...]
    data: TaskData
    world_size: int


def check_run(config: Config, world_size: int) -> Run:
    """Check everything that can be checked before a process group starts.

    Raises:
        ConfigError: the settings do not fit each other, the data or the number of ranks.
        DataError: the index cannot be used.
    """
    options, method = parse_options(config.method), find_method(config.method.name)
    _check_transform(config, method.inputs_of(options))
    problem = layout_problem(config, world_size) or weights_problem(
        config.model.arch, config.model.weights
    )
    if problem:
        raise ConfigError(problem)
    index = _find_index(config.data.index)
    if config.evaluation.split == "validation":
        index = index.with_closed("test")
    names = index.class_names if config.text.names == "spaced" else index.class_folders
    rule, seed = config.tasks.class_order, config.tasks.order_seed
    order = grouped_class_order(rule, index.group_sizes, seed)
    tasks = split_classes(
        order,
        names,
        classes_per_task=config.tasks.classes_per_task,
        initial_classes=config.tasks.initial_classes,
        limit=config.tasks.limit,
        group_sizes=index.group_sizes,
    )
    _check_a_task_is_reported(config, tasks)
    _check_every_class_has_images(config, index, tasks)
    data = TaskData(config, index, tasks, training_images=method.training_images)
    return Run(config, index, tasks, data, world_size)


def execute(run: Run, world: World, stop: StopRequest | None = None) -> bool:
    """Learn the sequence on all ranks, from where it was left; False if nothing was left to do.

    The summary of a finished run is brought up to the configuration.

    Raises:
        ConfigError: the output holds another run.
        Preempted: ``stop`` asked for it.
        TakenOverError: a later start of the run writes to the output.
    """
    config = run.config
    with process_group(world, timeout_s=config.engine.timeout_s):
        expected = identify(config, run.index, run.tasks, "not loaded yet")
        _log_origin(config, world)
        if on_main(lambda: is_finished(config, expected)):
            on_main(lambda: update_summary(config))
            return False
        clip = load_clip(config.model.arch, config.model.weights, device=world.device)
        identity = {**expected, "backbone_sha256": clip.sha256}
        recovered = on_main(lambda: recover(config, identity))
        owner = Ownership(config.output)
        on_main(owner.take)
        source = _open_source(run)
        try:
            trainer = _build_trainer(run, world, source, clip, identity, owner, stop)
            trainer.run(recovered)
        finally:
            source.close()
        _log_origin(config, world)
    return True


def _open_source(run: Run) -> ShardSource:
    data = run.config.data
    return ShardSource(
        run.index,
        cache=_build_cache(data.cache),
        on_bad_sample=data.on_bad_sample,
        bad_sample_budget=data.bad_sample_budget,
    )


def _build_trainer(
    run: Run,
    world: World,
    source: ShardSource,
    clip: FrozenClip,
    identity: Mapping[str, Any],
    owner: Ownership,
    stop: StopRequest | None,
) -> Trainer:
    config, stop = run.config, stop or StopRequest()
    manifest = build_manifest(
        config,
        tasks=run.tasks,
        index_sha256=run.index.sha256,
        identity=identity,
        ranks=world.world_size,
    )
    results = ResultsBuilder(
        config.method.name, run.tasks, manifest, config.evaluation, config.tuning
    )
    method = build_method(config.method, MethodContext.of(config, clip))
    batches = TaskBatches(config, world, run.data, source, image_size=clip.image_size, stop=stop)
    writer = OutputWriter(config, world, owner)
    return Trainer(config, world, method, run.data, batches, results, writer, stop)


def _build_cache(cache: CacheConfig) -> SegmentCache:
    return SegmentCache(
        Path(cache.folder).expanduser(),
        limit_bytes=int(cache.limit_gb * 1e9),
        deadline_s=cache.deadline_s,
    )


def _find_index(urls: str | list[str]) -> ShardIndex:
    urls = [urls] if isinstance(urls, str) else urls
    try:
        return join_indexes([read_index(url) for url in urls])
    except StorageError as error:
        raise ConfigError(
            f"data.index: {error}; give the folder or URL that `python -m pipeline.prepare shard` "
            "has written to"
        ) from error


def _log_origin(config: Config, world: World) -> None:
    """Log the source of the settings, as a warning if a reader of any figure must know it."""
    if config.tuning and world.is_main:
        level = logging.WARNING if config.tuning.note else logging.INFO
        log.log(level, "settings %s", config.tuning.summary)


def _check_a_task_is_reported(config: Config, tasks: tuple[Task, ...]) -> None:
    excluded = config.evaluation.exclude_tasks
    if excluded >= len(tasks):
        raise ConfigError(
            f"evaluation.exclude_tasks is {excluded} and there are {len(tasks)} tasks; leave out "
            "fewer, so that one remains to be reported"
        )


def _check_transform(config: Config, inputs: Inputs) -> None:
    """A method that reads features alone sees each image once, so no epoch may change it."""
    if not inputs.images and config.data.train_transform == "random_crop":
        raise ConfigError(
            f"data.train_transform: 'random_crop' changes an image in each epoch, and "
            f"{config.method.name} learns from features that are computed once per image; "
            "set it to clip or squash"
        )


def _check_every_class_has_images(
    config: Config, index: ShardIndex, tasks: tuple[Task, ...]
) -> None:
    splits = {"train", "test" if config.evaluation.split == "test" else "train"}
    for split in sorted(splits):
        counts = index.count(split)
        empty = [label for task in tasks for label in task.labels if not counts.get(label)]
        if empty:
            name = index.class_names[empty[0]]
            raise ConfigError(
                f"data.index: {index.url} has no {split} image of class {name!r} "
                f"({len(empty)} such classes); prepare it with that split, or choose other classes"
            )
