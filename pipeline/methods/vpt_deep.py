"""VPT-Deep: prompt tokens in every block of the image tower, the same for all images.

``[x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])``: each block reads its own prompts, which
replace those of the block before. All tasks train one set. Text anchors replace the paper's linear
head.

Source: arXiv 2203.12119, section 3.2, VPT-Deep.
"""

from __future__ import annotations

from pipeline.methods.finetune import Finetune, FinetuneOptions
from pipeline.model.prompts import VisualPromptOptions

SHARED = VisualPromptOptions(generator="shared", growth="tuned")


class VptDeepOptions(FinetuneOptions):
    """One set of tokens for all images and tasks."""

    visual_prompts: VisualPromptOptions = SHARED


class VptDeep(Finetune):
    """Shared deep visual prompts against fixed anchors."""

    Options = VptDeepOptions
