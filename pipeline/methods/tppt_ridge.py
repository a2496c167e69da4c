"""TPPT whose anchors share the classification with a ridge regression on frozen features.

The visual prompts are trained in the first task only, so no embedding ever changes afterwards; the
anchors are trained in every task. Scores are the sum of two, each divided by its spread: cosines
with the anchors, and RanPAC's regression (arXiv 2307.02251) on the last two pooled tokens of the
frozen tower (two layers as in LayUP, arXiv 2312.08888). The two err on different images.
"""

from __future__ import annotations

from typing import Any

from pipeline.classifiers import ClassifierConfig
from pipeline.methods.tppt_vt import TpptVT, TpptVTOptions
from pipeline.model.prompts import VisualPromptOptions

_RIDGE: dict[str, Any] = {"vectors": ["frozen_pooled", "frozen_penultimate"], "projection": 2000}


class TpptRidgeOptions(TpptVTOptions):
    """The options of ``tppt_vt`` with other defaults."""

    visual_prompts: VisualPromptOptions = VisualPromptOptions(growth="first_task")
    classifier: ClassifierConfig = ClassifierConfig(
        name="sum",
        options={
            "first": {"name": "text_anchors"},
            "second": {"name": "ridge", "options": _RIDGE},
            "weight": 0.5,
        },
    )


class TpptRidge(TpptVT):
    """Prompts from the first task, anchors from every task, ridge statistics that never age."""

    Options = TpptRidgeOptions
