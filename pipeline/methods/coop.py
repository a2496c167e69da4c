"""CoOp: a learned context in front of the class names, on frozen image features.

``t_c = [V]_1 … [V]_M [class c]`` and ``p(y | x) = softmax(s · cos(g(t_y), f(x)))``. All tasks train
one context; the anchors of old classes are encoded anew with it.

Source: arXiv 2109.01134, equations 2 and 3 with the unified context, class token at the end.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.anchored import Anchored, AnchoredOptions
from pipeline.methods.base import Inputs, given
from pipeline.model.anchors import Anchors
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompt_groups import PromptGroup
from pipeline.model.prompts import TextualPromptOptions, unit


class CoOpOptions(AnchoredOptions):
    """The learned context; the paper starts it at random and uses 16 tokens."""

    textual_prompts: TextualPromptOptions = TextualPromptOptions(length=16, initial_words="")


class CoOp(Anchored):
    """Text prompts alone: each image is decoded and encoded once in a run."""

    Options = CoOpOptions

    @classmethod
    def context_tokens(cls, options: CoOpOptions) -> int:
        """The learned context before each class name."""
        return options.textual_prompts.length

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """Frozen features alone."""
        return Inputs(images=False, features=True)

    def build_anchors(self) -> Anchors:
        """Anchors read from the text tower behind the context."""
        return self.learned_anchors(self.options.textual_prompts)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings of the frozen image tower."""
        features = given(features)
        return Embedded(unit(features.joint_BE), pooled_BV=features.pooled_BV)

    def exported_prompts(self) -> list[PromptGroup]:
        """None: the frozen tower alone."""
        return []
