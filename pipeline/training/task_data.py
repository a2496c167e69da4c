"""The images of each task and the optimizer steps that they make: the plan of a run.

A pure function of the configuration, the index and the tasks. It is made when the run is checked,
and read by the dry run, the trainer, the evaluator and a sweep's estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.index import Selection, ShardIndex, Split
from pipeline.data.plan import EpochKey, EpochPlan, steps_per_epoch
from pipeline.tasks import Task, labels_with_images

# Where so many images are expected to be drawn, there is one: none has the probability 1e-13.
_SURELY = 30


class TaskData:
    """The training and test images of each of ``tasks``; each selection is made once, when needed.

    With ``training_images="seen"`` a task also shows the training images of all earlier tasks.
    Where two tasks have images of one class, each has those of its own index.
    """

    def __init__(
        self,
        config: Config,
        index: ShardIndex,
        tasks: Sequence[Task],
        *,
        training_images: Literal["task", "seen"] = "task",
    ) -> None:
        self._config = config
        self._index = index
        self.tasks = tasks
        self._labels = labels_with_images(tasks)
        self._training_images = training_images
        self._selections: dict[tuple[Split, range], Selection] = {}

    def train(self, task: Task) -> Selection:
        """The images that ``task`` trains on, without those held out for validation.

        Raises:
            DataError: there are none.
        """
        split: Split = "fit" if self._config.data.validation_fraction else "train"
        return self._select(split, self._shown(task))

    def test(self, task: Task) -> Selection:
        """The images that ``task`` is tested on.

        Raises:
            DataError: there are none.
        """
        return self._select(self._config.evaluation.split, range(task.index, task.index + 1))

    def steps_per_epoch(self, task: Task) -> int:
        """Optimizer steps of one epoch."""
        data = self._config.data
        return steps_per_epoch(len(self.train(task)), data.global_batch, data.tail)

    def n_steps(self, task: Task) -> int:
        """Optimizer steps of all epochs."""
        return self.steps_per_epoch(task) * self._config.optim.epochs

    def expected_steps(self, task: Task) -> int:
        """:meth:`n_steps`, or a close estimate while it would take long.

        With ``data.validation_fraction`` the exact number needs the key of each image. In a large
        data set it is not asked for before the task starts, except in a task so small that it
        could be left without an image.
        """
        data, tasks = self._config.data, self._shown(task)
        held_out = data.validation_fraction
        if not held_out or not self._index.is_large or ("fit", tasks) in self._selections:
            return self.n_steps(task)
        n_images = len(self._select("train", tasks))
        if n_images * min(held_out, 1 - held_out) < _SURELY:
            self.test(task)
            return self.n_steps(task)
        n_images = round(n_images * (1 - held_out))
        return steps_per_epoch(n_images, data.global_batch, data.tail) * self._config.optim.epochs

    def task_steps(self, index: int) -> int:
        """The optimizer steps of the task with this index."""
        return self.n_steps(self.tasks[index])

    def epoch(self, task: Task, epoch: int) -> EpochPlan:
        """The global batches of one epoch of ``task``, counted from 0."""
        data, key = self._config.data, EpochKey(self._config.seed, task.index, epoch)
        return EpochPlan(self.train(task), key, data.global_batch, data.tail)

    def following(self, task: Task) -> list[Selection]:
        """The selections that are read after the training of ``task``: its test, the next task.

        Of the next task they are all training images, also those held out for validation.
        """
        after = self.tasks[task.index + 1 : task.index + 2]
        return [self.test(task), *(self._select("train", self._shown(each)) for each in after)]

    def class_of_label(self) -> Tensor:
        """The class number, in class order, of each index label; -1 for a label of no task."""
        class_of_label = torch.full((len(self._index.class_names),), -1)
        for task in self.tasks:
            class_of_label[list(task.labels)] = torch.arange(task.first, task.last)
        return class_of_label

    def _shown(self, task: Task) -> range:
        """The numbers of the tasks whose training images ``task`` shows."""
        return range(0 if self._training_images == "seen" else task.index, task.index + 1)

    def _select(self, split: Split, tasks: range) -> Selection:
        """The images of the tasks with these numbers."""
        key = split, tasks
        if key not in self._selections:
            self._selections[key] = self._index.select(
                split,
                [label for number in tasks for label in self._labels[number]],
                validation_fraction=self._config.data.validation_fraction,
                groups={self.tasks[number].group for number in tasks},
            )
        return self._selections[key]
