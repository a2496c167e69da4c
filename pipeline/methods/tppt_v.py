"""TPPT-V: visual prompts under two-way supervision by textual anchors.

Axes: N images of the global batch · C classes · E joint width. Source: arXiv 2505.20680.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.base import Losses
from pipeline.methods.finetune import Finetune, FinetuneOptions
from pipeline.model.anchors import Anchors
from pipeline.model.losses import (
    FixedRelations,
    decorrelation,
    dispersion,
    image_to_text,
    relation_matching,
    text_to_image,
)
from pipeline.settings_file import Section
from pipeline.tasks import Task

_FEW_ANCHORS = 256  # up to which all pairs cost nothing; the bits of earlier runs remain


class TextToImageOptions(Section):
    """The textual prototypical contrastive loss."""

    weight: float = Field(0.3, ge=0)  # λ_t, against an image→text weight of 1
    normalisation: Literal["sum", "mean", "batch"] = "mean"  # over one anchor's images
    scale: float | None = Field(None, gt=0)  # of the cosines; None = CLIP's own


class DiversityOptions(Section):
    """The regulariser that keeps moving anchors apart."""

    # The term of the loss; its equations are in pipeline/model/losses.py.
    form: Literal["none", "dispersion", "relation_matching", "decorrelation"] = "none"
    weight: float = Field(10.0, ge=0)  # λ_d
    temperature: float = Field(0.1, gt=0)  # τ_d of 'dispersion' only


class TpptVOptions(FinetuneOptions):
    """TPPT-V: where prompts stand, and how the anchors guide them."""

    text_to_image: TextToImageOptions = TextToImageOptions()
    anchor_residuals: bool = False  # a learned offset per class, frozen after its task
    diversity: DiversityOptions = DiversityOptions()


class TpptV(Finetune):
    """Visual prompts learned from both sides: images pick anchors and anchors pick images."""

    Options = TpptVOptions
    _fixed: FixedRelations | None = None  # of the present task

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """As for ``finetune``, if no other term gives a gradient."""
        has_other_terms = options.text_to_image.weight or options.diversity.form != "none"
        return None if has_other_terms else super().check(options, tasks)

    def build_anchors(self) -> Anchors:
        """The frozen text embeddings, with residuals on top if they are chosen."""
        if not self.options.anchor_residuals:
            return self.fixed_anchors()
        return self.learned_anchors(None, residuals=True)

    def begin_task(self, task: Task) -> None:
        """As for ``finetune``; the anchors of earlier tasks may have moved."""
        self._fixed = None
        super().begin_task(task)

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        """``L_i2t + λ_t L_t2i [+ λ_d L_div]``."""
        embedding_NE = embedded.embedding_BE  # of the global batch
        current_CE = self.anchors.current()  # once: moving anchors run through the text tower
        anchor_CE, position_N = self.competing(current_CE, label_N)
        scale, backwards = self.clip.logit_scale, self.options.text_to_image
        terms = {"image_to_text": image_to_text(embedding_NE, anchor_CE, position_N, scale)}
        if backwards.weight:
            terms["text_to_image"] = backwards.weight * text_to_image(
                embedding_NE,
                anchor_CE,
                position_N,
                backwards.scale or scale,
                normalisation=backwards.normalisation,
            )
        if self.options.diversity.form != "none":
            terms["diversity"] = self.options.diversity.weight * self._diversity(current_CE)
        return Losses.of(terms)

    def _diversity(self, current_CE: Tensor) -> Tensor:
        """The chosen regulariser over the anchors of all classes seen so far."""
        options, anchor_CE = self.options.diversity, self.seen_anchors(current_CE)
        if options.form == "dispersion":
            return dispersion(anchor_CE, options.temperature)
        if options.form == "decorrelation":
            return decorrelation(anchor_CE)
        old_CE = self.anchors.old()
        if len(old_CE) <= _FEW_ANCHORS or old_CE.requires_grad:
            return relation_matching(anchor_CE, self.anchors.unprompted())
        if self._fixed is None:
            self._fixed = self._fixed_relations(old_CE)
        return self._fixed.matching(current_CE)

    def _fixed_relations(self, old_CE: Tensor) -> FixedRelations:
        """The relations of the anchors of classes that the task has no images of."""
        reference_CE = self.anchors.unprompted()
        is_fixed = torch.ones(len(old_CE), dtype=torch.bool)
        is_fixed[list(self.task.known)] = False
        fixed = is_fixed.nonzero()[:, 0].to(old_CE.device)
        current = list(self.task.classes)
        return FixedRelations.of(old_CE[fixed], reference_CE[fixed], reference_CE[current])
