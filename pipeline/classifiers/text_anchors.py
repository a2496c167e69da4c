"""The classifier of CLIP: cosine with one text embedding per class.

Axes: B images · C classes · E joint width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pipeline.classifiers.base import Classifier, ClassifierContext, Embedded
from pipeline.classifiers.heads import LinearHead
from pipeline.errors import ConfigError
from pipeline.settings_file import Section
from pipeline.tasks import Task


class TextAnchorsOptions(Section):
    """Text anchors have no options."""


class TextAnchors(Classifier):
    """``logits = s · z · w_c``, with the anchors that the method holds and may train."""

    Options: ClassVar[type[Section]] = TextAnchorsOptions
    name: ClassVar[str] = "text_anchors"
    takes_known_classes = True
    logits_are_cosines = True

    def __init__(self, context: ClassifierContext, options: Any) -> None:
        super().__init__(context, options)
        if context.anchors is None:
            raise ConfigError(
                f"classifier.name: {self.name!r} needs a method that has text anchors; choose "
                "another classifier"
            )
        self._anchors = [context.anchors]  # in a list: the tensors belong to the method
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
