"""Class names per second: frozen, as at the start of a task, and with the gradient of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from pipeline.bench.drawn import class_names
from pipeline.bench.settings import BenchConfig
from pipeline.bench.stage import load_backbone
from pipeline.bench.timing import Figure, time_alternately
from pipeline.distributed.world import World
from pipeline.methods import find_method, parse_options
from pipeline.model.backbone import FrozenClip, PromptTokens

_MOST_LEARNED = 1000  # more classes in one task take too much memory


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """Anchors per second for each number of classes, with the learned context of the method."""
    clip = load_backbone(config, world)
    method = find_method(config.method.name)
    length = method.context_tokens(parse_options(config.method))
    words_LW = clip.embed_words("a photo of a")[:length]
    context_DLW = words_LW[None].clone().requires_grad_() if length else None
    for count in config.bench.text_classes:
        texts = [f"{name}." for name in class_names(count)]
        prompt = clip.tokenize(texts if length else [f"a photo of a {text}" for text in texts])
        works: dict[str, Callable[[], object]] = {
            "frozen": partial(_encode, clip, prompt, context_DLW)
        }
        if context_DLW is not None and count <= _MOST_LEARNED:
            works["learned"] = partial(_learn, clip, prompt, context_DLW)
        for name, timing in time_alternately(works, config.bench, world.device).items():
            yield timing.rate(f"{count} classes, {name}", count, "anchors/s")


@torch.no_grad()
def _encode(clip: FrozenClip, prompt: PromptTokens, context_DLW: torch.Tensor | None) -> None:
    clip.encode_text(prompt, context_DLW)


def _learn(clip: FrozenClip, prompt: PromptTokens, context_DLW: torch.Tensor) -> None:
    torch.autograd.grad(clip.encode_text(prompt, context_DLW).sum(), context_DLW)
