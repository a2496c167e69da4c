"""Every method on a GPU that is not there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pipeline.methods.base import Method
from pipeline.tasks import Task
from tests.fake_gpu import GPU, N_IMAGES, draw
from tests.tiny import IMAGE_SIZE, VISION_LAYERS, tiny_tasks
from tests.variants import VARIANTS, build_variant

TASKS = tiny_tasks()[:2]


def learn(method: Method, task: Task) -> Tensor:
    """Everything that a task asks of a method, without steps; the scores of some images."""
    clip, inputs = method.clip, method.inputs
    method.begin_task(task)
    image_BCHW, label_B, features = draw(clip, task)
    fit(method, "start", image_BCHW, label_B, features)
    losses = method(
        image_BCHW if inputs.images else None, label_B, features if inputs.features else None
    )
    assert {losses.total.device, *(term.device for term in losses.terms.values())} == {GPU}
    fit(method, "end", image_BCHW, label_B, features)
    method.end_task(task)
    assert {value.device for value in method.state_dict().values()} <= {GPU}
    return method.logits(method.encode(image_BCHW, features))


@torch.no_grad()
def fit(method: Method, moment, image_BCHW: Tensor, label_B: Tensor, features) -> None:
    if moment in method.fits:
        method.fit(moment, [(method.encode(image_BCHW, features), label_B)])


@pytest.mark.parametrize("first_read", [0.0, -1.0])
@pytest.mark.parametrize("label", VARIANTS)
def test_every_operation_has_its_operands_on_the_gpu(fake_clip, label, first_read, monkeypatch):
    """must hold for both values, of which one makes a classifier choose a setting in its first task

    They stand for the values that a method reads back from the GPU.
    """
    reads = [first_read]
    monkeypatch.setattr(FakeTensor, "__float__", lambda tensor: reads[-1])
    monkeypatch.setattr(FakeTensor, "__int__", lambda tensor: 0)
    method = build_variant(label, fake_clip)
    for task in TASKS:
        logits_BC = learn(method, task)
        assert (logits_BC.shape, logits_BC.device) == ((N_IMAGES, task.last), GPU)
        reads.append(0.0)


@pytest.mark.parametrize("first_layer", range(1, VISION_LAYERS))
def test_kept_activations_start_on_the_host(fake_clip, first_layer):
    """must hold for tokens in host memory, as they are mapped from the disk"""
    image_BCHW = torch.zeros(N_IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    token_BSV = fake_clip.lower_blocks(image_BCHW, first_layer)
    assert (token_BSV.device, token_BSV.dtype) == (GPU, torch.bfloat16)
    features = fake_clip.encode_image(token_BSV.cpu(), first_layer=first_layer)
    assert {column.device for column in features} == {GPU}


def test_operands_on_two_devices_are_refused(fake_clip):
    """must see the fault that this file looks for"""
    with pytest.raises(RuntimeError, match="found at least two devices"):
        torch.zeros(3, device=GPU) + torch.zeros(3)
