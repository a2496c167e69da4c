"""A checked run on all ranks: from the process group to a trainer, and back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import CacheConfig, Config
from pipeline.data.cache import SegmentCache
from pipeline.data.pixel_cache import PixelCache
from pipeline.data.stream import ShardSource
from pipeline.distributed.collectives import on_main, raise_on_all_ranks
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World, process_group
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.model.backbone import FrozenClip
from pipeline.model.weights import load_clip
from pipeline.output.identity import identify
from pipeline.output.manifest import build_manifest
from pipeline.output.ownership import Ownership
from pipeline.output.recovery import is_finished, recover
from pipeline.output.results_builder import ResultsBuilder
from pipeline.output.summary import update_summary
from pipeline.output.writer import OutputWriter
from pipeline.training.activations import ActivationStore
from pipeline.training.agreement import check_agreement
from pipeline.training.batches import ShowPass, TaskBatches, show_no_pass
from pipeline.training.checked_run import Run
from pipeline.training.progress import Display
from pipeline.training.retention import Retention, ZeroShotTest
from pipeline.training.room import check_room_for_batches, check_room_on_disk
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def execute(run: Run, world: World, stop: StopRequest | None = None) -> bool:
    """Learn the sequence on all ranks, from where it was left; False if nothing was left to do.

    Raises:
        ConfigError: the output holds another run.
        Preempted: ``stop`` asked for it.
        TakenOverError: a later start of the run writes to the output.
    """
    with open_trainer(run, world, stop or StopRequest()) as trainer:
        if trainer:
            trainer.run()
    return trainer is not None


@contextmanager
def open_trainer(run: Run, world: World, stop: StopRequest) -> Iterator[Trainer | None]:
    """Join the other ranks within the block; gives the trainer, or None if the run is finished.

    The trainer continues from the last snapshot. The summary of a finished run is brought up to
    the configuration.

    Raises:
        ConfigError: the output holds another run.
    """
    config = run.config
    with process_group(world, timeout_s=config.engine.timeout_s):
        expected = identify(config, run.index, run.tasks, "not loaded yet")
        _log_origin(config, world)
        if on_main(lambda: is_finished(config, expected)):
            on_main(lambda: update_summary(config))
            yield None
            return
        clip = _load_clip(run, world)
        identity = {**expected, "backbone_sha256": clip.sha256}
        on_main(lambda: check_room_on_disk(run))
        recovered = on_main(lambda: recover(config, identity))
        owner = Ownership(config.output)
        on_main(owner.take)
        with ExitStack() as stack:
            method = build_method(config.method, MethodContext.of(config, clip))
            writer = OutputWriter(config, world, owner)
            display = Display(
                n_tasks=len(run.tasks),
                n_epochs=config.optim.epochs,
                shown=world.is_main,
                note=config.tuning.note if config.tuning else None,
                publish=writer.show_progress,
            )
            runs = (run, *run.held_out)
            sources = [stack.enter_context(closing(open_source(each))) for each in runs]
            batches, *held_out_batches = (
                open_batches(each, world, source, method, stop, display.images)
                for each, source in zip(runs, sources, strict=True)
            )
            held_out = [
                ZeroShotTest(each, world, method, its)
                for each, its in zip(run.held_out, held_out_batches, strict=True)
            ]
            is_asked = config.evaluation.future_tasks
            future = ZeroShotTest(run, world, method, batches) if is_asked else None
            yield Trainer(
                run,
                world,
                method,
                batches,
                _start_results(run, world, identity),
                writer,
                display,
                stop,
                recovered,
                Retention(held_out, future),
            )
        _log_origin(config, world)


def _load_clip(run: Run, world: World) -> FrozenClip:
    """The backbone, on ranks that agree and have room for their batches."""
    model = run.config.model
    with raise_on_all_ranks():
        clip = load_clip(model.arch, model.weights, device=world.device, precision=model.precision)
        check_room_for_batches(run, clip.image_size)
    check_agreement(run, clip.sha256)
    return clip


def open_batches(
    run: Run,
    world: World,
    source: ShardSource,
    method: Method,
    stop: StopRequest,
    show_pass: ShowPass = show_no_pass,
) -> TaskBatches:
    """The batches of a run as ``method`` reads them."""
    data, size, first_layer = run.config.data, method.clip.image_size, method.inputs.first_layer
    activations = None
    if first_layer:
        activations = ActivationStore(
            method.clip,
            world,
            first_layer=first_layer,
            folder=data.feature_cache,
            limit_bytes=int(data.activation_limit_gb * 1e9),
        )
    return TaskBatches(
        run,
        world,
        source,
        image_size=size,
        stop=stop,
        show_pass=show_pass,
        activations=activations,
    )


def open_source(run: Run) -> ShardSource:
    """The samples of a run, for this process."""
    data = run.config.data
    return ShardSource(
        run.index,
        cache=SegmentCache.of(data.cache),
        pixels=_build_pixel_cache(data.cache),
        on_bad_sample=data.on_bad_sample,
        bad_sample_budget=data.bad_sample_budget,
        timeout_s=run.config.engine.timeout_s,
    )


def _build_pixel_cache(cache: CacheConfig) -> PixelCache | None:
    if not cache.pixels_gb:
        return None
    folder = Path(cache.folder) / "pixels"
    return PixelCache(folder, limit_bytes=int(cache.pixels_gb * 1e9))


def _start_results(run: Run, world: World, identity: Mapping[str, Any]) -> ResultsBuilder:
    config = run.config
    manifest = build_manifest(
        config,
        tasks=run.tasks,
        index_sha256=run.index.sha256,
        membership=run.index.membership,
        memberships=run.index.memberships,
        train_images=sum(run.index.count("train").values()),
        identity=identity,
        ranks=world.world_size,
    )
    return ResultsBuilder(config.method.name, run.tasks, manifest, config.evaluation, config.tuning)


def _log_origin(config: Config, world: World) -> None:
    """Log the source of the settings, as a warning if a reader of any figure must know it."""
    if config.tuning and world.is_main:
        level = logging.WARNING if config.tuning.note else logging.INFO
        log.log(level, "settings %s", config.tuning.summary)
