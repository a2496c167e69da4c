"""The contract of a classifier: from embedded images to scores over all classes seen so far.

A classifier is chosen apart from the adaptation. It never reads pixels and never steps. Its state
lies in parameters and buffers:

- parameters that require a gradient are trained with the method, in the task that adds them;
- buffers may change in every task (sums, Gram matrices) and are stored with each task;
- everything else stays bit-equal once its task is learned.

Axes: B images · N images of the global batch · C classes seen so far · E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.classifiers.heads import LinearHead
from pipeline.errors import ConfigError
from pipeline.model.anchors import Anchors
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.model.prompts import unit
from pipeline.settings_file import Section
from pipeline.tasks import Task

Moment = Literal["start", "end"]  # of a task's training, before and after its optimizer steps


class Embedded(NamedTuple):
    """A batch of images as a method sees it."""

    embedding_BE: Tensor
    terms: Mapping[str, Tensor] = {}  # loss terms of each image, term_B, gathered over ranks
    pooled_BV: Tensor | None = None  # the pooled token that the embedding comes from, if any
    features: ImageFeatures | None = None  # of the frozen image tower, where they are asked for

    @classmethod
    def of(cls, features: ImageFeatures, terms: Mapping[str, Tensor] | None = None) -> Embedded:
        """Unit embeddings and pooled tokens of what the image tower has made of the batch."""
        return cls(unit(features.joint_BE), terms or {}, features.pooled_BV)

    def rows(self, rows: slice | Tensor) -> Embedded:
        """Some of the images, without loss terms."""
        return Embedded(
            self.embedding_BE[rows],
            pooled_BV=None if self.pooled_BV is None else self.pooled_BV[rows],
            features=self.features and self.features.rows(rows),
        )


# A task's training images in canonical order, with their class numbers; may be read repeatedly.
EmbeddedImages = Iterable[tuple[Embedded, Tensor]]


class ClassifierConfig(Section):
    """Which classifier; the options are checked by the classifier itself."""

    name: str = "text_anchors"  # of a classifier, or package.module:Class of your own
    options: dict[str, Any] = {}  # of that classifier


@dataclass(frozen=True)
class ClassifierContext:
    """The parts of a method that its classifier may know."""

    clip: FrozenClip
    anchors: Anchors | None  # text embeddings of the classes, if the method has any
    embedding_width: int  # E
    seed: int
    # Builds a classifier out of others; set by ``build_classifier``.
    build: Callable[[ClassifierConfig, ClassifierContext], Classifier] | None = None


class Classifier(nn.Module):
    """Scores over all classes seen so far. A subclass sets ``Options`` and overrides the rest."""

    Options: ClassVar[type[Section]] = Section
    # Whether a task may have further images of known classes, see ``task.known``.
    takes_known_classes: ClassVar[bool] = False
    # Whether ``logits`` are the cosines with ``anchor_CE`` times the scale of CLIP.
    logits_are_cosines: ClassVar[bool] = False
    # Factor of the scores in the softmax of ``probabilities``; 1 for scores that are logits.
    probability_scale: float = 1.0

    def __init__(self, context: ClassifierContext, options: Any) -> None:
        super().__init__()
        self.context = context
        self.options = options

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """The reason why these options cannot learn ``tasks``, with its remedy, or None."""
        return None

    @property
    def reads_features(self) -> bool:
        """Whether it reads ``Embedded.features``."""
        return False

    @property
    def fits(self) -> frozenset[Moment]:
        """The moments of a task at which :meth:`fit` reads all of its training images."""
        return frozenset()

    @property
    def anchor_CE(self) -> Tensor | None:
        """One unit vector per class in the space of the embeddings, for diagnostics, or None."""
        return None

    def begin_task(self, task: Task) -> None:
        """Make room for the classes of ``task``."""

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        """Read the task's training images; the same images in the same order on every rank."""

    def loss(self, embedded: Embedded, label_N: Tensor) -> Tensor | None:
        """A term of the training loss of the global batch; None if no gradient trains it."""
        return None

    def end_task(self, task: Task) -> None:
        """Prepare :meth:`logits` from the state; also called after a restore."""

    def logits(self, embedded: Embedded) -> Tensor:
        """Scores ``logits_BC``; each image's scores depend on that image alone."""
        raise NotImplementedError

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """``probability_BC``, float32: the softmax of the scores times ``probability_scale``.

        The order of the classes is that of the scores.
        """
        return (self.probability_scale * logits_BC.double()).softmax(dim=1).float()

    def heads(self) -> list[LinearHead]:
        """Linear heads whose sum is :meth:`logits`, after a task's end; an export stores them.

        Raises:
            ConfigError: the classifier has no such form, or its author has not given it.
        """
        raise ConfigError(
            f"the classifier {type(self).__name__} gives no linear heads, which the files of an "
            "export need; add its method heads(), or export the program alone with --torch-export"
        )


def split_off(
    images: EmbeddedImages,
) -> tuple[list[tuple[Embedded, Tensor]], list[tuple[Embedded, Tensor]]]:
    """The training images without every fifth one, and those; to choose a setting by.

    The choice depends on the canonical order alone, so it is the same on any number of ranks.
    """
    kept: list[tuple[Embedded, Tensor]] = []
    held: list[tuple[Embedded, Tensor]] = []
    seen = 0
    for embedded, label_B in images:
        rows = range(len(label_B))
        held_rows = [row for row in rows if (seen + row) % 5 == 4]
        kept_rows = [row for row in rows if (seen + row) % 5 != 4]
        seen += len(label_B)
        for chosen, part in ((kept_rows, kept), (held_rows, held)):
            rows_B = torch.tensor(chosen, dtype=torch.long, device=label_B.device)
            part.append((embedded.rows(rows_B), label_B[rows_B]))
    return kept, held
