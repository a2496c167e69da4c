"""RanPAC: ridge regression on random features, with or without adaptation in the first task.

Source: arXiv 2307.02251: features φ(x) = relu(x P), their Gram matrix G and class sums Q
accumulated over tasks, weights (G + λ I)⁻¹ Q. The paper adapts the backbone in the first task with
a head that it then drops; here visual prompts are trained against the text anchors. The authors'
code takes raw vectors and chooses λ in each task; here vectors have length 1, and the first task
chooses λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pipeline.classifiers import ClassifierConfig, Embedded
from pipeline.methods.base import Inputs, Method, given
from pipeline.methods.finetune import Finetune, FinetuneOptions
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompt_groups import PromptGroup
from pipeline.model.prompts import VisualPromptOptions
from pipeline.tasks import Task


class RanPacOptions(FinetuneOptions):
    """The random projection, and whether the first task adapts the backbone."""

    first_session: bool = True  # train prompts in the first task; else the frozen features alone
    visual_prompts: VisualPromptOptions = VisualPromptOptions(growth="first_task")
    classifier: ClassifierConfig = ClassifierConfig(name="ridge", options={"projection": 2000})


class RanPac(Finetune):
    """A closed-form classifier over features that never change after the first task."""

    Options = RanPacOptions

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """As for ``finetune``, if the first task trains prompts."""
        return super().check(options, tasks) if options.first_session else None

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """Images for prompts; otherwise the frozen features alone."""
        frozen = Inputs(images=False, features=True)
        return super().inputs_of(options) if options.first_session else frozen

    def build_adaptation(self) -> None:
        """Visual prompts, if the first task trains any."""
        if self.options.first_session:
            super().build_adaptation()

    def begin_task(self, task: Task) -> None:
        """Add the prompts of the first task."""
        if self.options.first_session:
            super().begin_task(task)
        else:
            Method.begin_task(self, task)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings of the adapted or the frozen image tower."""
        if self.options.first_session:
            return super().embed(image_BCHW, features)
        return Embedded.of(given(features))

    def exported_prompts(self) -> list[PromptGroup]:
        """The prompts of the first task, if it trains any."""
        return super().exported_prompts() if self.options.first_session else []
