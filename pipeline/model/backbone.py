"""The frozen CLIP with room for prompts; ``model.weights`` loads one.

Axes: B images · C classes · N text tokens · S image tokens · L prompt tokens · D prompted layers ·
V vision width · W text width · E joint width.

No model code is copied: the towers are open_clip's own modules, called block by block so that
prompt tokens can enter between them. Without prompts the features are bit-equal to open_clip's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from open_clip.transformer import (
    TextTransformer,
    VisionTransformer,
    text_global_pool,
)
from torch import Tensor, nn

from pipeline.errors import WeightsError
from pipeline.model.blocks import Prefix, is_plain, run_block, run_block_with


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of one prompt per class, cut to the longest real one.

    ``token_CN`` starts with the start token; ``end_C`` is the position of each end token, where the
    text feature is read. Causal attention makes the cut exact.
    """

    token_CN: Tensor
    end_C: Tensor


Precision = Literal["auto", "fp32", "bf16"]


def tower_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of the towers' weights and activations; ``auto`` is bf16 on a GPU, else fp32."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


class ImageFeatures(NamedTuple):
    """What the image tower makes of a batch, float32, not normalised."""

    pooled_BV: Tensor  # the pooled token before the projection
    joint_BE: Tensor  # the feature that is compared with text
    penultimate_BV: Tensor  # the pooled token as it enters the last block

    def rows(self, rows: slice | Tensor) -> ImageFeatures:
        """The features of some of the images."""
        return ImageFeatures(*(column[rows] for column in self))


class FrozenClip:
    """A CLIP whose parameters never change.

    Deliberately not an ``nn.Module``: a method that holds one does not register it, so that the
    engine neither broadcasts, casts, nor saves the backbone. ``sha256`` names its weights.
    """

    def __init__(
        self,
        clip: Any,  # open_clip annotates no attribute of its models
        tokenizer: Callable[[list[str]], Tensor],
        *,
        name: str,
        device: torch.device,
        sha256: str = "",
        precision: Precision = "auto",
    ) -> None:
        self.name = name
        self.device = device
        self.dtype = tower_dtype(precision, device)
        self.logit_scale = float(clip.logit_scale.detach().float().exp())
        self.sha256 = sha256
        self.clip = clip.requires_grad_(False).eval().to(device=device, dtype=self.dtype)
        self._visual: Any = _checked_visual(clip, name)
        self._text = _checked_text(clip, name)
        self._tokenizer = tokenizer
        self._pools_cls = self._visual.pool_type == "tok" and all(
            is_plain(block) for block in self._visual.transformer.resblocks
        )
        mean, std = clip.visual.image_mean, clip.visual.image_std
        self._mean_111 = torch.tensor(mean, device=device).view(-1, 1, 1)
        self._std_111 = torch.tensor(std, device=device).view(-1, 1, 1)

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return int(self._visual.image_size[0])

    @property
    def vision_width(self) -> int:
        """V, the width of the image tower's tokens."""
        return int(self._visual.transformer.width)

    @property
    def joint_width(self) -> int:
        """E, the width of the space in which images and texts are compared."""
        return int(self._visual.output_dim)

    @property
    def vision_layers(self) -> int:
        """Number of blocks in the image tower."""
        return len(self._visual.transformer.resblocks)

    @property
    def text_layers(self) -> int:
        """Number of blocks in the text tower."""
        return len(self._text.transformer.resblocks)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image in the tower, the class token included."""
        return int(self._visual.positional_embedding.shape[0])

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt may have, start and end tokens included."""
        return int(self._text.positional_embedding.shape[0])

    @property
    def n_parameters(self) -> int:
        """Number of frozen scalars."""
        return sum(parameter.numel() for parameter in self.clip.parameters())

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """Pixels 0..255 as the towers want them: ``(pixel / 255 - mean) / std``."""
        pixel_BCHW = image_BCHW.to(self.device, non_blocking=True).float().div(255)
        return pixel_BCHW.sub(self._mean_111).div_(self._std_111).to(self.dtype)

    @torch.no_grad()
    def lower_blocks(self, image_BCHW: Tensor, n_blocks: int) -> Tensor:
        """The tokens ``token_BSV`` of pixels, uint8, after the first ``n_blocks`` blocks.

        They are of the towers' type and have no graph.
        """
        token_BSV: Tensor = self._visual._embeds(self.normalise(image_BCHW))
        for block in self._visual.transformer.resblocks[:n_blocks]:
            token_BSV = run_block(block, token_BSV)
        return token_BSV

    def encode_image(
        self,
        image_BCHW: Tensor,
        prompt_DBLV: Tensor | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
        *,
        first_layer: int = 0,
    ) -> ImageFeatures:
        """Features of pixels, uint8, or of the tokens that ``lower_blocks(…, first_layer)`` gives.

        ``prompt_DBLV[d]`` are the tokens that follow CLS in block ``first_layer + d``; each
        prompted block replaces those of the block before, and the last ones stay until the end.
        ``prefixes[l]`` are further keys and values of the attention in block ``l``, from 0; none is
        below ``first_layer``.
        """
        visual = self._visual
        if image_BCHW.dtype == torch.uint8:
            token_BSV = self.lower_blocks(image_BCHW, first_layer)
        else:
            token_BSV = image_BCHW.to(self.device, self.dtype, non_blocking=True)
        prompt_DBLV = None if prompt_DBLV is None else prompt_DBLV.to(self.dtype)
        if prompt_DBLV is None and not prefixes:
            *lower, last = visual.transformer.resblocks[first_layer:]
            for block in lower:
                token_BSV = run_block(block, token_BSV)
            below_BSV, token_BSV = token_BSV, run_block(last, token_BSV)
        else:
            below_BSV, token_BSV = self._prompted_blocks(
                token_BSV, prompt_DBLV, prefixes or {}, first_layer
            )
        pooled_BV, _ = visual._pool(token_BSV)
        penultimate_BV, _ = visual._pool(below_BSV[:, :1] if self._pools_cls else below_BSV)
        feature_BE = pooled_BV if visual.proj is None else pooled_BV @ visual.proj
        return ImageFeatures(pooled_BV.float(), feature_BE.float(), penultimate_BV.float())

    def _prompted_blocks(
        self,
        token_BSV: Tensor,
        prompt_DBLV: Tensor | None,
        prefixes: Mapping[int, Prefix],
        first_layer: int,
    ) -> tuple[Tensor, Tensor]:
        """The tokens before and after the last block, without prompts.

        After it CLS alone if only CLS is pooled.
        """
        depth, length = (0, 0) if prompt_DBLV is None else prompt_DBLV.shape[0:3:2]
        blocks = self._visual.transformer.resblocks

        def without_prompts(token_BSV: Tensor) -> Tensor:
            return torch.cat([token_BSV[:, :1], token_BSV[:, 1 + length :]], dim=1)

        for layer in range(first_layer, len(blocks)):
            block, above = blocks[layer], layer - first_layer
            if prompt_DBLV is not None and above < depth:
                image_BSV = token_BSV[:, 1 + (length if above else 0) :]
                token_BSV = torch.cat([token_BSV[:, :1], prompt_DBLV[above], image_BSV], dim=1)
            is_last = layer == len(blocks) - 1 and self._pools_cls
            if layer == len(blocks) - 1:
                below_BSV = without_prompts(token_BSV)
            if is_last or layer in prefixes:
                prefix = prefixes.get(layer)
                token_BSV = run_block_with(block, token_BSV, prefix, cls_only=is_last)
            else:
                token_BSV = run_block(block, token_BSV)
        return below_BSV, token_BSV if self._pools_cls else without_prompts(token_BSV)

    def tokenize(self, texts: Sequence[str]) -> PromptTokens:
        """Token ids of ``texts``, cut to the longest."""
        token_CN = self._tokenizer(list(texts)).to(self.device)
        if self._text.pool_type == "eos":
            end_C = (token_CN == self._text.eos_id).int().argmax(dim=-1)
        else:
            end_C = token_CN.argmax(dim=-1)
        if self._text.pool_type in ("argmax", "eos"):
            token_CN = token_CN[:, : int(end_C.max()) + 1]
        return PromptTokens(token_CN, end_C)

    def embed_words(self, text: str) -> Tensor:
        """Token embeddings ``word_LW`` of ``text`` without start and end tokens, float32."""
        prompt = self.tokenize([text])
        ids_L = prompt.token_CN[0, 1 : int(prompt.end_C[0])]
        return self._text.token_embedding(ids_L).detach().float()

    def encode_text(self, prompt: PromptTokens, context_DLW: Tensor | None = None) -> Tensor:
        """Joint feature ``feature_CE`` (not normalised, float32) of each prompt.

        ``context_DLW[0]`` is inserted after the start token; ``context_DLW[l]`` replaces it in
        block ``l``. Gradients reach the context only.

        Raises:
            WeightsError: prompt and context together exceed ``context_length``.
        """
        text = self._text
        token_CNW = text.token_embedding(prompt.token_CN).to(self.dtype)
        end_C, length = prompt.end_C, 0
        if context_DLW is not None:
            depth, length = context_DLW.shape[:2]
            context_DCLW = context_DLW.to(self.dtype)[:, None].expand(-1, len(end_C), -1, -1)
            token_CNW = torch.cat([token_CNW[:, :1], context_DCLW[0], token_CNW[:, 1:]], dim=1)
            end_C = end_C + length
        n_tokens = self._checked_length(token_CNW.shape[1], length)
        token_CNW = token_CNW + text.positional_embedding[:n_tokens].to(self.dtype)
        mask_NN = None if text.attn_mask is None else text.attn_mask[:n_tokens, :n_tokens]
        for layer, block in enumerate(text.transformer.resblocks):
            if length and 0 < layer < depth:
                after_CNW = token_CNW[:, 1 + length :]
                token_CNW = torch.cat([token_CNW[:, :1], context_DCLW[layer], after_CNW], dim=1)
            token_CNW = run_block(block, token_CNW, mask_NN)
        token_CNW = text.ln_final(token_CNW)
        if text.pool_type in ("argmax", "eos"):
            pooled_CW = token_CNW[torch.arange(len(end_C), device=self.device), end_C]
        else:
            pooled_CW = text_global_pool(token_CNW, None, text.pool_type)
        return _project(pooled_CW, text.text_projection).float()

    def _checked_length(self, n_tokens: int, context_tokens: int) -> int:
        if n_tokens <= self.context_length:
            return n_tokens
        raise WeightsError(
            f"{self.name}: the longest class prompt has {n_tokens} tokens, {context_tokens} of "
            f"them learned context, and the text tower takes {self.context_length}; shorten the "
            "class names or the textual_prompts.length of the method"
        )


class BlankClip(FrozenClip):
    """A CLIP that is asked for shapes, counts and limits: its texts cost nothing."""

    def encode_text(self, prompt: PromptTokens, context_DLW: Tensor | None = None) -> Tensor:
        """Zeros in the shape of the features, of prompts that are checked for their length."""
        n_context = 0 if context_DLW is None else context_DLW.shape[1]
        self._checked_length(prompt.token_CN.shape[1] + n_context, n_context)
        return torch.zeros(len(prompt.end_C), self.joint_width)


class _TextTower:
    """The text half of a CLIP, under one set of names for open_clip's two layouts."""

    def __init__(self, clip: Any) -> None:
        owner = clip.text if hasattr(clip, "text") else clip
        self.transformer = owner.transformer
        self.token_embedding = owner.token_embedding
        self.positional_embedding = owner.positional_embedding
        self.ln_final = owner.ln_final
        self.text_projection = owner.text_projection
        self.attn_mask = owner.attn_mask
        self.pool_type = owner.pool_type if hasattr(clip, "text") else clip.text_pool_type
        self.eos_id = owner.eos_id if hasattr(clip, "text") else clip.text_eos_id


def _checked_visual(clip: Any, name: str) -> VisionTransformer:
    visual = clip.visual
    what = f"is a {type(visual).__name__}"
    if isinstance(visual, VisionTransformer):
        if visual.attn_pool is None:
            return visual
        what = "pools by attention"
    raise WeightsError(
        f"{name}: the image tower {what}; visual prompts need a plain vision transformer with a "
        "class token, such as ViT-L-14"
    )


def _checked_text(clip: Any, name: str) -> _TextTower:
    owner = getattr(clip, "text", clip)
    if owner is not clip and not isinstance(owner, TextTransformer):
        raise WeightsError(
            f"{name}: the text tower is a {type(owner).__name__}; textual prompts need open_clip's "
            "own text transformer"
        )
    if getattr(owner, "cls_emb", None) is not None or getattr(owner, "use_pad_mask", False):
        raise WeightsError(f"{name}: text towers with a class token or padding mask do not work")
    return _TextTower(clip)


def _project(pooled_CW: Tensor, projection: nn.Module | Tensor | None) -> Tensor:
    if projection is None:
        return pooled_CW
    return projection(pooled_CW) if isinstance(projection, nn.Module) else pooled_CW @ projection
