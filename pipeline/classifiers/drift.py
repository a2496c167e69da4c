"""The change of vectors from before a task's training to after it, as a linear map.

Training changes the embeddings, so the statistics of earlier tasks become stale. The images of the
current task are embedded before and after its training. A linear map is fitted between the two; it
moves the statistics of earlier tasks, whose images are not needed.

Axes: S images of a task · F width of the vectors.

Source: a linear map in place of the mean shift of semantic drift compensation (arXiv 2004.00440),
as learnable drift compensation (arXiv 2407.08536) trains one; here in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PENALTY = 1e-3  # λ, as a share of the mean diagonal of the Gram matrix


def fit_drift(before_SF: Tensor, after_SF: Tensor) -> Tensor:
    """``map_FF``, so that ``before_SF @ map_FF`` is near ``after_SF``; float64.

    Ridge regression of the change: with few images it stays near the identity.
    """
    gram_FF = before_SF.T @ before_SF
    identity_FF = torch.eye(len(gram_FF), dtype=gram_FF.dtype, device=gram_FF.device)
    penalty = _PENALTY * gram_FF.diagonal().mean().clamp_min(1e-12)
    change_FF = before_SF.T @ (after_SF - before_SF)
    return identity_FF + torch.linalg.solve(gram_FF + penalty * identity_FF, change_FF)
