"""Visual prompts by image→text cross-entropy alone: TPPT without the terms of its anchors.

Axes: B images of this rank · D prompted layers · L tokens · V vision width · E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.anchored import Anchored, AnchoredOptions
from pipeline.methods.base import Inputs, given
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompt_groups import PromptGroup, group_of
from pipeline.model.prompts import VisualPromptOptions, VisualPrompts
from pipeline.tasks import Task


class FinetuneOptions(AnchoredOptions):
    """Where prompts stand and which classes compete in the loss."""

    visual_prompts: VisualPromptOptions = VisualPromptOptions()


class Finetune(Anchored):
    """Prompt tuning of the image tower against fixed anchors."""

    Options = FinetuneOptions

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """As for every method with anchors, of the tasks that train anything."""
        if options.visual_prompts.growth != "first_task" or cls.context_tokens(options):
            return super().check(options, tasks)
        if len(tasks[0].classes) > 1:
            return None
        return (
            "tasks: the first task has one class and alone trains prompts (visual_prompts.growth "
            "is 'first_task'), so their loss is always 0; raise tasks.initial_classes, or choose "
            "another growth"
        )

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
    def inputs_of(cls, options: FinetuneOptions) -> Inputs:
        """Images, and for instance-specific prompts the features that mix them."""
        prompts = options.visual_prompts
        features = prompts.generator == "weighted"
        return Inputs(images=True, features=features, first_layer=prompts.first_layer)

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
        prompt_DBLV = self.visual_prompts(query_BV, image_BCHW.shape[0])
        first_layer = self.inputs.first_layer
        adapted = self.clip.encode_image(image_BCHW, prompt_DBLV, first_layer=first_layer)
        return Embedded.of(adapted)

    def exported_prompts(self) -> list[PromptGroup]:
        """The prompts of all tasks."""
        return [group_of(self.visual_prompts, first_layer=self.inputs.first_layer)]
