"""The vectors of an image that a closed-form classifier reads, and statistics of them.

Axes: B images · C classes of a task · E embedding width · F width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.classifiers.base import ClassifierContext, Embedded

# The method's own embedding; the frozen tower's joint feature; its pooled token. The last two are
# not normalised and never change, whatever the method learns.
Vector = Literal["embedding", "joint", "pooled"]


def reads_features(vectors: Sequence[Vector]) -> bool:
    """Whether a vector comes from the frozen tower."""
    return any(vector != "embedding" for vector in vectors)


def width_of(vectors: Sequence[Vector], context: ClassifierContext) -> int:
    """F, the width of the vectors side by side."""
    clip = context.clip
    widths = {
        "embedding": context.embedding_width,
        "joint": clip.joint_width,
        "pooled": clip.vision_width,
    }
    return sum(widths[vector] for vector in vectors)


def vectors_of(embedded: Embedded, vectors: Sequence[Vector]) -> Tensor:
    """The vectors of each image side by side, ``vector_BF``, float64 so that sums are exact."""
    features = embedded.features
    columns = []
    for vector in vectors:
        if vector == "embedding":
            columns.append(embedded.embedding_BE)
        else:
            assert features is not None, "the method was not asked for frozen features"
            columns.append(features.joint_BE if vector == "joint" else features.pooled_BV)
    return torch.cat(columns, dim=1).double()


def class_sums(vector_BF: Tensor, position_B: Tensor, n_classes: int) -> Tensor:
    """The sum of the vectors of each class, ``sum_CF``."""
    one_hot_BC = F.one_hot(position_B, n_classes).to(vector_BF.dtype)
    return one_hot_BC.T @ vector_BF
