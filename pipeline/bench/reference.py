"""The straightforward training step, as public prompt-tuning code does it: the other side of ours.

It encodes the prompts of all classes seen so far, at the full length of the text tower, and keeps
every graph; the batch passes through all blocks of the image tower at once, every token to the
end; the optimizer is plain AdamW. The loss is the same, formula for formula.

Axes: B images · C classes · N text tokens · S image tokens · D prompted layers · L prompt tokens ·
V vision width · W text width · E joint width.

Source: CoOp (arXiv 2109.01134), MaPLe (arXiv 2210.03117) and CODA-Prompt (arXiv 2211.13218) in
their public code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.classifiers import Embedded
from pipeline.config import OptimConfig
from pipeline.methods.base import Losses, Method
from pipeline.methods.finetune import Finetune
from pipeline.model.anchors import LearnedAnchors
from pipeline.model.backbone import FrozenClip, ImageFeatures, PromptTokens
from pipeline.model.prompts import unit
from pipeline.tasks import Task


class ReferenceStep:
    """The straightforward step of a prompt-tuning method on its own copy of the learned tensors.

    With ``encodes_queries`` it computes the frozen features of each image again in each step, as
    public code does where prompts depend on the image.
    """

    def __init__(
        self,
        method: Finetune,
        tasks: Sequence[Task],
        optim: OptimConfig,
        *,
        encodes_queries: bool = False,
    ) -> None:
        shared = {id(method.clip): method.clip}  # the frozen towers
        self._method = copy.deepcopy(method, shared)
        self._encodes_queries = encodes_queries
        self._texts = _Texts(self._method, tasks)
        trained = [p for p in self._method.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=optim.learning_rate, betas=optim.betas)
        self._clipping = optim.gradient_clipping

    def step(self, image_BCHW: Tensor, label_B: Tensor, features: ImageFeatures | None) -> None:
        """One optimizer step."""
        if self._encodes_queries:
            with torch.no_grad():
                features = self._method.clip.encode_image(image_BCHW)
        self._optimizer.zero_grad()
        self.losses(image_BCHW, label_B, features).total.backward()
        trained = self._optimizer.param_groups[0]["params"]
        if self._clipping:
            torch.nn.utils.clip_grad_norm_(trained, self._clipping)
        self._optimizer.step()

    def losses(self, image_BCHW: Tensor, label_B: Tensor, features: ImageFeatures | None) -> Losses:
        """The losses of one batch."""
        method = self._method
        query_BV = features.pooled_BV if features and method.inputs.features else None
        prompt_DBLV = method.visual_prompts(query_BV, len(image_BCHW))
        first = method.inputs.first_layer
        embedding_BE = unit(_image_features(method.clip, image_BCHW, prompt_DBLV, first))
        anchors = _AllAnchors(self._texts(), method.task, method.anchors.unprompted())
        return _with_anchors(method, anchors).losses(Embedded(embedding_BE), label_B)


class _Texts:
    """The anchors ``anchor_CE`` of all classes, from texts of full length."""

    def __init__(self, method: Method, tasks: Sequence[Task]) -> None:
        self._clip, anchors = method.clip, method.anchors
        self._learned = anchors if isinstance(anchors, LearnedAnchors) else None
        self._context = self._learned.prompts if self._learned else None
        length = self._clip.context_length - method.context_tokens(method.options)
        self._tokens = []
        for task in tasks:
            texts = [f"{name}." for name in task.names]
            if self._context is None:
                texts = [prompts[0] for prompts in method.context.prompts_of(task)]
            self._tokens.append(self._padded(texts, length))

    def __call__(self) -> Tensor:
        """Encode all of them."""
        return torch.cat([self._encode(index) for index in range(len(self._tokens))])

    def _encode(self, index: int) -> Tensor:
        context_DLW = self._context.context(index) if self._context else None
        anchor_CE = unit(self._clip.encode_text(self._tokens[index], context_DLW))
        if self._learned and len(self._learned.residuals):
            anchor_CE = unit(anchor_CE + self._learned.residuals[index])
        return anchor_CE

    def _padded(self, texts: Sequence[str], length: int) -> PromptTokens:
        """Token ids filled up to ``length``, which with the context is all that the tower takes."""
        tokens = self._clip.tokenize(texts)
        missing = length - tokens.token_CN.shape[1]
        return PromptTokens(F.pad(tokens.token_CN, (0, missing)), tokens.end_C)


class _AllAnchors(nn.Module):
    """Anchors that were encoded together, under the interface that the losses of a method read."""

    def __init__(self, anchor_CE: Tensor, task: Task, unprompted_CE: Tensor) -> None:
        super().__init__()
        self._anchor_CE, self._first, self._unprompted_CE = anchor_CE, task.first, unprompted_CE

    def current(self) -> Tensor:
        """``anchor_CE`` of the classes of the task."""
        return self._anchor_CE[self._first :]

    def old(self) -> Tensor:
        """``anchor_CE`` of the classes of earlier tasks, with their graph."""
        return self._anchor_CE[: self._first]

    def unprompted(self) -> Tensor:
        """``anchor_CE`` without learned tensors."""
        return self._unprompted_CE


def _with_anchors(method: Method, anchors: _AllAnchors) -> Method:
    """The same method and tensors, whose losses read ``anchors``."""
    view = copy.copy(method)
    view._modules = {**method._modules, "anchors": anchors}
    return view


def _image_features(
    clip: FrozenClip, image_BCHW: Tensor, prompt_DBLV: Tensor, first_layer: int
) -> Tensor:
    """The joint features ``feature_BE`` behind all blocks of open_clip, with deep prompts."""
    visual, length = clip.clip.visual, prompt_DBLV.shape[2]
    token_BSV = visual._embeds(clip.normalise(image_BCHW))
    for layer, block in enumerate(visual.transformer.resblocks):
        above = layer - first_layer
        if 0 <= above < len(prompt_DBLV):
            image_BSV = token_BSV[:, 1 + (length if above else 0) :]
            prompt_BLV = prompt_DBLV[above].to(clip.dtype)
            token_BSV = torch.cat([token_BSV[:, :1], prompt_BLV, image_BSV], dim=1)
        token_BSV = block(token_BSV)
    pooled_BV, _ = visual._pool(torch.cat([token_BSV[:, :1], token_BSV[:, 1 + length :]], dim=1))
    return (pooled_BV if visual.proj is None else pooled_BV @ visual.proj).float()
