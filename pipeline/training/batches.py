"""The images of each task as batches of this rank, and the samples that could not be used.

Axes: B images of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from pipeline.data.batch import Batch
from pipeline.data.index import Selection
from pipeline.data.plan import Layout
from pipeline.data.stream import ShardSource, SkippedSample, eval_stream, plan_stream, train_stream
from pipeline.data.transforms import Transform, build_transform
from pipeline.distributed.collectives import gather_objects
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World
from pipeline.errors import DataError
from pipeline.tasks import Task
from pipeline.training.checked_run import Run


class TaskBatches:
    """Streams the selections of a run to this rank."""

    def __init__(
        self,
        run: Run,
        world: World,
        source: ShardSource,
        *,
        image_size: int,
        stop: StopRequest,
    ) -> None:
        self._config = run.config.data
        self._world = world
        self._data = run.data
        self._source = source
        self._stop = stop
        self._class_of_label = run.data.class_of_label()
        self._layout = Layout(world.rank, world.world_size, self._config.workers)
        self.train_transform = build_transform(self._config.train_transform, image_size)
        self.eval_transform = build_transform(self._config.eval_transform, image_size)

    def train(
        self, task: Task, epoch: int, *, start_step: int = 0, images: bool = True
    ) -> Iterator[Batch]:
        """This rank's share of each global batch of an epoch, from ``start_step`` on.

        Without ``images`` nothing is read or decoded, and no unusable sample is replaced.
        """
        plan = self._data.epoch(task, epoch)
        if not images:
            return plan_stream(plan, start_step=start_step, layout=self._layout)
        return train_stream(
            self._source,
            plan,
            self.train_transform,
            start_step=start_step,
            layout=self._layout,
            upcoming=self._data.following(task),
        )

    def all_of(self, selection: Selection, transform: Transform) -> Iterator[Batch]:
        """This rank's share of a selection, each sample once, in batches of ``data.eval_batch``.

        Raises:
            Preempted: the run was asked to stop.
        """
        batches = eval_stream(
            self._source,
            selection,
            transform,
            batch_size=self._config.eval_batch,
            layout=self._layout,
        )
        for batch in batches:
            self._stop.raise_if_requested()
            yield batch

    def classes(self, label_B: Tensor) -> Tensor:
        """Class numbers, in class order and on the device, of labels of the index."""
        return self._class_of_label[label_B].to(self._world.device)

    def skipped_samples(self) -> dict[int, SkippedSample]:
        """The samples that any rank could not use, by number; every rank asks.

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
