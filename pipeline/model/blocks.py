"""One block of a frozen transformer of open_clip, with room for a prefix, or for one token alone.

Axes: B images or texts · S tokens · Q tokens that are read · L prefix tokens · V width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

_FEW = 3


class Prefix(NamedTuple):
    """Further keys and values of one attention, beside those of the tokens.

    They enter where the normalised tokens do, before the projections to keys and values, as in the
    equations of the paper. The authors' code inserts them behind the projections.

    Source: prefix tuning as in DualPrompt, arXiv 2204.04799.
    """

    key_BLV: Tensor
    value_BLV: Tensor


def is_plain(block: ResidualAttentionBlock) -> bool:
    """Whether a block is open_clip's usual one, which this module can compute in parts."""
    return type(block) is ResidualAttentionBlock


def run_block(
    block: ResidualAttentionBlock, token_BSV: Tensor, mask_SS: Tensor | None = None
) -> Tensor:
    """The tokens after a block, ``block(token_BSV, attn_mask=mask_SS)``.

    With a graph they may differ from it in the last bits at widths that are no multiple of 16.
    """
    has_graph = torch.is_grad_enabled() and token_BSV.requires_grad
    # Without a graph torch is as fast. For two or three images it has a path with other bits.
    if not is_plain(block) or not has_graph or len(token_BSV) <= _FEW:
        return block(token_BSV, attn_mask=mask_SS)
    attended_BSV = _attend(block, block.ln_1(token_BSV), mask_SS)
    return _after_attention(block, token_BSV, attended_BSV)


def run_block_with(
    block: ResidualAttentionBlock, token_BSV: Tensor, prefix: Prefix | None, *, cls_only: bool
) -> Tensor:
    """The tokens after a plain block whose attention has further keys and values.

    With ``cls_only`` CLS alone, for a last block of which no other token is read (exact).
    """
    normed_BSV = block.ln_1(token_BSV)
    key_BSV = value_BSV = normed_BSV
    if prefix is not None:
        key_BSV = torch.cat([prefix.key_BLV.to(normed_BSV.dtype), normed_BSV], dim=1)
        value_BSV = torch.cat([prefix.value_BLV.to(normed_BSV.dtype), normed_BSV], dim=1)
    n_read = 1 if cls_only else token_BSV.shape[1]
    attended_BQV = block.attention(normed_BSV[:, :n_read], key_BSV, value_BSV)
    return _after_attention(block, token_BSV[:, :n_read], attended_BQV)


def _after_attention(
    block: ResidualAttentionBlock, token_BQV: Tensor, attended_BQV: Tensor
) -> Tensor:
    token_BQV = token_BQV + block.ls_1(attended_BQV)
    return token_BQV + block.ls_2(block.mlp(block.ln_2(token_BQV)))


def _attend(block: ResidualAttentionBlock, normed_BSV: Tensor, mask_SS: Tensor | None) -> Tensor:
    """``block.attention(normed_BSV, attn_mask=mask_SS)`` in less time.

    torch's module transposes images and tokens first, so that the projection to queries, keys and
    values and its gradient take a slow path: on a CPU 5 to 8 % of a tower's step.
    """
    attention = block.attn
    projected = F.linear(normed_BSV, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (
        part_BSV.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for part_BSV in projected.chunk(3, dim=-1)
    )
    mask = None if mask_SS is None else mask_SS.to(normed_BSV.dtype)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))
