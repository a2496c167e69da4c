"""Linear heads: the common form of classifiers, in which an export stores them.

Axes: C classes · F width of the vectors · M random features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Lengths = Literal["kept", "each_one", "all_one"]


class LinearHead(NamedTuple):
    """Scores ``k · (s · φ(x) W + b)``, computed in the type of ``W``, then summed in float64.

    ``x`` are ``vectors`` side by side, see :data:`pipeline.classifiers.vectors.Vector`, with their
    lengths kept, or each vector or all of them together scaled to length 1. ``φ(x)`` is ``x``, or
    ``relu(x P)`` with a projection.
    """

    vectors: tuple[str, ...]
    weight_CF: Tensor  # or C×M
    lengths: Lengths = "kept"
    projection_FM: Tensor | None = None
    bias_C: Tensor | None = None
    scale: float = 1.0  # s
    coefficient: float = 1.0  # k

    def weighted(self, weight: float) -> LinearHead:
        """The same head with ``weight`` times its scores."""
        return self._replace(coefficient=self.coefficient * weight)
