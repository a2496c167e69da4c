"""The straightforward step does the same work: the same loss, over all classes at full length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.bench.reference import ReferenceStep
from pipeline.config import OptimConfig
from pipeline.methods import METHODS
from pipeline.methods.finetune import Finetune
from tests.tiny import build_context, draw_batch, tiny_tasks

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "moving anchors": ("tppt_vt", {"loss_classes": "seen"}),
    "context per task": ("tppt_vt", {"textual_prompts": {"growth": "per_task", "depth": 2}}),
    "prompts above a layer": ("tppt_v", {"visual_prompts": {"first_layer": 1}}),
    "fixed anchors": ("finetune", {"visual_prompts": {"generator": "shared", "depth": 2}}),
}


def at_second_task(clip, name: str, options: dict[str, Any]) -> Finetune:
    """A method whose tensors of the first task are not at their initial values."""
    made = METHODS[name](build_context(clip), METHODS[name].Options(**options))
    first, second, _ = tiny_tasks()
    made.begin_task(first)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.end_task(first)
    made.begin_task(second)
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_is_that_of_the_method(tiny_clip, shape: str):
    name, options = SHAPES[shape]
    method = at_second_task(tiny_clip, name, options)
    image_BCHW, label_B, features = draw_batch(tiny_clip, tiny_tasks()[1], 5)
    reference = ReferenceStep(method, tiny_tasks()[:2], OptimConfig())
    theirs = reference.losses(image_BCHW, label_B, features)
    if first_layer := method.inputs.first_layer:  # as a run keeps them
        image_BCHW = tiny_clip.lower_blocks(image_BCHW, first_layer)
    ours = method(image_BCHW, label_B, features)
    assert theirs.terms.keys() == ours.terms.keys()
    for term, value in ours.terms.items():
        expected = pytest.approx(float(value.detach()), rel=1e-4, abs=1e-6)
        assert float(theirs.terms[term].detach()) == expected, term


def test_step_changes_its_own_tensors_only(tiny_clip):
    method = at_second_task(tiny_clip, "tppt_vt", {})
    before = {key: value.clone() for key, value in method.state_dict().items()}
    reference = ReferenceStep(method, tiny_tasks()[:2], OptimConfig(learning_rate=0.1))
    image_BCHW, label_B, features = draw_batch(tiny_clip, tiny_tasks()[1], 5)
    losses = []
    for _ in range(3):
        losses.append(float(reference.losses(image_BCHW, label_B, features).total.detach()))
        reference.step(image_BCHW, label_B, features)
    assert losses[2] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_reference_encodes_every_class_at_full_length(tiny_clip):
    method = at_second_task(tiny_clip, "tppt_vt", {})
    _, label_B, features = draw_batch(tiny_clip, tiny_tasks()[1], 1)
    reference = ReferenceStep(method, tiny_tasks()[:2], OptimConfig())
    seen: list[torch.Size] = []
    hook = tiny_clip.clip.transformer.resblocks[0].register_forward_hook(
        lambda block, inputs, output: seen.append(inputs[0].shape)
    )
    try:
        reference.losses(draw_batch(tiny_clip, tiny_tasks()[1], 1)[0], label_B, features)
    finally:
        hook.remove()
    assert [shape[:2] for shape in seen] == [(3, 24), (3, 24)]


def test_queries_are_encoded_again_if_asked(tiny_clip):
    method = at_second_task(tiny_clip, "tppt_v", {})
    image_BCHW, label_B, features = draw_batch(tiny_clip, tiny_tasks()[1], 2)

    def flops(encodes_queries: bool) -> int:
        step = ReferenceStep(
            method, tiny_tasks()[:2], OptimConfig(), encodes_queries=encodes_queries
        ).step
        with FlopCounterMode(display=False) as counter:
            step(image_BCHW, label_B, features)
        return counter.get_total_flops()

    assert flops(True) > flops(False)
