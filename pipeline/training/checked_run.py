"""A configuration held against its data and the number of ranks, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.data.index import ShardIndex, join_indexes, read_index
from pipeline.errors import ConfigError, StorageError
from pipeline.methods import find_method, parse_options
from pipeline.methods.base import Inputs
from pipeline.model.weights import weights_problem
from pipeline.tasks import Task, grouped_class_order, split_classes
from pipeline.training.engine import layout_problem
from pipeline.training.task_data import TaskData


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


def _find_index(urls: str | list[str]) -> ShardIndex:
    urls = [urls] if isinstance(urls, str) else urls
    try:
        return join_indexes([read_index(url) for url in urls])
    except StorageError as error:
        raise ConfigError(
            f"data.index: {error}; give the folder or URL that `python -m pipeline.prepare shard` "
            "has written to"
        ) from error


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
