"""The prompted towers by plain loops, which compute every token of every block.

Axes: B images · C classes · S image tokens · N text tokens · D prompted layers · L prompt tokens ·
V vision width · W text width.
"""

from __future__ import annotations

from collections.abc import Mapping

import open_clip
import torch
from torch import Tensor, nn

from pipeline.model.backbone import FrozenClip
from pipeline.model.blocks import Prefix


def prompted_image(
    clip: FrozenClip, image_BCHW: Tensor, prompt_DBLV: Tensor, first_layer: int = 0
) -> Tensor:
    """The joint feature by a loop that computes every token of every block."""
    visual = clip.clip.visual
    token_BSV = visual._embeds(clip.normalise(image_BCHW))
    cls_B1V, image_BSV = token_BSV[:, :1], token_BSV[:, 1:]
    inserted_BLV = image_BSV[:, :0]
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 <= layer - first_layer < len(prompt_DBLV):
            inserted_BLV = prompt_DBLV[layer - first_layer]
        token_BSV = block(torch.cat([cls_B1V, inserted_BLV, image_BSV], dim=1))
        cls_B1V, image_BSV = token_BSV[:, :1], token_BSV[:, -image_BSV.shape[1] :]
        inserted_BLV = token_BSV[:, 1 : -image_BSV.shape[1]]
    return visual.ln_post(cls_B1V[:, 0]) @ visual.proj


def attend(block: nn.Module, normed_SV: Tensor, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    """The attention of one image, head by head, with the weights of ``block``."""
    attention, width = block.attn, normed_SV.shape[-1]
    key_SV = value_SV = normed_SV
    if prefix is not None:
        key_SV, value_SV = (torch.cat([rows_LV, normed_SV]) for rows_LV in prefix)
    weights = attention.in_proj_weight.split(width)
    biases = attention.in_proj_bias.split(width)
    query, key, value = (
        rows @ weight.T + bias
        for rows, weight, bias in zip((normed_SV, key_SV, value_SV), weights, biases, strict=True)
    )
    size = width // attention.num_heads
    heads = [
        (q @ k.T / size**0.5).softmax(dim=1) @ v
        for q, k, v in zip(*(each.split(size, dim=1) for each in (query, key, value)), strict=True)
    ]  # fmt: skip
    return attention.out_proj(torch.cat(heads, dim=1))


def prefixed_image(
    clip: FrozenClip, image_BCHW: Tensor, prefixes: Mapping[int, Prefix], prompt_DBLV: Tensor
) -> Tensor:
    """The joint feature by a loop over images and heads."""
    visual, rows = clip.clip.visual, []
    for number, token_SV in enumerate(visual._embeds(clip.normalise(image_BCHW))):
        n_image = len(token_SV) - 1
        for layer, block in enumerate(visual.transformer.resblocks):
            if layer < len(prompt_DBLV):
                prompt_LV = prompt_DBLV[layer, number]
                token_SV = torch.cat([token_SV[:1], prompt_LV, token_SV[-n_image:]])
            prefix = prefixes.get(layer)
            own = prefix and (prefix.key_BLV[number], prefix.value_BLV[number])
            token_SV = token_SV + attend(block, block.ln_1(token_SV), own)
            token_SV = token_SV + block.mlp(block.ln_2(token_SV))
        rows.append(visual.ln_post(token_SV[0]) @ visual.proj)
    return torch.stack(rows)


def prompted_text(clip: FrozenClip, texts: list[str], context_DLW: Tensor, arch: str) -> Tensor:
    """The text feature by a loop over classes, each at its own full length."""
    tower = getattr(clip.clip, "text", clip.clip)
    rows = []
    for token_N in open_clip.get_tokenizer(arch)(texts):
        word_NW = tower.token_embedding(token_N[: int(token_N.argmax()) + 1])
        token_NW = torch.cat([word_NW[:1], context_DLW[0], word_NW[1:]])
        token_NW = token_NW + tower.positional_embedding[: len(token_NW)]
        length, mask_NN = context_DLW.shape[1], tower.attn_mask[: len(token_NW), : len(token_NW)]
        for layer, block in enumerate(tower.transformer.resblocks):
            if 0 < layer < len(context_DLW):
                after_NW = token_NW[1 + length :]
                token_NW = torch.cat([token_NW[:1], context_DLW[layer], after_NW])
            token_NW = block(token_NW[None], attn_mask=mask_NN)[0]
        rows.append(tower.ln_final(token_NW[-1]) @ tower.text_projection)
    return torch.stack(rows)
