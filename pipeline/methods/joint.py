"""Prompts trained on the images of all tasks so far: the upper bound without forgetting."""

from __future__ import annotations

from typing import Literal

from pipeline.methods.finetune import Finetune, FinetuneOptions
from pipeline.model.prompts import VisualPromptOptions


class JointOptions(FinetuneOptions):
    """One set of prompts that is tuned on, against the anchors of all classes seen."""

    visual_prompts: VisualPromptOptions = VisualPromptOptions(growth="tuned")
    loss_classes: Literal["current", "seen"] = "seen"


class Joint(Finetune):
    """``finetune`` that keeps every image; the steps of a task grow with the tasks before it."""

    Options = JointOptions
    training_images = "seen"
