"""CLIP as it is: nothing is learned; the floor every method must beat."""

from __future__ import annotations

from torch import Tensor

from pipeline.config import Section
from pipeline.methods.base import Method, MethodContext
from pipeline.model.anchors import FixedAnchors
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompts import unit


class ZeroShotOptions(Section):
    """Zero-shot classification has no options."""


class ZeroShot(Method):
    """Nearest anchor of the frozen towers."""

    Options = ZeroShotOptions

    def __init__(self, setting: MethodContext, options: ZeroShotOptions) -> None:
        super().__init__(setting, options)
        self.anchors = FixedAnchors(setting.clip, setting.describe, ensemble=setting.ensemble)

    @property
    def reads_frozen(self) -> bool:
        """The frozen features are all there is."""
        return True

    @property
    def reads_images(self) -> bool:
        """Nothing in the image tower changes, so no image is needed twice."""
        return False

    def embed(self, image_BCHW: Tensor | None, frozen: ImageFeatures | None) -> Tensor:
        """Unit embeddings ``embedding_BE`` of the frozen image tower."""
        return unit(frozen.joint_BE)
