"""The anchors of the classes beside those of the frozen CLIP, from which learning started.

Axes: C classes seen so far · R some of them · E joint width · P pairs of classes ·
N bins · X places in a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.model.anchors import Anchors, FixedAnchors, LearnedAnchors
from pipeline.output.anchor_cosines import N_BINS, N_CLOSEST, AnchorCosines, AnchorPair

_ROWS = 1024  # anchors that are compared with all others at once


class AnchorChange(NamedTuple):
    """How learning has changed the anchors."""

    frozen_cosine: float  # mean cosine between different anchors of the frozen CLIP
    cosine_to_frozen: float  # mean cosine of each anchor with that of the frozen CLIP
    cosines: AnchorCosines


def frozen_anchors(anchors: Anchors) -> Tensor:
    """``anchor_CE`` of every class so far, as the frozen CLIP would be tested."""
    fixed = anchors.fixed if isinstance(anchors, LearnedAnchors) else anchors
    return fixed.for_evaluation() if isinstance(fixed, FixedAnchors) else fixed.unprompted()


def compare_anchors(frozen_CE: Tensor, anchor_CE: Tensor) -> AnchorChange:
    """The anchors now beside those of the frozen CLIP, all of length 1.

    At most 1,024 rows of the matrix of all cosines are in memory at once.
    """
    n_classes, device = len(anchor_CE), anchor_CE.device
    column_C = torch.arange(n_classes, device=device)
    counts_2N = torch.zeros(2, N_BINS, dtype=torch.long, device=device)
    candidates: set[tuple[int, int]] = set()
    total = 0.0
    for row_R in column_C.split(_ROWS):
        is_pair_RC = column_C > row_R[:, None]  # each pair once
        for moment, of_CE in enumerate((frozen_CE, anchor_CE)):
            cosine_RC = of_CE[row_R] @ of_CE.T
            cosine_P = cosine_RC[is_pair_RC]
            counts_2N[moment] += _histogram(cosine_P)
            total += float(cosine_P.double().sum()) if moment == 0 else 0.0
            ranked_X = cosine_RC.masked_fill(~is_pair_RC, -torch.inf).flatten()
            for place in ranked_X.topk(min(N_CLOSEST, len(cosine_P))).indices.tolist():
                candidates.add((int(row_R[0]) + place // n_classes, place % n_classes))
    before, now = counts_2N.tolist()
    n_pairs = n_classes * (n_classes - 1) // 2
    return AnchorChange(
        total / max(1, n_pairs),
        float((frozen_CE * anchor_CE).sum(dim=1).mean()),
        AnchorCosines(before=before, now=now, closest=_closest(candidates, frozen_CE, anchor_CE)),
    )


def _histogram(cosine_P: Tensor) -> Tensor:
    """How many cosines are in each bin."""
    bin_P = ((cosine_P + 1) * (N_BINS / 2)).floor().long().clamp(0, N_BINS - 1)
    return torch.bincount(bin_P, minlength=N_BINS)


def _closest(
    candidates: Iterable[tuple[int, int]], frozen_CE: Tensor, anchor_CE: Tensor
) -> list[AnchorPair]:
    """The closest pairs now, then those of the closest pairs before that are not among them."""
    pairs = [
        AnchorPair(
            classes=(one, other),
            before=round(float(frozen_CE[one] @ frozen_CE[other]), 6),
            now=round(float(anchor_CE[one] @ anchor_CE[other]), 6),
        )
        for one, other in sorted(candidates)
    ]
    now = sorted(pairs, key=lambda pair: -pair.now)[:N_CLOSEST]
    before = sorted(pairs, key=lambda pair: -pair.before)[:N_CLOSEST]
    return list({pair.classes: pair for pair in (*now, *before)}.values())
