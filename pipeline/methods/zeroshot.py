"""CLIP without any training: the floor that every method must exceed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.base import Inputs, Method, given
from pipeline.model.anchors import Anchors, FixedAnchors
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompt_groups import PromptGroup
from pipeline.model.prompts import unit


class ZeroShot(Method):
    """Nearest anchor of the frozen towers."""

    takes_known_classes = True

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """The frozen features alone: no image is decoded twice."""
        return Inputs(images=False, features=True)

    def build_anchors(self) -> Anchors | None:
        """The text embeddings of the frozen text tower."""
        context = self.context
        return FixedAnchors(context.clip, context.prompts_of, ensemble=context.ensemble)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings of the frozen image tower."""
        features = given(features)
        return Embedded(unit(features.joint_BE), pooled_BV=features.pooled_BV)

    def exported_prompts(self) -> list[PromptGroup]:
        """None: the frozen tower alone."""
        return []
