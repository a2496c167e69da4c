"""Methods on a GPU that is not there: fake CUDA tensors have shapes and devices, but no values.

They refuse an operation whose operands lie on two devices. Forward only: autograd's engine asks for
a real device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from pipeline.methods.base import Method
from pipeline.model.backbone import FrozenClip, ImageFeatures, PromptTokens
from pipeline.tasks import Task
from tests.tiny import IMAGE_SIZE, MEAN, STD, VISION_LAYERS, model_config, tiny_tasks
from tests.variants import VARIANTS, build_variant

GPU = torch.device("cuda", 0)
N_IMAGES = 12
TASKS = tiny_tasks()[:2]


class FakeClip(FrozenClip):
    """A CLIP on a GPU that is not there; ``host`` reads its texts, which takes values."""

    host: FrozenClip
    mode: FakeTensorMode

    def tokenize(self, texts: Sequence[str]) -> PromptTokens:
        with unset_fake_temporarily():
            real = self.host.tokenize(texts)
        return PromptTokens(*map(self._on_gpu, (real.token_CN, real.end_C)))

    def embed_words(self, text: str) -> Tensor:
        with unset_fake_temporarily():
            real_LW = self.host.embed_words(text)
        return self._on_gpu(real_LW)

    def _on_gpu(self, real: Tensor) -> Tensor:
        return self.mode.from_tensor(real).to(self.device)


def move(module: nn.Module, change, recurse: bool = True) -> nn.Module:
    """``nn.Module._apply``; torch's own cannot replace a fake parameter."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(change(parameter), requires_grad=parameter.requires_grad)
                each._parameters[name] = moved
        for name, buffer in each._buffers.items():
            each._buffers[name] = None if buffer is None else change(buffer)
    return module


@pytest.fixture
def fake_clip(tiny_clip: FrozenClip, monkeypatch) -> Iterator[FakeClip]:
    """The tiny CLIP on a GPU that is not there, within the mode that makes fake tensors."""
    monkeypatch.setattr(nn.Module, "_apply", move)
    with FakeTensorMode() as mode:
        tree = model_config()
        net = open_clip.CLIP(tree["embed_dim"], tree["vision_cfg"], tree["text_cfg"])
        del net.logit_scale
        net.logit_scale = torch.tensor(2.8)  # a constant has a value
        net.visual.image_mean, net.visual.image_std = MEAN, STD
        clip = FakeClip(net, tiny_clip._tokenizer, name="fake", device=GPU)
        clip.host, clip.mode = tiny_clip, mode
        yield clip


def draw(clip: FrozenClip, task: Task) -> tuple[Tensor, Tensor, ImageFeatures]:
    """Images in host memory, as the loader gives them, with classes and features on the GPU."""
    image_BCHW = torch.zeros(N_IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    label_B = (task.first + torch.arange(N_IMAGES) % len(task.labels)).to(GPU)
    return image_BCHW, label_B, clip.encode_image(image_BCHW)


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
