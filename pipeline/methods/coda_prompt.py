"""CODA-Prompt: prefixes that are a weighted sum of components.

``p = Σ_m α_m P_m`` with ``α_m = cos(q(x) ⊙ A_m, K_m)`` (equations 3 to 5) in each of the first
blocks; half of p extends the keys of an attention and half its values. A task adds components and
freezes the earlier ones (section 4.2). ``L = L_ce + λ (‖PPᵀ-I‖² + ‖KKᵀ-I‖² + ‖AAᵀ-I‖²)``
(equations 6 and 7). Text anchors replace the paper's linear head.

``tppt_v`` uses the same weights for prompt tokens in place of prefixes.

Axes: B images of this rank · D prefixed blocks · M components · L tokens · V vision width.

Source: arXiv 2211.13218.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pipeline.classifiers import Embedded
from pipeline.errors import ConfigError
from pipeline.methods.anchored import Anchored, AnchoredOptions
from pipeline.methods.base import Inputs, Losses, given
from pipeline.model.backbone import ImageFeatures
from pipeline.model.blocks import Prefix
from pipeline.model.prompt_groups import PromptGroup
from pipeline.model.prompts import component_weights, unit
from pipeline.rng import torch_stream
from pipeline.tasks import Task


class CodaPromptOptions(AnchoredOptions):
    """Sizes of the components; the defaults are those of the paper for ten tasks."""

    components: int = Field(10, gt=0)  # M that each task adds: 100 over ten tasks
    length: int = Field(8, ge=2)  # L, half of them keys and half of them values
    blocks: int = Field(5, gt=0)  # D, the first blocks of the image tower
    # λ. The paper names 0.1; the authors' scripts for all their tables set 0.
    orthogonality_weight: float = Field(0.0, ge=0)

    @field_validator("length")
    @classmethod
    def _has_two_halves(cls, length: int) -> int:
        if length % 2:
            raise ValueError(f"length: {length} tokens have no two halves; choose an even number")
        return length


class Components(nn.Module):
    """The components of one task in every prefixed block."""

    def __init__(self, prompt_DMLV: Tensor, key_DMV: Tensor, attention_DMV: Tensor) -> None:
        super().__init__()
        self.prompt_DMLV = nn.Parameter(prompt_DMLV)
        self.key_DMV = nn.Parameter(key_DMV)
        self.attention_DMV = nn.Parameter(attention_DMV)


class CodaPrompt(Anchored):
    """Prefixes from components that grow with the tasks."""

    Options = CodaPromptOptions

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """Images, and the frozen features that weight the components."""
        return Inputs(images=True, features=True)

    def build_adaptation(self) -> None:
        """No component before the first task."""
        if self.options.blocks > self.clip.vision_layers:
            raise ConfigError(
                f"blocks is {self.options.blocks} and the image tower has "
                f"{self.clip.vision_layers}; choose at most that"
            )
        self.chunks = nn.ModuleList()

    @property
    def n_prompt_tokens(self) -> int:
        """The keys, or values, of each prefixed block."""
        return self.options.length // 2

    def begin_task(self, task: Task) -> None:
        """Freeze the components of earlier tasks and add those of ``task``."""
        self.chunks.requires_grad_(False)
        options, width = self.options, self.clip.vision_width
        stream = torch_stream("coda components", self.context.seed, len(self.chunks))
        size = (options.blocks, options.components)

        def draw(name: str, length: int) -> Tensor:
            drawn_DMF = torch.randn(*size, length, generator=stream)
            earlier = [getattr(chunk, name).detach().cpu().flatten(2) for chunk in self.chunks]
            return _orthonormal(drawn_DMF, earlier)

        prompt_DMF = draw("prompt_DMLV", options.length * width)
        key_DMV, attention_DMV = draw("key_DMV", width), draw("attention_DMV", width)
        prompt_DMLV = prompt_DMF.unflatten(2, (options.length, width))
        self.chunks.append(Components(prompt_DMLV, key_DMV, attention_DMV))
        super().begin_task(task)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings behind the weighted prefixes."""
        query_BV = given(features).pooled_BV
        prefixes = {}
        for block, (prompt_MLV, key_MV, attention_MV) in enumerate(
            zip(*self._components(), strict=True)
        ):
            weight_BM = component_weights(query_BV, attention_MV, key_MV)
            prefix_BLV = torch.einsum("bm,mlv->blv", weight_BM, prompt_MLV)
            prefixes[block] = Prefix(*prefix_BLV.chunk(2, dim=1))
        adapted = self.clip.encode_image(given(image_BCHW), prefixes=prefixes)
        return Embedded.of(adapted)

    def exported_prompts(self) -> list[PromptGroup]:
        """One group for each block, since each has its own weights."""
        blocks = zip(*(part.detach() for part in self._components()), strict=True)
        return [
            PromptGroup(block, "prefix", "weighted", prompt_MLV[None], key_MV, attention_MV)
            for block, (prompt_MLV, key_MV, attention_MV) in enumerate(blocks)
        ]

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        """``L_ce``, and the penalty if it has a weight."""
        losses = super().losses(embedded, label_N)
        weight = self.options.orthogonality_weight
        if not weight:
            return losses
        penalty = sum(_orthogonality(part_DMX.flatten(2)) for part_DMX in self._components())
        return losses.plus("orthogonality", weight * penalty)

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        """``prompt_DMLV``, ``key_DMV`` and ``attention_DMV`` of all tasks."""
        chunks: list[Any] = list(self.chunks)
        return (
            torch.cat([chunk.prompt_DMLV for chunk in chunks], dim=1),
            torch.cat([chunk.key_DMV for chunk in chunks], dim=1),
            torch.cat([chunk.attention_DMV for chunk in chunks], dim=1),
        )


def _orthonormal(drawn_DMF: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """Rows of length 1, orthogonal to each other and to ``earlier`` rows (section 4.2).

    There are at most F such rows; further components keep their random directions.
    """
    before_DMF = torch.cat([*earlier, drawn_DMF[:, :0]], dim=1)
    n_before, n_new = before_DMF.shape[1], drawn_DMF.shape[1]
    if n_before + n_new > drawn_DMF.shape[2]:
        return unit(drawn_DMF)
    all_DFM = torch.cat([before_DMF, drawn_DMF], dim=1).transpose(1, 2)
    return torch.linalg.qr(all_DFM).Q[:, :, n_before:].transpose(1, 2).contiguous()


def _orthogonality(row_DMF: Tensor) -> Tensor:
    """Mean over entries of ``(R Rᵀ - I)²``, summed over blocks."""
    product_DMM = row_DMF @ row_DMF.transpose(1, 2)
    identity_MM = torch.eye(product_DMM.shape[1], device=row_DMF.device)
    return (product_DMM - identity_MM).square().mean(dim=(1, 2)).sum()
