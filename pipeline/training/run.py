"""From a configuration to a finished run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import CacheConfig, Config, TextConfig
from pipeline.data.cache import SegmentCache
from pipeline.data.index import Selection, ShardIndex, join_indexes, read_index
from pipeline.data.plan import steps_per_epoch
from pipeline.data.stream import ShardSource
from pipeline.distributed.collectives import on_main
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World, process_group
from pipeline.errors import ConfigError, StorageError
from pipeline.methods import build_method, parse_options
from pipeline.methods.base import Method, MethodContext
from pipeline.model.backbone import FrozenClip, blank_clip, load_clip, weights_problem
from pipeline.output.identity import identify
from pipeline.output.manifest import build_manifest
from pipeline.output.ownership import Ownership
from pipeline.output.recovery import is_finished, recover
from pipeline.output.results import update_summary
from pipeline.output.results_builder import ResultsBuilder
from pipeline.tasks import Task, grouped_class_order, split_classes
from pipeline.training.engine import layout_problem
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A configuration that was found to fit its data and the number of ranks."""

    config: Config
    index: ShardIndex
    tasks: tuple[Task, ...]
    world_size: int

    @property
    def train_split(self) -> str:
        """The images to learn from: without those held out for validation."""
        return "fit" if self.config.data.validation_fraction else "train"


def check_run(config: Config, world_size: int) -> Run:
    """Everything that can be known to be wrong before a process group starts.

    Raises:
        ConfigError: the settings do not fit each other, the data or the number of ranks.
        DataError: the index cannot be used.
    """
    parse_options(config.method)
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
    return Run(config, index, tasks, world_size)


def execute(run: Run, world: World, stop: StopRequest | None = None) -> bool:
    """Learn the sequence on all ranks, from where it was left; False if nothing was left to do.

    Of a finished run the summary is brought up to what the configuration leaves out of it.

    Raises:
        ConfigError: the output holds another run.
        Preempted: ``stop`` asked for it.
        TakenOverError: a later start of the run writes to the output.
    """
    config = run.config
    with process_group(world, timeout_s=config.engine.timeout_s):
        expected = identify(config, run.index, run.tasks, "not loaded yet")
        _tell_origin(config, world)
        if on_main(lambda: is_finished(config, expected)):
            on_main(lambda: update_summary(config))
            return False
        clip = load_clip(config.model.arch, config.model.weights, device=world.device)
        identity = {**expected, "backbone_sha256": clip.sha256}
        recovered = on_main(lambda: recover(config, identity))
        owner = Ownership(config.output)
        on_main(owner.take)
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
        source = ShardSource(
            run.index,
            cache=_build_cache(config.data.cache),
            on_bad_sample=config.data.on_bad_sample,
            bad_sample_budget=config.data.bad_sample_budget,
        )
        method = build_method(config.method, _setting(config, clip))
        try:
            stop = stop or StopRequest()
            trainer = Trainer(config, world, run.index, source, method, results, owner, stop)
            trainer.run(recovered)
        finally:
            source.close()
        _tell_origin(config, world)
    return True


def describe(run: Run) -> str:
    """The plan of a run: what will be learned, what it takes, what must be fetched."""
    config, index = run.config, run.index
    per_rank = config.data.global_batch // run.world_size
    clip = blank_clip(config.model.arch)
    trainable = trainable_parameters(build_method(config.method, _setting(config, clip)), run.tasks)
    lines = [
        f"run        {config.name}: {config.method.name} on {index.url}",
        f"output     {config.output}",
        f"frozen     {clip.n_parameters:,} parameters of {config.model.arch}, "
        f"{config.model.weights or 'its own weights'}",
        f"ranks      {run.world_size}, {per_rank} images each in passes of "
        f"{min(config.engine.micro_batch, per_rank)}",
        *_said_of_the_result(config),
        "",
        "task  classes  train images  test images  steps  trainable  to fetch",
    ]
    total_steps = total_bytes = 0
    for task, n_trainable in zip(run.tasks, trainable, strict=True):
        train = _select(run, run.train_split, task)
        test = _select(run, config.evaluation.split, task)
        steps = steps_per_epoch(len(train), config.data.global_batch, config.data.tail)
        steps *= config.optim.epochs if n_trainable else 0
        size = test.bytes + (train.bytes if n_trainable else 0)
        total_steps, total_bytes = total_steps + steps, total_bytes + size
        lines.append(
            f"{task.index + 1:4}  {len(task.labels):7}  {len(train):12,}  {len(test):11,}  "
            f"{steps:5,}  {n_trainable:9,}  {_megabytes(size)}"
        )
    lines += [
        "",
        f"steps      {total_steps:,} in all",
        f"trainable  {sum(trainable):,} parameters in all, {_megabytes(4 * sum(trainable))}",
        f"to fetch   {_megabytes(total_bytes)} in all",
        f"memory     {_memory_estimate(run, clip, max(trainable))}",
    ]
    return "\n".join(lines)


def trainable_parameters(method: Method, tasks: tuple[Task, ...]) -> list[int]:
    """How many scalars each task learns."""
    counts = []
    for task in tasks:
        method.begin_task(task)
        counts.append(sum(p.numel() for p in method.parameters() if p.requires_grad))
        method.end_task(task)
    return counts


def class_prompts(text: TextConfig, name: str) -> list[str]:
    """The prompts of one class, the one that training uses first."""
    return [template.replace("{}", name) for template in text.templates]


def _setting(config: Config, clip: FrozenClip) -> MethodContext:
    def describe_class(name: str) -> list[str]:
        return class_prompts(config.text, name)

    return MethodContext(clip, describe_class, config.text.ensemble, config.seed)


def _build_cache(cache: CacheConfig) -> SegmentCache:
    return SegmentCache(
        Path(cache.folder).expanduser(),
        limit_bytes=int(cache.limit_gb * 1e9),
        deadline_s=cache.deadline_s,
    )


def _select(run: Run, split: str, task: Task) -> Selection:
    fraction = run.config.data.validation_fraction
    return run.index.select(split, task.labels, validation_fraction=fraction)


def _find_index(urls: str | list[str]) -> ShardIndex:
    urls = [urls] if isinstance(urls, str) else urls
    try:
        return join_indexes([read_index(url) for url in urls])
    except StorageError as error:
        raise ConfigError(
            f"data.index: {error}; give the folder or URL that `python -m pipeline.prepare shard` "
            "has written to"
        ) from error


def _said_of_the_result(config: Config) -> list[str]:
    """Lines of the plan."""
    excluded = config.evaluation.exclude_tasks
    lines = [f"summary    leaves out the first {excluded} task(s)"] if excluded else []
    return [*lines, f"settings   {config.tuning.summary}"] if config.tuning else lines


def _tell_origin(config: Config, world: World) -> None:
    """Say where the settings came from; what a reader of any figure must know, as a warning."""
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


def _memory_estimate(run: Run, clip: FrozenClip, trainable: int) -> str:
    """Rough bytes per rank: towers, activations of one pass, learned tensors with their state."""
    on_gpu = torch.cuda.is_available()
    width = 2 if on_gpu else 4
    engine, per_rank = run.config.engine, run.config.data.global_batch // run.world_size
    images = min(engine.micro_batch, per_rank) if engine.recompute else per_rank
    tokens = clip.image_tokens + 10
    activations = 10 * clip.vision_layers * tokens * clip.vision_width * width * images
    state = 16 * trainable
    total = width * clip.n_parameters + activations + state
    return (
        f"about {total / 1e9:.1f} GB per rank: towers {width * clip.n_parameters / 1e9:.1f}, "
        f"activations {activations / 1e9:.1f}, learned tensors with gradient and moments "
        f"{state / 1e9:.2f}"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
