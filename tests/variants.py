"""The methods with the options that change their computation; tests run over all variants."""

from __future__ import annotations

from typing import Any

from pipeline.config import MethodConfig
from pipeline.methods import METHODS, build_method
from pipeline.methods.base import Method
from tests.tiny import build_context

_SMALL = {"components": 3, "length": 5}

# A new method in METHODS is tested with its defaults without a line here.
VARIANTS: dict[str, MethodConfig] = {name: MethodConfig(name=name) for name in METHODS}
# 2,000 random features would take most of the time of the tests.
_FEW_FEATURES = {"classifier": {"name": "ridge", "options": {"projection": 31}}}
for _name in ("ranpac", "acil"):
    VARIANTS[_name] = MethodConfig(name=_name, options={_name: _FEW_FEATURES})
_FEW_IN_SUM = {"first": {"name": "text_anchors"}, "second": _FEW_FEATURES["classifier"]}
VARIANTS["tppt_ridge"] = MethodConfig(
    name="tppt_ridge",
    options={"tppt_ridge": {"classifier": {"name": "sum", "options": _FEW_IN_SUM}}},
)


def _add(label: str, name: str, **options: Any) -> None:
    VARIANTS[label] = MethodConfig(name=name, options={name: options})


# The tower of the tests has three blocks.
_add("l2p", "l2p", pool_size=4, chosen=2, length=2)
_add("dualprompt", "dualprompt", general_blocks=1, expert_blocks=2, expert_length=4)
_add("coda_prompt", "coda_prompt", blocks=2, components=3, length=4, orthogonality_weight=0.3)
_add("coop", "coop", textual_prompts={"length": 5, "initial_words": ""})
_add("shared and tuned", "finetune", visual_prompts={"generator": "shared", "growth": "tuned"})
_add(
    "all seen classes",
    "finetune",
    visual_prompts=_SMALL | {"depth": 1, "first_layer": 1},
    loss_classes="seen",
)
_add(
    "moving residuals",
    "tppt_v",
    visual_prompts=_SMALL | {"growth": "tuned"},
    anchor_residuals=True,
    loss_classes="seen",
    text_to_image={"normalisation": "sum", "weight": 0.7, "scale": 5.0},
    diversity={"form": "dispersion", "weight": 0.1},
)
_add(
    "contexts per task",
    "tppt_vt",
    visual_prompts={"generator": "shared"},
    textual_prompts={"length": 2, "depth": 2, "growth": "per_task"},
    text_to_image={"normalisation": "batch"},
    diversity={"form": "decorrelation", "weight": 1.0},
)
_add(
    "anchors kept as learned",
    "tppt_vt",
    visual_prompts=_SMALL,
    old_anchors="frozen",
    anchor_residuals=True,
    loss_classes="seen",
    diversity={"form": "relation_matching", "weight": 3.0},
)

_add("class means", "zeroshot", classifier={"name": "class_means"})
_add("ridge", "zeroshot", classifier={"name": "tests.probes:Ridge"})
_add(
    "ridge on tuned prompts",
    "tppt_vt",
    visual_prompts=_SMALL,
    classifier={"name": "tests.probes:Ridge"},
)
for _name in ("class_means", "ridge"):
    _add(
        f"{_name} that follow drift",
        "finetune",
        visual_prompts=_SMALL | {"growth": "tuned"},
        classifier={"name": _name, "options": {"drift_map": True}},
    )
_add("linear layer", "zeroshot", classifier={"name": "linear"})
_add(
    "linear layer over all seen",
    "tppt_v",
    visual_prompts=_SMALL | {"growth": "first_task"},
    classifier={"name": "linear", "options": {"loss_classes": "seen"}},
)
_add(
    "ranpac without prompts",
    "ranpac",
    first_session=False,
    classifier={
        "name": "ridge",
        "options": {"vectors": ["frozen_joint", "pooled"], "projection": 31},
    },
)
_add(
    "sum of two",
    "tppt_vt",
    visual_prompts=_SMALL | {"growth": "first_task"},
    classifier={"name": "sum"},
)
_add("keys of a pool", "tests.probes:KeyPool")

LEARNING = [
    label
    for label, method in VARIANTS.items()
    if method.name not in ("zeroshot", "simplecil", "linear_probe", "acil")
    and label != "ranpac without prompts"
    or label == "linear layer"
]
# The others among them train nothing after the first task.
EVERY_TASK = [label for label in LEARNING if label not in ("ranpac", "tppt_ridge")]


def build_variant(label: str, clip, *, seed: int = 1, ensemble: bool = False) -> Method:
    """The method of a variant, before its first task."""
    return build_method(VARIANTS[label], build_context(clip, seed=seed, ensemble=ensemble))
