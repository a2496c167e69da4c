"""The images of each task as batches of this rank, and the samples that could not be used.

Axes: B images of this rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batch import Batch, Request
from pipeline.data.index import Selection
from pipeline.data.plan import Layout
from pipeline.data.stream import (
    BatchPlan,
    ShardSource,
    SkippedSample,
    eval_rows,
    plan_stream,
    train_stream,
)
from pipeline.data.transforms import Transform, build_transform
from pipeline.distributed.collectives import gather_objects
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World
from pipeline.errors import DataError
from pipeline.tasks import Task
from pipeline.training.activations import ActivationStore, KeptActivations
from pipeline.training.checked_run import Run
from pipeline.training.features import pixels_of
from pipeline.training.transfer import ToDevice

# Called with the number of images of a pass; returns a function of the number read so far.
ShowPass = Callable[[int], Callable[[int], None]]


def show_no_pass(n_images: int) -> Callable[[int], None]:
    """The :data:`ShowPass` that shows nothing."""
    return lambda done: None


class TaskBatches:
    """Streams the selections of a run to this rank; ``show_pass`` shows those without steps."""

    def __init__(
        self,
        run: Run,
        world: World,
        source: ShardSource,
        *,
        image_size: int,
        stop: StopRequest,
        show_pass: ShowPass = show_no_pass,
        activations: ActivationStore | None = None,
    ) -> None:
        self._config = run.config.data
        self._world = world
        self._data = run.data
        self._source = source
        self._activations = activations
        self._stop = stop
        self._show_pass = show_pass
        self._to_device = ToDevice(world.device)
        self._class_of_label = run.data.class_of_label()
        self._layout = Layout(world.rank, world.world_size, self._config.workers)
        self.train_transform = build_transform(self._config.train_transform, image_size)
        self.eval_transform = build_transform(self._config.eval_transform, image_size)

    def train(
        self, task: Task, epoch: int, *, start_step: int = 0, images: bool = True
    ) -> Iterator[Batch]:
        """This rank's share of each global batch of an epoch, from ``start_step`` on.

        Without ``images`` nothing is read or decoded, and no unusable sample is replaced. Images
        are pixels, or the tokens in front of the method's first prompted block.
        """
        plan, transform = self._data.epoch(task, epoch), self.train_transform
        kept = self._kept(plan.selection, transform) if images else None
        if not images or kept:
            batches = plan_stream(plan, start_step=start_step, layout=self._layout)
        else:
            batches = train_stream(
                self._source,
                plan,
                transform,
                start_step=start_step,
                layout=self._layout,
                upcoming=self._data.following(task),
            )
        return self._with_tokens(batches, transform, kept) if images else batches

    def all_of(
        self, selection: Selection, transform: Transform, *, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """This rank's share of a selection, each sample once.

        In batches of ``batch_size``, else of ``data.eval_batch``. Images are as in :meth:`train`.

        Raises:
            Preempted: the run was asked to stop.
        """
        kept = self._kept(selection, transform)
        rows = eval_rows(len(selection), batch_size or self._config.eval_batch, self._layout)
        plan = BatchPlan(selection, rows, transform)
        batches = self._read(plan) if kept is None else map(_without_images, plan)
        yield from self._counted(self._with_tokens(batches, transform, kept), rows)

    def _kept(self, selection: Selection, transform: Transform) -> KeptActivations | None:
        """The kept activations of a selection; what is missing is computed first."""
        if self._activations is None:
            return None

        def read(rows: Sequence[np.ndarray]) -> Iterator[Batch]:
            return self._counted(self._read(BatchPlan(selection, rows, transform)), rows)

        return self._activations.get(selection, transform, read)

    def _read(self, plan: BatchPlan) -> Iterator[Batch]:
        """Pixels, without unusable samples.

        Raises:
            Preempted: the run was asked to stop.
        """
        workers = self._config.workers
        for batch in self._source.batches(plan, workers=workers, replace_bad=False):
            self._stop.raise_if_requested()
            yield batch

    def _counted(self, batches: Iterator[Batch], rows: Sequence[np.ndarray]) -> Iterator[Batch]:
        """The batches, shown once they are used; the ranks have about equal shares."""
        n_ranks, done = self._world.world_size, 0
        show = self._show_pass(n_ranks * sum(map(len, rows)))
        for row_B, batch in zip(rows, batches, strict=True):
            yield batch
            done += len(row_B)
            show(n_ranks * done)

    def _with_tokens(
        self, batches: Iterator[Batch], transform: Transform, kept: KeptActivations | None
    ) -> Iterator[Batch]:
        """The batches with their images on the device; as tokens if the method starts from tokens.

        Not so for random pixels: the method then runs the blocks below itself.
        """
        store = self._activations
        for batch in batches:
            if kept is not None:
                asked = time.perf_counter()
                image_BCHW = kept.of(batch.sample_B)
                batch = replace(batch, wait_s=time.perf_counter() - asked)
            else:
                image_BCHW = pixels_of(batch)
            image_BCHW = self._to_device(image_BCHW)
            if store is not None and kept is None and not transform.is_random:
                image_BCHW = store.encode(image_BCHW)
            yield replace(batch, image_BCHW=image_BCHW)

    def classes(self, label_B: Tensor) -> Tensor:
        """Class numbers, in class order and on the device, of labels of the index."""
        return self._to_device(self._class_of_label[label_B])

    def skipped_samples(self) -> dict[int, SkippedSample]:
        """The samples that any rank could not use, by number; a collective call.

        Raises:
            DataError: together they are more than the run may skip.
        """
        shares = gather_objects(self._source.skipped)
        skipped = dict(sorted(entry for share in shares for entry in share.items()))
        budget = self._config.bad_sample_budget
        if len(skipped) > budget:
            last = [*skipped.values()][-1]
            raise DataError(
                f"{last.shard}: sample {last.key} {last.reason}; all ranks together have skipped "
                f"{len(skipped)} samples, more than data.bad_sample_budget"
            )
        return skipped

    def restore_skipped(self, samples: Mapping[str, Mapping[str, str]]) -> None:
        """Take over, by number, the samples that an interrupted run could not use."""
        self._source.skipped |= {int(n): SkippedSample(**entry) for n, entry in samples.items()}


def _without_images(request: Request) -> Batch:
    samples = request.samples
    return Batch(None, torch.from_numpy(samples.label_S), torch.from_numpy(samples.sample_S))
