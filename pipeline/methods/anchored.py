"""Images learn to choose the text anchor of their class: the loss that prompt methods share.

Axes: N images of the global batch · C classes · E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.base import Losses, Method, MethodOptions
from pipeline.model.anchors import Anchors, FixedAnchors, LearnedAnchors, OldAnchors
from pipeline.model.class_rows import positions
from pipeline.model.losses import image_to_text
from pipeline.model.prompts import TextualPromptOptions
from pipeline.tasks import Task, lone_classes_problem


class AnchoredOptions(MethodOptions):
    """Which classes compete in the loss."""

    loss_classes: Literal["current", "seen"] = "current"  # anchors in the softmax of training


class Anchored(Method):
    """Image→text cross-entropy over anchors, by default fixed ones. A subclass embeds images."""

    Options = AnchoredOptions
    takes_known_classes = True
    anchors: Anchors

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """Refuse tasks of one class if its anchor competes with no other one."""
        return None if options.loss_classes == "seen" else lone_classes_problem(tasks, "method")

    def build_anchors(self) -> Anchors:
        """The text embeddings of the frozen text tower."""
        return self.fixed_anchors()

    def fixed_anchors(self) -> FixedAnchors:
        """The text embeddings of the frozen text tower."""
        context = self.context
        return FixedAnchors(context.clip, context.prompts_of, ensemble=context.ensemble)

    def learned_anchors(
        self,
        textual_prompts: TextualPromptOptions | None,
        *,
        residuals: bool = False,
        old: OldAnchors = "reencoded",
    ) -> LearnedAnchors:
        """Anchors behind learned context tokens, with learned offsets, or both."""
        return LearnedAnchors(
            self.context.clip,
            self.fixed_anchors(),
            textual_prompts=textual_prompts,
            residuals=residuals,
            old=old,
            seed=self.context.seed,
        )

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        """Image→text cross-entropy."""
        anchor_CE, position_N = self.competing(self.anchors.current(), label_N)
        scale = self.clip.logit_scale
        loss = image_to_text(embedded.embedding_BE, anchor_CE, position_N, scale)
        return Losses(loss, {"image_to_text": loss})

    def competing(self, current_CE: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """The anchors ``anchor_CE`` that compete in the loss, and the labels' positions there."""
        if self.options.loss_classes == "seen":
            return self.seen_anchors(current_CE), label_N
        return current_CE, positions(self.task.classes, label_N)

    def seen_anchors(self, current_CE: Tensor) -> Tensor:
        """The anchors ``anchor_CE`` of every class so far, with the current ones among them."""
        old_CE, n_known = self.anchors.old(), len(self.task.known)
        if n_known:
            known = torch.tensor(self.task.known, device=old_CE.device)
            old_CE = old_CE.index_copy(0, known, current_CE[:n_known])
        return torch.cat([old_CE, current_CE[n_known:]])
