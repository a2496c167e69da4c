"""IVLP: deep prompts in both towers, learned independently of each other.

The baseline "independent V-L prompting" of MaPLe: the tokens of VPT-Deep in the image tower, and
context tokens in the first blocks of the text tower. All tasks train one set.

Source: arXiv 2210.03117, section 3.2 and table 1.
"""

from __future__ import annotations

from pipeline.methods.finetune import Finetune, FinetuneOptions
from pipeline.methods.vpt_deep import SHARED
from pipeline.model.anchors import Anchors
from pipeline.model.prompts import TextualPromptOptions, VisualPromptOptions


class IvlpOptions(FinetuneOptions):
    """The tokens of both towers; the authors' code has two in each of 12 blocks.

    It keeps the words "of a" behind the two of the text tower; here the class name follows them.
    """

    visual_prompts: VisualPromptOptions = SHARED.model_copy(update={"length": 2})
    textual_prompts: TextualPromptOptions = TextualPromptOptions(length=2, depth=12)


class Ivlp(Finetune):
    """Visual and textual prompts without a link between them."""

    Options = IvlpOptions

    @classmethod
    def context_tokens(cls, options: IvlpOptions) -> int:
        """The learned context before each class name."""
        return options.textual_prompts.length

    def build_anchors(self) -> Anchors:
        """Anchors read from the text tower behind the context."""
        return self.learned_anchors(self.options.textual_prompts)
