"""Needed FLOPs are those that torch counts, and those of the literature at ViT-L/14."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.bench.flops import Tower, image_tower, step_flops, text_tower
from pipeline.methods import METHODS
from pipeline.methods.base import Method
from pipeline.model.weights import load_clip
from tests.tiny import build_context, draw_batch, tiny_tasks

VITL14_IMAGE = Tower(24, 1024, 4096, 768, patch_values=3 * 14**2, patches=256)
VITL14_TEXT = Tower(12, 768, 3072, 768)
DEMO_CLIP = Path(__file__).parents[2] / "pipeline/demo/clip"


def counted(work: Callable[[], object]) -> int:
    """The FLOPs that torch counts in ``work``; its fused attention hides them or does more."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.fixture
def method(tiny_clip) -> Method:
    """A method with prompts in both towers, at the start of its first task."""
    made = METHODS["tppt_vt"](build_context(tiny_clip), METHODS["tppt_vt"].Options())
    made.begin_task(tiny_tasks()[0])
    return made


def test_vit_l14_needs_what_is_published():
    """must give the profile of open_clip and the counts of torch at full size, in GFLOP"""
    assert VITL14_IMAGE.forward(257) / 1e9 == pytest.approx(162.0, abs=0.05)
    assert VITL14_IMAGE.forward(267) / 1e9 == pytest.approx(168.6, abs=0.05)
    assert VITL14_IMAGE.backward(267) / 1e9 == pytest.approx(175.3, abs=0.05)
    assert [round(VITL14_TEXT.forward(n) / 1e9, 1) for n in (77, 24, 16)] == [13.3, 4.1, 2.7]
    both = VITL14_TEXT.forward(77) + VITL14_TEXT.backward(77)
    assert 200 * both / 1e12 == pytest.approx(5.36, abs=0.005)


def test_last_block_of_one_token_saves_five_gigaflops():
    saved = VITL14_IMAGE.forward(267) - VITL14_IMAGE.forward(267, reads_one=True)
    assert saved / 1e9 == pytest.approx(5.9, abs=0.05)


def test_image_tower_is_counted_exactly(method):
    clip, prompt_DBLV = method.clip, torch.zeros(3, 2, 4, 26, requires_grad=True)
    image_BCHW, _, _ = draw_batch(clip, tiny_tasks()[0], 2)
    outputs: list[Tensor] = []
    forward = counted(lambda: outputs.append(clip.encode_image(image_BCHW, prompt_DBLV).joint_BE))
    backward = counted(lambda: torch.autograd.grad(outputs[0].sum(), prompt_DBLV))
    tower, tokens = image_tower(method), clip.image_tokens + 4
    assert forward == 2 * tower.forward(tokens, reads_one=True)
    assert backward == 2 * tower.backward(tokens, reads_one=True)


def test_text_tower_is_counted_exactly(method):
    clip, context_DLW = method.clip, torch.zeros(1, 5, 22, requires_grad=True)
    prompt, outputs = clip.tokenize(["a fox.", "an oak.", "a grey seal."]), []
    forward = counted(lambda: outputs.append(clip.encode_text(prompt, context_DLW)))
    backward = counted(lambda: torch.autograd.grad(outputs[0].sum(), context_DLW))
    tower, tokens = text_tower(method), prompt.token_CN.shape[1] + 5
    assert (forward, backward) == (3 * tower.forward(tokens), 3 * tower.backward(tokens))


def test_step_needs_what_its_towers_need():
    """must agree with torch on a complete step, within the little that is left out"""
    clip = load_clip(f"local-dir:{DEMO_CLIP}", None, device=torch.device("cpu"))
    method = METHODS["tppt_vt"](build_context(clip), METHODS["tppt_vt"].Options())
    task = tiny_tasks()[0]
    method.begin_task(task)
    size = clip.image_size
    image_BCHW = torch.randint(0, 256, (6, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        features = clip.encode_image(image_BCHW)
    label_B = torch.arange(6) % 3

    def step() -> None:
        total = method(image_BCHW, label_B, features).total
        torch.autograd.grad(total, [p for p in method.parameters() if p.requires_grad])

    assert step_flops(method, images=6) == pytest.approx(counted(step), rel=0.02)


def test_kept_blocks_need_nothing(tiny_clip):
    """must count the blocks from the first prompted one on"""
    options = {"visual_prompts": {"first_layer": 2}}
    above = METHODS["finetune"](build_context(tiny_clip), METHODS["finetune"].Options(**options))
    above.begin_task(tiny_tasks()[0])
    prompt_DBLV = torch.zeros(1, 2, 8, 26, requires_grad=True)
    image_BCHW, _, _ = draw_batch(tiny_clip, tiny_tasks()[0], 2)
    token_BSV = tiny_clip.lower_blocks(image_BCHW, 2)

    def both_ways() -> None:
        features = tiny_clip.encode_image(token_BSV, prompt_DBLV, first_layer=2)
        torch.autograd.grad(features.joint_BE.sum(), prompt_DBLV)

    assert step_flops(above, images=2) == counted(both_ways)
