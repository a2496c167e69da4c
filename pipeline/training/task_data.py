"""The pictures of each task as batches: this rank's share, in training and in tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.index import Selection, ShardIndex
from pipeline.data.plan import EpochKey, EpochPlan, Layout, steps_per_epoch
from pipeline.data.stream import Batch, ShardSource, SkippedSample, eval_stream, train_stream
from pipeline.data.transforms import Transform, build_transform
from pipeline.distributed.collectives import gather_objects
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World
from pipeline.errors import DataError
from pipeline.tasks import Task


class TaskData:
    """What each of ``tasks`` trains on and is tested on."""

    def __init__(
        self,
        config: Config,
        world: World,
        index: ShardIndex,
        source: ShardSource,
        tasks: Sequence[Task],
        *,
        image_size: int,
        stop: StopRequest,
    ) -> None:
        self._config = config
        self._world = world
        self._index = index
        self._source = source
        self._tasks = tasks
        self._stop = stop
        self._class_of_label = torch.full((len(index.class_names),), -1)
        for task in tasks:
            self._class_of_label[list(task.labels)] = torch.arange(task.first, task.last)
        self.train_transform = build_transform(config.data.train_transform, image_size)
        self.eval_transform = build_transform(config.data.eval_transform, image_size)

    def train(self, task: Task) -> Selection:
        """The images to learn from: without those held out for validation."""
        return self._select("fit" if self._config.data.validation_fraction else "train", task)

    def test(self, task: Task) -> Selection:
        """The images to test with."""
        return self._select(self._config.evaluation.split, task)

    def steps_per_epoch(self, task: Task) -> int:
        """Optimizer steps of one epoch."""
        data = self._config.data
        return steps_per_epoch(len(self.train(task)), data.global_batch, data.tail)

    def n_steps(self, task: Task) -> int:
        """Optimizer steps of all epochs."""
        return self.steps_per_epoch(task) * self._config.optim.epochs

    def train_batches(self, task: Task, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch, from ``start_step`` on."""
        data, key = self._config.data, EpochKey(self._config.seed, task.index, epoch)
        return train_stream(
            self._source,
            EpochPlan(self.train(task), key, data.global_batch, data.tail),
            self.train_transform,
            start_step=start_step,
            layout=Layout(self._world.rank, self._world.world_size, data.workers),
            upcoming=self._upcoming(task),
        )

    def whole(self, selection: Selection, transform: Transform) -> Iterator[Batch]:
        """This rank's share of a selection, each sample once; ends early if asked to stop.

        Raises:
            Preempted: the run was asked to stop.
        """
        data = self._config.data
        batches = eval_stream(
            self._source,
            selection,
            transform,
            batch_size=data.eval_batch,
            layout=Layout(self._world.rank, self._world.world_size, data.workers),
        )
        for batch in batches:
            self._stop.raise_if_requested()
            yield batch

    def classes(self, label_B: Tensor) -> Tensor:
        """Class numbers, in class order and on the device, of the index's labels."""
        return self._class_of_label[label_B].to(self._world.device)

    def skipped_samples(self) -> dict[int, SkippedSample]:
        """The samples that any rank could not use, by number; every rank asks.

        Raises:
            DataError: together they are more than the run may skip.
        """
        shares = gather_objects(self._source.skipped)
        skipped = dict(sorted(entry for share in shares for entry in share.items()))
        budget = self._config.data.bad_sample_budget
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

    def _upcoming(self, task: Task) -> list[Selection]:
        """What will be read after a task's training: its test, then the next task's images."""
        following = self._tasks[task.index + 1 : task.index + 2]
        return [self.test(task), *(self.train(after) for after in following)]

    def _select(self, split: str, task: Task) -> Selection:
        fraction = self._config.data.validation_fraction
        return self._index.select(split, task.labels, validation_fraction=fraction)
