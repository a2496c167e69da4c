"""The contract every method obeys: it returns losses and logits; it never steps, logs or loops.

Axes: B images of this rank · N images of the global batch · C classes seen so far · E joint
width. Classes are numbered in class order, see :class:`pipeline.tasks.Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import Section
from pipeline.errors import DataError
from pipeline.model.anchors import FixedAnchors, LearnedAnchors
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.tasks import Task


class Losses(NamedTuple):
    """What one step minimises: ``total`` and the weighted terms that it is the sum of."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class MethodContext:
    """What a method may know of the run."""

    clip: FrozenClip
    describe: Callable[[str], Sequence[str]]  # class name → its prompts, the training one first
    ensemble: bool  # test fixed anchors with all prompts
    seed: int


class Method(nn.Module):
    """One continual-learning rule: what is learned, and what changes between tasks.

    The parameters that require a gradient after :meth:`begin_task` are what this task learns: the
    engine steps exactly those and every other tensor stays bit-equal. A subclass sets
    ``Options`` and overrides what differs.
    """

    Options: ClassVar[type[Section]] = Section
    anchors: FixedAnchors | LearnedAnchors

    def __init__(self, setting: MethodContext, options: Any) -> None:
        super().__init__()
        self.clip = setting.clip
        self.options = options
        self.task: Task | None = None
        self.tested_CE: Tensor | None = None

    @property
    def reads_frozen(self) -> bool:
        """Whether :meth:`embed` reads the features of the frozen image tower."""
        return False

    @property
    def reads_images(self) -> bool:
        """Whether :meth:`embed` reads the images themselves."""
        return True

    def begin_task(self, task: Task) -> None:
        """Prepare for ``task``: extend the label space, choose what is trainable."""
        self.task = task
        self.anchors.begin_task(task)

    def embed(self, image_BCHW: Tensor | None, frozen: ImageFeatures | None) -> Tensor:
        """Unit embeddings ``embedding_BE`` from the images, their frozen features, or both."""
        raise NotImplementedError

    def losses(self, embedding_NE: Tensor, label_N: Tensor) -> Losses:
        """Loss terms of one global batch; ``label_N`` are class numbers of the current task."""
        raise NotImplementedError

    def forward(
        self, image_BCHW: Tensor, label_B: Tensor, frozen: ImageFeatures | None = None
    ) -> Losses:
        """The training loss of one batch in one graph; the engine makes the same of many parts."""
        return self.losses(self.embed(image_BCHW, frozen), label_B)

    def end_task(self, task: Task) -> None:
        """Consolidate what ``task`` taught and fix the anchors that predictions use."""
        self.anchors.end_task(task)
        self.tested_CE = self.anchors.tested()

    def restore_task(self, task: Task, learned: Mapping[str, Tensor]) -> None:
        """Be as :meth:`end_task` left it after ``task``, whose ``learned`` tensors are given.

        Tasks are restored in order, each once, in place of being learned.

        Raises:
            DataError: there is no place for one of the tensors.
        """
        self.begin_task(task)
        self.load_learned(learned)
        self.end_task(task)
        self.load_learned(learned)  # the tensors that only the end of the task has made
        strange = sorted(learned.keys() - self.state_dict().keys())
        if strange:
            raise DataError(
                f"task {task.index + 1}: this version has no tensor {strange[0]}; "
                "go on with the version that learned the task"
            )

    @torch.no_grad()
    def load_learned(self, learned: Mapping[str, Tensor]) -> None:
        """Copy ``learned`` tensors into those of the same name that there are."""
        own = self.state_dict()
        for name in own.keys() & learned.keys():
            own[name].copy_(learned[name])

    def logits(self, embedding_BE: Tensor) -> Tensor:
        """Scores ``logits_BC`` of embedded images over all classes seen, after a task's end."""
        return self.clip.logit_scale * embedding_BE @ self.tested_CE.T
