"""A block in parts has the bits of open_clip's block, in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor

from pipeline.model.blocks import is_plain, run_block
from pipeline.model.weights import load_clip

WIDTH, HEADS = 26, 2
DEMO_CLIP = Path(__file__).parents[2] / "pipeline/demo/clip"


def a_block(kind: type = ResidualAttentionBlock) -> ResidualAttentionBlock:
    """A frozen block with random weights, biases and scales."""
    torch.manual_seed(2)
    block = kind(WIDTH, HEADS, ls_init_value=0.3).requires_grad_(False).eval()
    for parameter in block.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return block


def draw() -> Tensor:
    """Eleven tokens of each of five images."""
    token_BSV = torch.randn(5, 11, WIDTH, generator=torch.Generator().manual_seed(3))
    return token_BSV.requires_grad_()


def causal(n_tokens: int) -> Tensor:
    """The mask of a text tower."""
    return torch.full((n_tokens, n_tokens), float("-inf")).triu(1)


def both_ways(
    block: ResidualAttentionBlock, token_BSV: Tensor, mask_SS: Tensor | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The tokens and the gradient of our block, then those of open_clip's."""
    weight_BSV = token_BSV.detach().sin()

    def found(after_BSV: Tensor) -> tuple[Tensor, Tensor]:
        return after_BSV, torch.autograd.grad((after_BSV * weight_BSV).sum(), token_BSV)[0]

    ours, theirs = run_block(block, token_BSV, mask_SS), block(token_BSV, attn_mask=mask_SS)
    return found(ours), found(theirs)


@pytest.mark.parametrize("mask_SS", [None, causal(11)], ids=["image", "text"])
def test_block_with_a_graph_is_that_of_open_clip(mask_SS):
    ours, theirs = both_ways(a_block(), draw(), mask_SS)
    torch.testing.assert_close(ours, theirs)
    assert theirs[1].abs().max() > 0


@pytest.mark.parametrize("n_images", [1, 2, 3, 4, 5, 8, 16])
def test_blocks_of_the_demo_keep_their_bits(n_images: int):
    """must hold at widths of real towers: earlier figures stay as they are"""
    clip = load_clip(f"local-dir:{DEMO_CLIP}", None, device=torch.device("cpu"))
    towers = (clip.clip.visual.transformer, None), (clip.clip.transformer, causal(11))
    for tower, mask_SS in towers:
        block = tower.resblocks[1]
        shape = n_images, 11, block.attn.embed_dim
        token_BSV = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        ours, theirs = both_ways(block, token_BSV.requires_grad_(), mask_SS)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_block_without_a_graph_is_open_clips_own():
    block, token_BSV = a_block(), draw()
    with torch.no_grad():
        assert torch.equal(run_block(block, token_BSV), block(token_BSV))


def test_other_kinds_of_blocks_are_run_as_they_are():
    block, token_BSV = a_block(CustomResidualAttentionBlock), draw()
    assert not is_plain(block)
    assert torch.equal(run_block(block, token_BSV), block(token_BSV))
