"""A block in parts has the bits of open_clip's block, in both directions."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor

from pipeline.model.blocks import is_plain, run_block

WIDTH, HEADS = 26, 2


def a_block(kind: type = ResidualAttentionBlock) -> ResidualAttentionBlock:
    """A frozen block with random weights, biases and scales."""
    torch.manual_seed(2)
    block = kind(WIDTH, HEADS, ls_init_value=0.3).requires_grad_(False).eval()
    for parameter in block.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return block


def draw(n_tokens: int = 11, *, with_graph: bool = True) -> Tensor:
    """Tokens of five images."""
    token_BSV = torch.randn(5, n_tokens, WIDTH, generator=torch.Generator().manual_seed(3))
    return token_BSV.requires_grad_(with_graph)


def causal(n_tokens: int) -> Tensor:
    """The mask of a text tower."""
    return torch.full((n_tokens, n_tokens), float("-inf")).triu(1)


@pytest.mark.parametrize("mask_SS", [None, causal(11)], ids=["image", "text"])
def test_block_with_a_graph_has_the_bits_of_open_clip(mask_SS):
    block, token_BSV, weight_BSV = a_block(), draw(), draw(with_graph=False).sin()
    ours, theirs = run_block(block, token_BSV, mask_SS), block(token_BSV, attn_mask=mask_SS)
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad((y * weight_BSV).sum(), token_BSV)[0] for y in (ours, theirs)]
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


def test_block_without_a_graph_is_open_clips_own():
    block, token_BSV = a_block(), draw()
    with torch.no_grad():
        assert torch.equal(run_block(block, token_BSV), block(token_BSV))


def test_other_kinds_of_blocks_are_run_as_they_are():
    block, token_BSV = a_block(CustomResidualAttentionBlock), draw()
    assert not is_plain(block)
    assert torch.equal(run_block(block, token_BSV), block(token_BSV))
