"""Methods that leave the image tower as it is: each image is decoded and encoded once in a run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.base import Inputs, Method, given
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompt_groups import PromptGroup


class Frozen(Method):
    """Embeds images with the frozen tower alone. A subclass adds anchors or a classifier."""

    takes_known_classes = True

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """The frozen features alone."""
        return Inputs(images=False, features=True)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings of the frozen image tower."""
        return Embedded.of(given(features))

    def exported_prompts(self) -> list[PromptGroup]:
        """No prompts."""
        return []
