"""Linear heads: the common form of classifiers, in which an export stores them.

Axes: C classes · F width of the vectors · M random features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

# The method's unit embedding; the pooled token that it comes from; and three vectors of the frozen
# tower, which never change: its joint feature, its pooled token, and that token as it enters the
# last block (a layer more as in LayUP, arXiv 2312.08888). All but the first are raw.
Vector = Literal["embedding", "pooled", "frozen_joint", "frozen_pooled", "frozen_penultimate"]


class LinearHead(NamedTuple):
    """Scores ``k · (s · φ(x) W + b)``, computed in the type of ``W``, then summed in float64.

    ``x`` has the vectors of each part of ``vectors`` side by side, scaled to length 1 together, and
    the parts side by side. ``φ(x)`` is ``x``, or ``relu(x P)`` with a projection.
    """

    vectors: tuple[tuple[Vector, ...], ...]
    weight_CF: Tensor  # or C×M
    projection_FM: Tensor | None = None
    bias_C: Tensor | None = None
    scale: float = 1.0  # s
    coefficient: float = 1.0  # k

    def weighted(self, weight: float) -> LinearHead:
        """The same head with ``weight`` times its scores."""
        return self._replace(coefficient=self.coefficient * weight)
