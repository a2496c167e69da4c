"""MaPLe: deep textual prompts, and visual prompts that are a linear map of them.

In each of the first J blocks the text tower reads context tokens ``P_k`` and the image tower
``P̃_k = F_k(P_k)``. All tasks train one set.

Axes: B images of this rank · D prompted blocks · L tokens · V vision width · W text width.

Source: arXiv 2210.03117, equations 4 to 6 (text), 7 and 8 (image) and section 3.2.3 (coupling).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.classifiers import Embedded
from pipeline.methods.anchored import Anchored, AnchoredOptions
from pipeline.methods.base import given
from pipeline.model.anchors import Anchors, LearnedAnchors
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompt_groups import PromptGroup
from pipeline.model.prompts import TextualPromptOptions
from pipeline.rng import torch_stream


class MapleOptions(AnchoredOptions):
    """The textual tokens; the authors' code has two in each of 9 blocks.

    It keeps the words "of a" behind them; here the class name follows them.
    """

    textual_prompts: TextualPromptOptions = TextualPromptOptions(length=2, depth=9)


class Maple(Anchored):
    """Prompts of both towers, coupled."""

    Options = MapleOptions
    anchors: LearnedAnchors

    @classmethod
    def context_tokens(cls, options: MapleOptions) -> int:
        """The learned context before each class name."""
        return options.textual_prompts.length

    def build_adaptation(self) -> None:
        """One linear map for each block that both towers have within the depth."""
        clip, options = self.clip, self.options.textual_prompts
        depth = min(options.depth, clip.text_layers, clip.vision_layers)
        stream = torch_stream("maple couplings", self.context.seed)
        width = clip.embed_words("").shape[1]
        self.couplings = nn.ModuleList(nn.Linear(width, clip.vision_width) for _ in range(depth))
        for parameter in self.couplings.parameters():  # as nn.Linear, but with a seed of the run
            bound = width**-0.5
            nn.init.uniform_(parameter, -bound, bound, generator=stream)

    def build_anchors(self) -> Anchors:
        """Anchors read from the text tower behind the context."""
        depth = len(self.couplings)
        return self.learned_anchors(
            self.options.textual_prompts.model_copy(update={"depth": depth})
        )

    @property
    def n_prompt_tokens(self) -> int:
        """L of each prompted block."""
        return self.options.textual_prompts.length

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings of the image tower behind the mapped tokens."""
        image_BCHW = given(image_BCHW)
        prompt_DBLV = self._prompts()[:, None].expand(-1, image_BCHW.shape[0], -1, -1)
        adapted = self.clip.encode_image(image_BCHW, prompt_DBLV)
        return Embedded.of(adapted)

    def exported_prompts(self) -> list[PromptGroup]:
        """The mapped tokens."""
        return [PromptGroup(0, "tokens", "all", self._prompts().detach()[:, None])]

    def _prompts(self) -> Tensor:
        """``prompt_DLV``, the same for all images."""
        assert self.anchors.prompts is not None
        context_DLW = self.anchors.prompts.context(self.task.index)
        coupled = zip(self.couplings, context_DLW, strict=True)
        return torch.stack([coupling(context_LW) for coupling, context_LW in coupled])
