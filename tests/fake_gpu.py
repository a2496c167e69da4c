"""A GPU that is not there: fake CUDA tensors have shapes and devices, but no values.

They refuse an operation whose operands lie on two devices. Forward only: autograd's engine asks for
a real device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from pipeline.model.backbone import FrozenClip, ImageFeatures, PromptTokens
from pipeline.tasks import Task
from tests.tiny import IMAGE_SIZE, MEAN, STD, model_config

GPU = torch.device("cuda", 0)
N_IMAGES = 12


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


def move(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
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
