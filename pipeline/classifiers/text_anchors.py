"""The classifier of CLIP: cosine with one text embedding per class.

Axes: B images · C classes · E joint width.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.classifiers.base import Classifier, ClassifierContext, Embedded
from pipeline.classifiers.heads import LinearHead
from pipeline.errors import ConfigError
from pipeline.model.anchors import Anchors
from pipeline.settings_file import Section
from pipeline.tasks import Task


class TextAnchorsOptions(Section):
    """Text anchors have no options."""


class TextAnchors(Classifier):
    """``logits = s · z · w_c``, with the anchors that the method holds and may train."""

    Options = TextAnchorsOptions
    takes_known_classes = True
    logits_are_cosines = True

    def __init__(self, context: ClassifierContext, options: TextAnchorsOptions) -> None:
        super().__init__(context, options)
        # In a list: the tensors belong to the method.
        self._anchors = [held_anchors(context, "text_anchors")]
        self._anchor_CE: Tensor | None = None

    @property
    def anchor_CE(self) -> Tensor | None:
        """The anchors of all classes seen, as predictions use them."""
        return self._anchor_CE

    def end_task(self, task: Task) -> None:
        """Fix the anchors that predictions use."""
        self._anchor_CE = self._anchors[0].for_evaluation()

    def logits(self, embedded: Embedded) -> Tensor:
        """Scaled cosines ``logits_BC``."""
        assert self._anchor_CE is not None, "no task has ended"
        return self.context.clip.logit_scale * embedded.embedding_BE @ self._anchor_CE.T

    def heads(self) -> list[LinearHead]:
        """One head: the anchors."""
        assert self._anchor_CE is not None, "no task has ended"
        scale = self.context.clip.logit_scale
        return [LinearHead((("embedding",),), self._anchor_CE, scale=scale)]


def held_anchors(context: ClassifierContext, classifier: str) -> Anchors:
    """The anchors of the method, for the classifier of this name.

    Raises:
        ConfigError: the method has none.
    """
    if context.anchors is None:
        raise ConfigError(
            f"classifier.name: {classifier!r} needs a method that has text anchors; choose "
            "another classifier"
        )
    return context.anchors
