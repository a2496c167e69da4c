"""The options of each method before results recorded them all.

A run of that time (commit ``fead5fe``) recorded only the options that differed from these. So an
option that its record does not name had the value below, whatever the default is today. When the
default of an option below changes, nothing changes here. An option that is added later must have a
default with which runs of the time before continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import MethodConfig
from pipeline.errors import ConfigError
from pipeline.methods import resolve_options
from pipeline.settings_file import overlay

_CLASSIFIER = {"name": "text_anchors", "options": {}}
_VISUAL_PROMPTS = {
    "generator": "weighted",
    "growth": "chunk",
    "components": 10,
    "length": 8,
    "depth": None,
    "first_layer": 0,  # came later; until then all layers were prompted
}
_FINETUNE = {
    "classifier": _CLASSIFIER,
    "visual_prompts": _VISUAL_PROMPTS,
    "loss_classes": "current",
}
_DIVERSITY = {"form": "none", "weight": 10.0, "temperature": 0.1}
_TPPT_V = {
    **_FINETUNE,
    "text_to_image": {"weight": 0.3, "normalisation": "mean", "scale": None},
    "anchor_residuals": False,
    "diversity": _DIVERSITY,
}

FIRST_OPTIONS: dict[str, dict[str, Any]] = {
    "zeroshot": {"classifier": _CLASSIFIER},
    "finetune": _FINETUNE,
    "tppt_v": _TPPT_V,
    "tppt_vt": {
        **_TPPT_V,
        "anchor_residuals": True,
        "diversity": {**_DIVERSITY, "form": "relation_matching"},
        "textual_prompts": {
            "length": 4,
            "initial_words": "a photo of a",
            "depth": 1,
            "growth": "tuned",
        },
        "old_anchors": "reencoded",
    },
}


def recorded_options(method: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a recorded method; those that an old record lacks have their first default."""
    name = method["name"]
    recorded, first = method.get("options", {}).get(name, {}), dict(FIRST_OPTIONS.get(name, {}))
    if "diversity" in first and "diversity" in recorded:
        first["diversity"] = _DIVERSITY  # then, one given value replaced all those of the method
    options = overlay(first, recorded)
    return resolved_options(MethodConfig(name=name, options={name: options}))


def resolved_options(method: MethodConfig) -> dict[str, Any]:
    """All options of a method; those given alone if this version does not know one of them."""
    try:
        return resolve_options(method).options[method.name]
    except ConfigError:
        return method.options.get(method.name, {})
