"""TPPT-VT: visual and textual prompts learned together, so that the anchors move.

Source: arXiv 2505.20680.
"""

from __future__ import annotations

from pipeline.methods.tppt_v import DiversityOptions, TpptV, TpptVOptions
from pipeline.model.anchors import Anchors, OldAnchors
from pipeline.model.prompts import TextualPromptOptions


class TpptVTOptions(TpptVOptions):
    """TPPT-VT: TPPT-V with anchors that move."""

    textual_prompts: TextualPromptOptions = TextualPromptOptions()
    anchor_residuals: bool = True
    old_anchors: OldAnchors = "reencoded"  # with today's context, or 'frozen' as learned
    diversity: DiversityOptions = DiversityOptions(form="relation_matching")


class TpptVT(TpptV):
    """Anchors that learn with the images and are kept from collapsing together."""

    Options = TpptVTOptions

    @classmethod
    def context_tokens(cls, options: TpptVTOptions) -> int:
        """The learned context before each class name."""
        return options.textual_prompts.length

    def build_anchors(self) -> Anchors:
        """Anchors read from the text tower behind a learned context."""
        options = self.options
        return self.learned_anchors(
            options.textual_prompts, residuals=options.anchor_residuals, old=options.old_anchors
        )
