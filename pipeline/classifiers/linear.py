"""A linear layer over the embeddings, trained by cross-entropy with the method.

Axes: B images · N images of the global batch · C classes · E embedding width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.classifiers.base import Classifier, ClassifierContext, Embedded
from pipeline.settings_file import Section
from pipeline.tasks import Task


class LinearOptions(Section):
    """Which classes compete in the loss, and how sharply."""

    loss_classes: Literal["current", "seen"] = "current"
    scale: float = Field(10.0, gt=0)  # of the unit embeddings, before the layer


class Linear(Classifier):
    """``logits = s · W x + b``; rows of earlier tasks are frozen, new ones start at zero."""

    Options = LinearOptions

    def __init__(self, context: ClassifierContext, options: LinearOptions) -> None:
        super().__init__(context, options)
        self.weights = nn.ParameterList()  # per task, C×E
        self.biases = nn.ParameterList()  # per task, C
        self._first = 0  # class of the current task

    def begin_task(self, task: Task) -> None:
        """Freeze the rows of earlier tasks and add those of ``task``."""
        self._first = task.first
        self.requires_grad_(False)
        n_classes = len(task.labels)
        self.weights.append(nn.Parameter(torch.zeros(n_classes, self.context.embedding_width)))
        self.biases.append(nn.Parameter(torch.zeros(n_classes)))

    def loss(self, embedded: Embedded, label_N: Tensor) -> Tensor | None:
        """Cross-entropy; its gradient reaches the layer alone, not the embeddings."""
        fixed = Embedded(embedded.embedding_BE.detach())
        if self.options.loss_classes == "seen":
            return F.cross_entropy(self.logits(fixed), label_N)
        logits_NC = self._scores(fixed, self.weights[-1], self.biases[-1])
        return F.cross_entropy(logits_NC, label_N - self._first)

    def logits(self, embedded: Embedded) -> Tensor:
        """Scores ``logits_BC`` of all classes seen."""
        return self._scores(embedded, torch.cat([*self.weights]), torch.cat([*self.biases]))

    def _scores(self, embedded: Embedded, weight_CE: Tensor, bias_C: Tensor) -> Tensor:
        return self.options.scale * embedded.embedding_BE @ weight_CE.T + bias_C
