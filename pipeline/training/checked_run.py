"""A configuration held against its data and the number of ranks, before anything starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import Config, HeldOutConfig, MethodConfig
from pipeline.data.addresses import NodeFiles
from pipeline.data.index import ShardIndex
from pipeline.data.opening import open_index
from pipeline.data.repeats import check_repeats
from pipeline.data.shard_check import check_shards
from pipeline.errors import ConfigError, StorageError
from pipeline.loggers.check import loggers_problem
from pipeline.methods import (
    find_method,
    parse_options,
    resolve_options,
    takes_known_classes,
    tasks_problem,
)
from pipeline.methods.base import Inputs
from pipeline.model.weights import weights_problem
from pipeline.tasks import (
    SEEDED_ORDERS,
    Task,
    grouped_class_order,
    labels_with_images,
    split_classes,
    with_known_classes,
)
from pipeline.training.class_names import check_class_names
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
    held_out: tuple[Run, ...] = ()  # data sets that are tested only, each as one task
    own_templates: tuple[str, ...] = ()  # of such a data set, if the configuration gives them


def check_run(config: Config, world_size: int) -> Run:
    """Check everything that can be checked before a process group starts.

    Raises:
        ConfigError: the settings do not fit each other, the data or the number of ranks.
        DataError: the index cannot be used.
    """
    options, method = parse_options(config.method), find_method(config.method.name)
    _check_transform(config, method.inputs_of(options))
    _check_order_seed(config)
    _check_budgets(config)
    problem = (
        layout_problem(config, world_size)
        or weights_problem(config.model.arch, config.model.weights)
        or loggers_problem(config)
    )
    if problem:
        raise ConfigError(problem)
    index = _find_index(config)
    config = _with_templates(config, index)
    if config.evaluation.split == "validation":
        index = index.with_closed("test")
    tasks = _split(config, index)
    problem = tasks_problem(config.method, tasks) or _known_classes_problem(config, tasks)
    if problem:
        raise ConfigError(problem)
    _check_a_task_is_reported(config, tasks)
    _check_every_class_has_images(config, index, tasks)
    _check_every_shard_is_there(config, index, tasks)
    check_class_names(config, index, tasks, method, options)
    config = with_all_options(config)
    data = TaskData(config, index, tasks, training_images=method.training_images)
    if any(task.known for task in tasks):
        check_repeats(index, n_groups=tasks[-1].group + 1)
    return Run(config, index, tasks, data, world_size, _held_out(config, world_size))


def with_all_options(config: Config) -> Config:
    """The same settings with every option of the method written out.

    Raises:
        ConfigError: the method does not know an option, or there is no such method.
    """
    return config.model_copy(update={"method": resolve_options(config.method)})


def _held_out(config: Config, world_size: int) -> tuple[Run, ...]:
    """The held-out sets; none with ``split=validation``, which opens no test image."""
    evaluation = config.evaluation
    sets = evaluation.held_out_sets if evaluation.split == "test" else []
    try:
        return tuple(_held_out_set(config, each, world_size) for each in sets)
    except ConfigError as error:
        reason = str(error).removeprefix("data.index: ")
        raise ConfigError(f"evaluation.held_out: {reason}") from error


def _held_out_set(config: Config, given: HeldOutConfig, world_size: int) -> Run:
    if given.templates is None and len(config.text.template_lists) > 1:
        raise ConfigError(
            f"{given.index}: has no templates, and text.templates are those of each index of "
            f"data.index; write {{index: {given.index}, templates: [...]}}"
        )
    data = config.data.model_copy(update={"index": given.index})
    templates = given.templates or config.text.templates
    text = config.text.model_copy(update={"templates": templates})
    config = config.model_copy(update={"data": data, "text": text})
    index = _find_index(config)
    names = index.class_names if config.text.names == "spaced" else index.class_folders
    tasks = (Task(0, first=0, labels=tuple(range(len(names))), names=names),)
    zero_shot = MethodConfig(name="zeroshot")
    method, options = find_method(zero_shot.name), parse_options(zero_shot)
    check_class_names(config, index, tasks, method, options)
    images = TaskData(config, index, tasks)
    images.test(tasks[0])  # an error if there are none
    check_shards(shard for shard in index.shards if shard.split == "test")
    own_templates = tuple(given.templates or ())
    return Run(config, index, tasks, images, world_size, own_templates=own_templates)


def _split(config: Config, index: ShardIndex) -> tuple[Task, ...]:
    settings = config.tasks
    names = index.class_names if config.text.names == "spaced" else index.class_folders
    order = grouped_class_order(settings.class_order, index.group_sizes, settings.order_seed)
    tasks = split_classes(
        order,
        names,
        classes_per_task=settings.classes_per_task,
        initial_classes=settings.initial_classes,
        limit=settings.limit,
        group_sizes=index.group_sizes,
        appended=settings.appended,
    )
    return with_known_classes(tasks, index.known_labels)


def _with_templates(config: Config, index: ShardIndex) -> Config:
    """The same settings; templates that are equal in all indexes are written once."""
    lists, n_indexes = config.text.template_lists, len(index.group_sizes)
    if config.text.templates != lists[0] and len(lists) != n_indexes:
        raise ConfigError(
            f"text.templates: has the templates of {len(lists)} indexes and data.index has "
            f"{n_indexes}; give a list of templates for each, or one for all"
        )
    if any(each != lists[0] for each in lists):
        return config
    text = config.text.model_copy(update={"templates": lists[0]})
    return config.model_copy(update={"text": text})


def _find_index(config: Config) -> ShardIndex:
    cache = config.data.cache
    try:
        joined = open_index(config.data.index, known_classes=config.tasks.known_classes)
        files = NodeFiles(cache.folder, limit_bytes=int(cache.limit_gb * 1e9))
        return joined.with_node_files(files)
    except StorageError as error:
        raise ConfigError(
            f"data.index: {error}; give the folder or URL that `python -m pipeline.prepare shard` "
            "has written to"
        ) from error


def _known_classes_problem(config: Config, tasks: Sequence[Task]) -> str | None:
    """The reason why the method cannot learn further images of known classes, or None."""
    number = next((task.index + 1 for task in tasks if task.known), None)
    if number is None:
        return None
    parts = takes_known_classes(config.method)
    new_only = [name for name, takes in parts.items() if not takes]
    if not new_only:
        return None
    return (
        f"tasks.known_classes: task {number} has images of known classes, and {new_only[0]!r} "
        "takes new classes only (its takes_known_classes is not set); choose another method or "
        "classifier, or append only new classes"
    )


def _check_order_seed(config: Config) -> None:
    """An order that has no seed must not be given one: runs of many seeds would all be equal."""
    settings = config.tasks
    default = type(settings).model_fields["order_seed"].default
    if settings.class_order not in SEEDED_ORDERS and settings.order_seed != default:
        order = settings.class_order if isinstance(settings.class_order, str) else "a list"
        raise ConfigError(
            f"tasks.order_seed is {settings.order_seed} and tasks.class_order is {order}, which "
            "no seed changes; set tasks.class_order=lamda, or remove tasks.order_seed"
        )


def _check_budgets(config: Config) -> None:
    """A budget of tolerated errors must not be given where the first error ends the run."""
    settings = config.model_dump()
    for section, budget, rule in (
        ("data", "bad_sample_budget", "on_bad_sample"),
        ("optim", "nonfinite_loss_budget", "on_nonfinite_loss"),
    ):
        given = settings[section]
        if given[budget] and given[rule] == "fail":
            raise ConfigError(
                f"{section}.{budget} is {given[budget]} and {section}.{rule} is 'fail', which ends "
                f"the run at the first one; set {section}.{rule}=skip, or remove "
                f"{section}.{budget}"
            )


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


def _check_every_shard_is_there(config: Config, index: ShardIndex, tasks: Sequence[Task]) -> None:
    labels: dict[int, set[int]] = defaultdict(set)
    for task, shown in zip(tasks, labels_with_images(tasks), strict=True):
        labels[task.group].update(shown)
    splits = {"train", "test" if config.evaluation.split == "test" else "train"}
    shards = (shard for shard in index.shards if shard.split in splits)
    check_shards(s for s in shards if not labels[s.group].isdisjoint(s.class_counts))


def _check_every_class_has_images(
    config: Config, index: ShardIndex, tasks: tuple[Task, ...]
) -> None:
    splits = {"train", "test" if config.evaluation.split == "test" else "train"}
    for split in sorted(splits):
        counts = [index.count(split, group=group) for group in range(len(index.group_sizes))]
        empty = [label for task in tasks for label in task.labels if not counts[task.group][label]]
        if empty:
            name = index.class_names[empty[0]]
            raise ConfigError(
                f"data.index: {index.url} has no {split} image of class {name!r} "
                f"({len(empty)} such classes); prepare it with that split, or choose other classes"
            )
        without = [task.index + 1 for task in tasks if not any(counts[task.group].values())]
        if without:
            raise ConfigError(
                f"data.index: {index.url} has no {split} image for task {without[0]}, which has "
                "known classes only; prepare its index with that split"
            )
