"""CLIP without any training: the floor that every method must exceed."""

from __future__ import annotations

from pipeline.methods.frozen import Frozen
from pipeline.model.anchors import Anchors, FixedAnchors


class ZeroShot(Frozen):
    """Nearest anchor of the frozen towers."""

    def build_anchors(self) -> Anchors:
        """The text embeddings of the frozen text tower."""
        context = self.context
        return FixedAnchors(context.clip, context.prompts_of, ensemble=context.ensemble)
