"""L2P: a pool of prompts; each image takes those with the nearest keys.

The query of an image is its pooled token in the frozen tower. The N keys with the highest cosine
choose the prompts, which enter in front of the first block (equations 2 and 3). The keys are pulled
to the queries that chose them: ``L = L_ce + λ Σ_{chosen} (1 - cos(q(x), k))`` (equation 5). All
tasks train one pool.

Each image chooses alone. Public codes let the whole batch vote, so that a prediction depends on the
other images of the test batch (google-research/l2p#28). Text anchors replace the paper's
linear head, and CLS the mean over prompt tokens.

Axes: B images of this rank · M prompts in the pool · N chosen ones · L tokens · V vision width.

Source: arXiv 2112.08654.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.classifiers import Embedded
from pipeline.methods.anchored import Anchored, AnchoredOptions
from pipeline.methods.base import Inputs, Losses, given
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompt_groups import PromptGroup
from pipeline.model.prompts import INITIAL_STD, unit
from pipeline.rng import torch_stream


class L2POptions(AnchoredOptions):
    """The pool; the defaults are those of the paper."""

    pool_size: int = Field(10, gt=0)  # M
    chosen: int = Field(5, gt=0)  # N, prompts of one image
    length: int = Field(5, gt=0)  # L, tokens of one prompt
    pull_weight: float = Field(0.5, ge=0)  # λ

    @model_validator(mode="after")
    def _pool_is_large_enough(self) -> L2POptions:
        if self.chosen > self.pool_size:
            raise ValueError(
                f"chosen is {self.chosen} and pool_size is {self.pool_size}: an image cannot "
                "choose more prompts than the pool has; lower chosen, or raise pool_size"
            )
        return self


class L2P(Anchored):
    """Prompts from a pool, chosen by each image."""

    Options = L2POptions

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """Images, and the frozen features that choose their prompts."""
        return Inputs(images=True, features=True)

    def build_adaptation(self) -> None:
        """The pool and its keys."""
        options, width = self.options, self.clip.vision_width
        stream = torch_stream("l2p pool", self.context.seed)
        prompt_MLV = torch.randn(options.pool_size, options.length, width, generator=stream)
        self.prompt_MLV = nn.Parameter(prompt_MLV * INITIAL_STD)
        self.key_MV = nn.Parameter(torch.randn(options.pool_size, width, generator=stream))

    @property
    def n_prompt_tokens(self) -> int:
        """N·L, in every block."""
        return self.options.chosen * self.options.length

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings behind the chosen prompts, and the distance to their keys."""
        cosine_BM = unit(given(features).pooled_BV) @ unit(self.key_MV).T
        cosine_BN, chosen_BN = cosine_BM.topk(self.options.chosen, dim=1)
        prompt_BLV = self.prompt_MLV[chosen_BN].flatten(1, 2)
        adapted = self.clip.encode_image(given(image_BCHW), prompt_BLV[None])
        distance_B = (1 - cosine_BN).sum(dim=1)
        return Embedded.of(adapted, {"key": distance_B})

    def exported_prompts(self) -> list[PromptGroup]:
        """The pool."""
        prompt_1MLV, key_MV = self.prompt_MLV.detach()[None], self.key_MV.detach()
        n_nearest = self.options.chosen
        return [PromptGroup(0, "tokens", "nearest", prompt_1MLV, key_MV, n_nearest=n_nearest)]

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        """``L_ce + λ · mean distance to the chosen keys``."""
        pull = self.options.pull_weight * embedded.terms["key"].mean()
        return super().losses(embedded, label_N).plus("key", pull)
