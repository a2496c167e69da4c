"""Visual prompts by image→text cross-entropy alone: TPPT without the terms of its anchors.

Axes: B images of this rank · N images of the global batch · C classes · E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.base import Inputs, Losses, Method, MethodOptions, given
from pipeline.model.anchors import Anchors, FixedAnchors
from pipeline.model.backbone import ImageFeatures
from pipeline.model.class_rows import positions
from pipeline.model.losses import image_to_text
from pipeline.model.prompts import VisualPromptOptions, VisualPrompts, unit
from pipeline.tasks import Task


class FinetuneOptions(MethodOptions):
    """Where prompts stand and which classes compete in the loss."""

    visual_prompts: VisualPromptOptions = VisualPromptOptions()
    loss_classes: Literal["current", "seen"] = "current"  # anchors in the softmax of training


class Finetune(Method):
    """Prompt tuning of the image tower against fixed anchors."""

    Options = FinetuneOptions
    takes_known_classes = True
    anchors: Anchors

    def build_adaptation(self) -> None:
        """Visual prompts, empty before the first task."""
        clip = self.clip
        self.visual_prompts = VisualPrompts(
            self.options.visual_prompts,
            width=clip.vision_width,
            layers=clip.vision_layers,
            seed=self.context.seed,
        )

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """Refuse tasks of one class if its anchor competes with no other one."""
        alone = sum(len(task.classes) == 1 for task in tasks)
        is_rest = alone <= 1 < len(tasks)  # the last task often has one class
        if options.loss_classes == "seen" or alone == 0 or is_rest:
            return None
        return (
            f"tasks: {alone} of {len(tasks)} tasks have one class, so their loss is always 0 and "
            "nothing is learned; at least two classes must compete; set loss_classes=seen among "
            "the options of the method, or raise tasks.classes_per_task"
        )

    @classmethod
    def inputs_of(cls, options: FinetuneOptions) -> Inputs:
        """Images, and for instance-specific prompts the features that mix them."""
        prompts = options.visual_prompts
        features = prompts.generator == "weighted"
        return Inputs(images=True, features=features, first_layer=prompts.first_layer)

    def build_anchors(self) -> Anchors:
        """The text embeddings of the frozen text tower."""
        context = self.context
        return FixedAnchors(context.clip, context.prompts_of, ensemble=context.ensemble)

    @property
    def n_prompt_tokens(self) -> int:
        """L of each prompted layer."""
        return self.options.visual_prompts.length

    def begin_task(self, task: Task) -> None:
        """Add the prompts and anchors of ``task``; those of earlier tasks are frozen."""
        self.visual_prompts.begin_task()
        super().begin_task(task)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings of the prompted image tower."""
        image_BCHW = given(image_BCHW)
        query_BV = given(features).pooled_BV if self.inputs.features else None
        prompt_DBLV = self.visual_prompts(query_BV, len(image_BCHW))
        first_layer = self.inputs.first_layer
        adapted = self.clip.encode_image(image_BCHW, prompt_DBLV, first_layer=first_layer)
        return Embedded(unit(adapted.joint_BE), pooled_BV=adapted.pooled_BV)

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
