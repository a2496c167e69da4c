"""A GPU that is not there: fake CUDA tensors have shapes and devices, but no values.

They refuse an operation whose operands lie on two devices. Forward only: autograd's engine asks for
a real device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class NoWaiting(TorchDispatchMode):
    """Refuses an operation for which the host would wait until a GPU has done all earlier work.

    Such are a value that is read back, and a copy between the two that is not asked to overlap. A
    single number of the host is an argument of the operation itself.
    """

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        reads = operation is torch.ops.aten._local_scalar_dense.default
        assert not reads, f"the host waits for {operation}"
        result = operation(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        is_copy = operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        places = {x.device.type for x in tensors if x.dim() or is_copy}
        overlaps = is_copy and (kwargs.get("non_blocking") or args[2:] == (True,))
        assert len(places) < 2 or overlaps, f"the host waits for {operation}"
        return result


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
