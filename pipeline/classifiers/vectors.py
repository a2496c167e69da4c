"""The vectors of an image that a closed-form classifier reads, and statistics of them.

Axes: B images · C classes of a task · E embedding width · F width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.classifiers.base import ClassifierContext, Embedded
from pipeline.classifiers.heads import Vector as Vector


def reads_features(vectors: Sequence[Vector]) -> bool:
    """Whether a vector comes from the frozen tower."""
    return any(vector.startswith("frozen") for vector in vectors)


def width_of(vectors: Sequence[Vector], context: ClassifierContext) -> int:
    """F, the width of the vectors side by side."""
    clip = context.clip
    widths = {
        "embedding": context.embedding_width,
        "pooled": clip.vision_width,
        "frozen_joint": clip.joint_width,
        "frozen_pooled": clip.vision_width,
        "frozen_penultimate": clip.vision_width,
    }
    return sum(widths[vector] for vector in vectors)


def vectors_of(embedded: Embedded, vectors: Sequence[Vector]) -> Tensor:
    """The vectors of each image side by side, ``vector_BF``, float64 so that sums are exact."""
    features = embedded.features
    known = {
        "embedding": embedded.embedding_BE,
        "pooled": embedded.pooled_BV,
        "frozen_joint": features and features.joint_BE,
        "frozen_pooled": features and features.pooled_BV,
        "frozen_penultimate": features and features.penultimate_BV,
    }
    columns = []
    for vector in vectors:
        column = known[vector]
        assert column is not None, f"embed has returned no {vector}"
        columns.append(column)
    return torch.cat(columns, dim=1).double()
