"""CoOp: a learned context in front of the class names, on frozen image features.

``t_c = [V]_1 … [V]_M [class c]`` and ``p(y | x) = softmax(s · cos(g(t_y), f(x)))``. All tasks train
one context; the anchors of old classes are encoded again with it.

Source: arXiv 2109.01134, equations 2 and 3 with the unified context, class token at the end.
"""

from __future__ import annotations

from pipeline.methods.anchored import Anchored, AnchoredOptions
from pipeline.methods.frozen import Frozen
from pipeline.model.anchors import Anchors
from pipeline.model.prompts import TextualPromptOptions


class CoOpOptions(AnchoredOptions):
    """The learned context; the paper starts it at random and uses 16 tokens."""

    textual_prompts: TextualPromptOptions = TextualPromptOptions(length=16, initial_words="")


class CoOp(Frozen, Anchored):
    """Text prompts alone."""

    Options = CoOpOptions

    @classmethod
    def context_tokens(cls, options: CoOpOptions) -> int:
        """The learned context before each class name."""
        return options.textual_prompts.length

    def build_anchors(self) -> Anchors:
        """Anchors read from the text tower behind the context."""
        return self.learned_anchors(self.options.textual_prompts)
