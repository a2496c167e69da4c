"""Visual prompts in one form for all methods, in which an export stores them.

Axes: B images · D consecutive blocks · M components · L tokens of a component · V vision width.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.model.prompts import VisualPrompts, component_weights, unit

Place = Literal["tokens", "prefix"]
Choice = Literal["all", "weighted", "nearest"]


class PromptGroup(NamedTuple):
    """Prompts of consecutive blocks of the image tower, made of components.

    ``place``: ``tokens`` follow CLS and stay until others replace them; a ``prefix`` extends the
    keys of an attention by the first half of its L tokens and the values by the second half.

    ``choice``, with q the frozen pooled token of an image: ``all`` is the sum of the components;
    ``weighted`` is their sum with the weights ``cos(q ⊙ A_m, K_m)``; ``nearest`` are the
    ``n_nearest`` components with the greatest ``cos(q, K_m)``, one behind the other.
    """

    first_block: int
    place: Place
    choice: Choice
    prompt_DMLV: Tensor
    key_MV: Tensor | None = None
    attention_MV: Tensor | None = None  # A, of 'weighted'
    n_nearest: int = 1

    @property
    def needs_query(self) -> bool:
        """Whether the tokens depend on the image."""
        return self.choice != "all"

    def for_images(self, query_BV: Tensor | None, n_images: int) -> Tensor:
        """Tokens ``prompt_DBLV`` of images; ``query_BV`` are their frozen pooled tokens."""
        prompt_DMLV = self.prompt_DMLV
        if self.choice == "all":
            return prompt_DMLV.sum(dim=1, keepdim=True).expand(-1, n_images, -1, -1)
        assert query_BV is not None and self.key_MV is not None
        if self.choice == "nearest":
            cosine_BM = unit(query_BV) @ unit(self.key_MV).T
            chosen_BN = cosine_BM.topk(self.n_nearest, dim=1).indices
            return prompt_DMLV[:, chosen_BN].flatten(2, 3)
        assert self.attention_MV is not None
        weight_BM = component_weights(query_BV, self.attention_MV, self.key_MV)
        return torch.einsum("bm,dmlv->dblv", weight_BM, prompt_DMLV)


def group_of(prompts: VisualPrompts, *, first_layer: int) -> PromptGroup:
    """The group that gives the same tokens as ``prompts``, all chunks together."""
    chunks: list[Any] = list(prompts.chunks)  # a ModuleList hides the class of its members
    prompt_DMLV = torch.cat([chunk.prompt_DMLV for chunk in chunks], dim=1).detach()
    if not prompts.needs_query:
        prompt_D1LV = prompt_DMLV.sum(dim=1, keepdim=True)
        return PromptGroup(first_layer, "tokens", "all", prompt_D1LV)
    return PromptGroup(
        first_layer,
        "tokens",
        "weighted",
        prompt_DMLV,
        torch.cat([chunk.key_MV for chunk in chunks]).detach(),
        torch.cat([chunk.attention_MV for chunk in chunks]).detach(),
    )
