"""The options of each method before results recorded them all.

A run of that time (commit ``fead5fe``) recorded only the options that differed from these. So an
option that its record does not name had the value below, whatever the default is today. When the
default of an option below changes, nothing changes here. An option that is added later must have a
default with which runs of the time before continue.
"""

from __future__ import annotations

from typing import Any

_CLASSIFIER = {"name": "text_anchors", "options": {}}
_VISUAL_PROMPTS = {
    "generator": "weighted",
    "growth": "chunk",
    "components": 10,
    "length": 8,
    "depth": None,
}
_FINETUNE = {
    "classifier": _CLASSIFIER,
    "visual_prompts": _VISUAL_PROMPTS,
    "loss_classes": "current",
}
_TPPT_V = {
    **_FINETUNE,
    "text_to_image": {"weight": 0.3, "normalisation": "mean", "scale": None},
    "anchor_residuals": False,
    "diversity": {"form": "none", "weight": 10.0, "temperature": 0.1},
}

FIRST_OPTIONS: dict[str, dict[str, Any]] = {
    "zeroshot": {"classifier": _CLASSIFIER},
    "finetune": _FINETUNE,
    "tppt_v": _TPPT_V,
    "tppt_vt": {
        **_TPPT_V,
        "anchor_residuals": True,
        "diversity": {"form": "relation_matching", "weight": 10.0, "temperature": 0.1},
        "textual_prompts": {
            "length": 4,
            "initial_words": "a photo of a",
            "depth": 1,
            "growth": "tuned",
        },
        "old_anchors": "reencoded",
    },
}
