"""Text anchors with an offset per class, fitted to the embeddings of a task at its end.

Residuals of anchors are cheap to learn once the embeddings are computed: no image is encoded again,
so many steps cost less than one step of the image tower.

Axes: S images of a task · B images · C classes of a task, or seen so far · E joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from pipeline.classifiers.base import ClassifierContext, EmbeddedImages, Moment
from pipeline.classifiers.text_anchors import TextAnchors
from pipeline.model.class_rows import initial_rows, newest_rows, positions
from pipeline.model.prompts import unit
from pipeline.settings_file import Section
from pipeline.tasks import Task


class FittedAnchorsOptions(Section):
    """The steps of the fit, each over all images of the task."""

    steps: int = Field(100, gt=0)  # of Adam, per task
    learning_rate: float = Field(2e-3, gt=0)  # of Adam, falling to 0 by a cosine


class FittedAnchors(TextAnchors):
    """``logits = s · z · unit(w_c + δ_c)``: the δ of a task lower its cross-entropy and then stay.

    The classes of the task compete with each other alone: of earlier classes no image is kept.
    """

    Options = FittedAnchorsOptions
    name = "fitted_anchors"

    def __init__(self, context: ClassifierContext, options: FittedAnchorsOptions) -> None:
        super().__init__(context, options)
        self.offsets = nn.ParameterList()  # per task, C×E; no gradient of a step reaches them
        self._tasks: list[Task] = []

    @property
    def fits(self) -> frozenset[Moment]:
        """The end of a task."""
        return frozenset({"end"})

    def begin_task(self, task: Task) -> None:
        """Add an offset for each class of ``task``; that of a known class starts as it is."""
        self._tasks.append(task)
        start_CE = initial_rows([*self.offsets], self._tasks, self.context.clip.joint_width)
        start_CE = start_CE.to(self.context.clip.device)
        self.offsets.append(nn.Parameter(start_CE, requires_grad=False))

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        """Fit the offsets of the task to all of its images at once, by cross-entropy."""
        classes = self._tasks[-1].classes
        parts = [(embedded.embedding_BE, label_B) for embedded, label_B in images]
        embedding_SE, label_S = map(torch.cat, zip(*parts, strict=True))
        position_S = positions(classes, label_S)
        text_CE = self._anchors[0].for_evaluation()[list(classes)]
        scale, rate, steps = (
            self.context.clip.logit_scale,
            self.options.learning_rate,
            self.options.steps,
        )
        with torch.enable_grad():
            offset_CE = self.offsets[-1].detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([offset_CE], lr=rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(steps):
                logits_SC = scale * embedding_SE @ unit(text_CE + offset_CE).T
                optimizer.zero_grad()
                F.cross_entropy(logits_SC, position_S).backward()
                optimizer.step()
                schedule.step()
        self.offsets[-1].copy_(offset_CE.detach())

    def end_task(self, task: Task) -> None:
        """Fix the anchors that predictions use."""
        offset_CE = newest_rows([*self.offsets], self._tasks)
        self._anchor_CE = unit(self._anchors[0].for_evaluation() + offset_CE)
