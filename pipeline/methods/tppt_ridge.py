"""TPPT that shares the classification with a ridge regression on frozen features.

The visual prompts learn in the first task, guided by the anchors as in TPPT-V, so no embedding
changes afterwards. The anchors of every task are fitted to its embeddings at its end. Scores are
the sum of two, each divided by its spread: cosines with the anchors, and RanPAC's regression
(arXiv 2307.02251) on the last two pooled tokens of the frozen tower (layers side by side as in
LayUP, arXiv 2312.08888). The two make different mistakes.
"""

from __future__ import annotations

from typing import Any

from pipeline.classifiers import ClassifierConfig
from pipeline.methods.tppt_v import TpptV, TpptVOptions
from pipeline.model.prompts import VisualPromptOptions

_RIDGE: dict[str, Any] = {"vectors": ["frozen_pooled", "frozen_penultimate"], "projection": 2000}
_SUM: dict[str, Any] = {
    "first": {"name": "fitted_anchors"},
    "second": {"name": "ridge", "options": _RIDGE},
    "weight": 0.6,
}


class TpptRidgeOptions(TpptVOptions):
    """The options of ``tppt_v`` with other defaults."""

    visual_prompts: VisualPromptOptions = VisualPromptOptions(growth="first_task")
    classifier: ClassifierConfig = ClassifierConfig(name="sum", options=_SUM)


class TpptRidge(TpptV):
    """Prompts from the first task, anchors of every task, ridge regression on frozen features."""

    Options = TpptRidgeOptions
