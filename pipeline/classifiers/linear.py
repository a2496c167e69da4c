"""A linear layer over the embeddings, trained by cross-entropy with the method.

Axes: B images · N images of the global batch · C classes · E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.classifiers.base import Classifier, ClassifierContext, Embedded
from pipeline.classifiers.heads import LinearHead
from pipeline.model.class_rows import initial_rows, newest_rows, positions
from pipeline.settings_file import Section
from pipeline.tasks import Task, lone_classes_problem


class LinearOptions(Section):
    """Which classes compete in the loss, and how sharply."""

    loss_classes: Literal["current", "seen"] = "current"  # in the softmax of training
    scale: float = Field(10.0, gt=0)  # of the unit embeddings, before the layer


class Linear(Classifier):
    """``logits = s · W x + b``; rows of earlier tasks are frozen, new ones start at zero.

    A task with further images of a known class trains a new row for it, which starts from the last.
    """

    Options = LinearOptions
    takes_known_classes = True

    def __init__(self, context: ClassifierContext, options: LinearOptions) -> None:
        super().__init__(context, options)
        self.weights = nn.ParameterList()  # per task, C×E
        self.biases = nn.ParameterList()  # per task, C
        self._tasks: list[Task] = []

    @classmethod
    def check(cls, options: LinearOptions, tasks: Sequence[Task]) -> str | None:
        """Refuse tasks of one class if its row competes with no other one."""
        is_seen = options.loss_classes == "seen"
        return None if is_seen else lone_classes_problem(tasks, "classifier")

    def begin_task(self, task: Task) -> None:
        """Freeze the rows of earlier tasks and add those of ``task``."""
        self._tasks.append(task)
        self.requires_grad_(False)
        width = self.context.embedding_width
        self.weights.append(nn.Parameter(initial_rows([*self.weights], self._tasks, width)))
        self.biases.append(nn.Parameter(initial_rows([*self.biases], self._tasks)))

    def loss(self, embedded: Embedded, label_N: Tensor) -> Tensor | None:
        """Cross-entropy; its gradient reaches the layer alone, not the embeddings."""
        fixed = Embedded(embedded.embedding_BE.detach())
        if self.options.loss_classes == "seen":
            return F.cross_entropy(self.logits(fixed), label_N)
        logits_NC = self._scores(fixed, self.weights[-1], self.biases[-1])
        return F.cross_entropy(logits_NC, positions(self._tasks[-1].classes, label_N))

    def logits(self, embedded: Embedded) -> Tensor:
        """Scores ``logits_BC`` of all classes seen."""
        weight_CE = newest_rows([*self.weights], self._tasks)
        return self._scores(embedded, weight_CE, newest_rows([*self.biases], self._tasks))

    def heads(self) -> list[LinearHead]:
        """One head: the rows of all tasks."""
        weight_CE = newest_rows([*self.weights], self._tasks).detach()
        bias_C = newest_rows([*self.biases], self._tasks).detach()
        return [LinearHead((("embedding",),), weight_CE, bias_C=bias_C, scale=self.options.scale)]

    def _scores(self, embedded: Embedded, weight_CE: Tensor, bias_C: Tensor) -> Tensor:
        return self.options.scale * embedded.embedding_BE @ weight_CE.T + bias_C
