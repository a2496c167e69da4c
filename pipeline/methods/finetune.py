"""Visual prompts by image→text cross-entropy alone: what is left of TPPT without its anchors' pull.

Axes: B images of this rank · N images of the global batch · C classes · E joint width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.methods.base import Losses, Method, MethodContext
from pipeline.model.anchors import FixedAnchors
from pipeline.model.backbone import ImageFeatures
from pipeline.model.losses import image_to_text
from pipeline.model.prompts import VisualPromptOptions, VisualPrompts, unit
from pipeline.settings_file import Section
from pipeline.tasks import Task


class FinetuneOptions(Section):
    """What is prompted and which classes compete in the loss."""

    visual_prompts: VisualPromptOptions = VisualPromptOptions()
    loss_classes: Literal["current", "seen"] = "current"  # anchors in the softmax of training


class Finetune(Method):
    """Prompt tuning of the image tower against fixed anchors."""

    Options = FinetuneOptions

    def __init__(self, setting: MethodContext, options: FinetuneOptions) -> None:
        super().__init__(setting, options)
        self.visual_prompts = VisualPrompts(
            options.visual_prompts,
            width=setting.clip.vision_width,
            layers=setting.clip.vision_layers,
            seed=setting.seed,
        )
        self.anchors = FixedAnchors(setting.clip, setting.describe, ensemble=setting.ensemble)

    @property
    def reads_frozen(self) -> bool:
        """Instance-specific prompts are mixed by the frozen features."""
        return self.visual_prompts.needs_query

    def begin_task(self, task: Task) -> None:
        """Open the prompts and anchors of ``task``; those of earlier tasks are frozen."""
        super().begin_task(task)
        self.visual_prompts.begin_task()
        self.to(self.clip.device)

    def embed(self, image_BCHW: Tensor | None, frozen: ImageFeatures | None) -> Tensor:
        """Unit embeddings ``embedding_BE`` of the prompted image tower."""
        query_BV = frozen.pooled_BV if self.reads_frozen else None
        prompt_DBLV = self.visual_prompts(query_BV, len(image_BCHW))
        return unit(self.clip.encode_image(image_BCHW, prompt_DBLV).joint_BE)

    def losses(self, embedding_NE: Tensor, label_N: Tensor) -> Losses:
        """Image→text cross-entropy."""
        anchor_CE, position_N = self.competing(self.anchors.current(), label_N)
        loss = image_to_text(embedding_NE, anchor_CE, position_N, self.clip.logit_scale)
        return Losses(loss, {"image_to_text": loss})

    def competing(self, current_CE: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """The anchors ``anchor_CE`` that compete in the loss, and the labels' positions there."""
        if self.options.loss_classes == "seen":
            return torch.cat([self.anchors.old(), current_CE]), label_N
        return current_CE, label_N - self.task.first
