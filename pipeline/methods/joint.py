"""Prompts trained on the images of all tasks so far: the upper bound without forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pipeline.classifiers import find_classifiers
from pipeline.methods.finetune import Finetune, FinetuneOptions
from pipeline.model.prompts import VisualPromptOptions
from pipeline.tasks import Task


class JointOptions(FinetuneOptions):
    """One set of prompts that is tuned on, against the anchors of all classes seen."""

    visual_prompts: VisualPromptOptions = VisualPromptOptions(growth="tuned")
    loss_classes: Literal["seen"] = "seen"


class Joint(Finetune):
    """``finetune`` that keeps every image; the steps of a task grow with the tasks before it."""

    Options = JointOptions
    training_images = "seen"

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """Refuse a classifier with statistics or rows of the images of one task."""
        other = [name for name, _ in find_classifiers(options.classifier) if name != "text_anchors"]
        if not other:
            return None
        return (
            f"method.options.joint.classifier: {other[0]!r} takes the images of one task, and "
            "'joint' shows those of all tasks so far; choose 'text_anchors'"
        )
