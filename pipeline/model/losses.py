"""The losses of TPPT as pure functions.

Axes: N images of the global batch · C classes, one anchor each · F of them that do not change in a
task · E joint width.
Embeddings and anchors have unit norm. Source: arXiv 2505.20680.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def image_to_text(embedding_NE: Tensor, anchor_CE: Tensor, label_N: Tensor, scale: float) -> Tensor:
    """Cross-entropy of each image over the anchors, averaged over images.

    ``label_N`` are positions in ``anchor_CE``; ``scale`` multiplies the cosines.
    """
    return F.cross_entropy(scale * embedding_NE @ anchor_CE.T, label_N)


def text_to_image(
    embedding_NE: Tensor,
    anchor_CE: Tensor,
    label_N: Tensor,
    scale: float,
    *,
    normalisation: str = "sum",
) -> Tensor:
    """Textual prototypical contrastive loss: each anchor against the images of the batch.

    ``-1/C Σ_c Σ_i 1[label_i = c] log softmax_i(scale · w_c·z_i)[i]``. An anchor without an image
    in the batch gives no loss and no gradient.

    ``normalisation`` is the weight of the images of an anchor: ``sum`` 1 as above (the authors'
    sister code), ``mean`` 1 / images of the anchor, ``batch`` 1/N (the paper's transcription).
    """
    log_share_CN = F.log_softmax(scale * anchor_CE @ embedding_NE.T, dim=1)
    member_CN = torch.arange(len(anchor_CE), device=label_N.device)[:, None] == label_N[None]
    weight_CN = member_CN.to(log_share_CN.dtype)
    if normalisation == "mean":
        weight_CN = weight_CN / weight_CN.sum(dim=1, keepdim=True).clamp(min=1)
    elif normalisation == "batch":
        weight_CN = weight_CN / len(label_N)
    return -(weight_CN * log_share_CN).sum() / len(anchor_CE)


def dispersion(anchor_CE: Tensor, temperature: float) -> Tensor:
    """Mean log of each anchor's mean similarity to the others; low for anchors that spread out.

    Source: the dispersion loss of CIDER, arXiv 2203.04450.
    """
    n_classes = len(anchor_CE)
    if n_classes < 2:
        return anchor_CE.sum() * 0.0
    cosine_CC = anchor_CE @ anchor_CE.T / temperature
    own_CC = torch.eye(n_classes, dtype=torch.bool, device=anchor_CE.device)
    others_C = cosine_CC.masked_fill(own_CC, float("-inf")).logsumexp(dim=1)
    return (others_C - math.log(n_classes - 1)).mean()


def relation_matching(anchor_CE: Tensor, reference_CE: Tensor) -> Tensor:
    """Mean squared difference of the cosines between anchors and those of ``reference_CE``."""
    n_classes = len(anchor_CE)
    if n_classes < 2:
        return anchor_CE.sum() * 0.0
    change_CC = anchor_CE @ anchor_CE.T - reference_CE @ reference_CE.T
    return change_CC.square().sum() / (n_classes * (n_classes - 1))


_BLOCK = 1024  # anchors that are compared with all others at once


class FixedRelations(NamedTuple):
    """The part of :func:`relation_matching` that is constant while ``anchor_FE`` do not change."""

    anchor_FE: Tensor
    reference_FE: Tensor
    reference_CE: Tensor  # of the anchors that change
    own: Tensor  # the sum over all pairs of the fixed anchors

    @classmethod
    @torch.no_grad()
    def of(cls, anchor_FE: Tensor, reference_FE: Tensor, reference_CE: Tensor) -> FixedRelations:
        """Compare the fixed anchors with each other, without F×F numbers in memory."""
        own = anchor_FE.new_zeros((), dtype=torch.float64)
        for a_BE, r_BE in zip(anchor_FE.split(_BLOCK), reference_FE.split(_BLOCK), strict=True):
            own += (a_BE @ anchor_FE.T - r_BE @ reference_FE.T).square().sum()
        return cls(anchor_FE, reference_FE, reference_CE, own.to(anchor_FE.dtype))

    def matching(self, anchor_CE: Tensor) -> Tensor:
        """``relation_matching`` of the fixed anchors and ``anchor_CE``, equal up to rounding."""
        across_CF = anchor_CE @ self.anchor_FE.T - self.reference_CE @ self.reference_FE.T
        own_CC = anchor_CE @ anchor_CE.T - self.reference_CE @ self.reference_CE.T
        n_classes = len(self.anchor_FE) + len(anchor_CE)
        total = self.own + 2 * across_CF.square().sum() + own_CC.square().sum()
        return total / (n_classes * (n_classes - 1))


def decorrelation(anchor_CE: Tensor) -> Tensor:
    """Mean squared cosine between different anchors, in [0, 1]."""
    n_classes = len(anchor_CE)
    if n_classes < 2:
        return anchor_CE.sum() * 0.0
    own_CC = torch.eye(n_classes, dtype=torch.bool, device=anchor_CE.device)
    cosine_CC = (anchor_CE @ anchor_CE.T).masked_fill(own_CC, 0.0)
    return cosine_CC.square().sum() / (n_classes * (n_classes - 1))
