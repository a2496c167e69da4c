"""ACIL: recursive least squares on random features of the frozen image tower.

The paper keeps ``R = (Σ φᵀφ + γ I)⁻¹`` and updates it by the images of each task, so that the
weights equal those of one regression on the images of all tasks (theorem 1). ``ridge`` keeps
``Σ φᵀφ`` in place of its inverse. That gives the same weights, and sums in float64 lose no figures
from task to task. The paper trains its backbone in the first task; here CLIP stays frozen.

Source: arXiv 2205.14922.
"""

from __future__ import annotations

from typing import Literal

from pipeline.classifiers import ClassifierConfig
from pipeline.methods.ranpac import RanPac, RanPacOptions

# γ for 2,000 features of unit vectors: about what held-out training images choose in `ranpac`.
_RIDGE = {"projection": 2000, "strength": 300.0}


class AcilOptions(RanPacOptions):
    """The random features, and the fixed γ of the paper (``strength``)."""

    first_session: Literal[False] = False
    classifier: ClassifierConfig = ClassifierConfig(name="ridge", options=_RIDGE)


class Acil(RanPac):
    """``ranpac`` on frozen features with a penalty that is given, not chosen."""

    Options = AcilOptions
