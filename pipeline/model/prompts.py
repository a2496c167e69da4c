"""Learned prompt tokens for the two towers.

Axes: B images · D prompted layers · M components · L prompt tokens · V vision width · W text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.rng import torch_stream
from pipeline.settings_file import Section

INITIAL_STD = 0.02


class VisualPromptOptions(Section):
    """Size and form of the visual prompts."""

    generator: Literal["weighted", "shared"] = "weighted"  # tokens per image, or for all images
    # A new chunk per task; one that all tasks train; or one that only the first task trains.
    growth: Literal["chunk", "tuned", "first_task"] = "chunk"
    components: int = Field(10, gt=0)  # M, per chunk; 'shared' always has one
    length: int = Field(8, gt=0)  # L, tokens in each prompted layer
    depth: int | None = Field(None, gt=0)  # number of prompted layers, from the first; None: all
    # The first prompted layer, from 0. What is below is frozen and equal in all epochs, tasks and
    # runs: it is computed once per image if data.feature_cache is a local folder.
    first_layer: int = Field(0, ge=0)


class TextualPromptOptions(Section):
    """Size and form of the textual prompts."""

    length: int = Field(4, gt=0)  # L, learned context tokens before the class name
    initial_words: str = "a photo of a"  # their word embeddings are the initial values
    depth: int = Field(1, gt=0)  # number of text layers with context tokens, from the first
    growth: Literal["tuned", "per_task"] = "tuned"  # one context for all tasks, or one per task


class PromptChunk(nn.Module):
    """The components that are learned in one task, or in all tasks."""

    def __init__(self, prompt_DMLV: Tensor, key_MV: Tensor | None, attention_MV: Tensor | None):
        super().__init__()
        self.prompt_DMLV = nn.Parameter(prompt_DMLV)
        self.key_MV = None if key_MV is None else nn.Parameter(key_MV)
        self.attention_MV = None if attention_MV is None else nn.Parameter(attention_MV)


class _Pool(NamedTuple):
    """All components of some chunks in one piece, while the chunks do not change."""

    versions: list[tuple[torch.device, int]]  # of the tensors of the chunks
    prompt_MDLV: Tensor  # with room at the end for the components of the newest chunk
    key_MV: Tensor
    attention_MV: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, chunks: Sequence[Any], n_newest: int) -> _Pool:
        """Copy ``chunks``, with room for ``n_newest`` further components."""
        room_DMLV = torch.zeros_like(chunks[0].prompt_DMLV[:, :1]).expand(-1, n_newest, -1, -1)
        prompt_DMLV = torch.cat([*(chunk.prompt_DMLV for chunk in chunks), room_DMLV], dim=1)
        return cls(
            _versions(chunks),
            prompt_DMLV.transpose(0, 1).contiguous(),
            torch.cat([chunk.key_MV for chunk in chunks]),
            torch.cat([chunk.attention_MV for chunk in chunks]),
        )


class VisualPrompts(nn.Module):
    """Deep visual prompts: each task may add a chunk of components.

    ``P̃_l(x) = Σ_m a_m(x) P_l^m`` with ``a_m(x) = cos(q(x) ⊙ A_m, K_m)``: every image has its own
    tokens. The ``shared`` generator has one component per chunk, with weight 1. Later chunks start
    at zero, so that a new task starts with the prompts of the previous task.

    Source: CODA-Prompt, arXiv 2211.13218, in the form of TPPT (arXiv 2505.20680, section METHOD).

    Raises:
        ConfigError: the tower has no layer ``first_layer``.
    """

    def __init__(self, options: VisualPromptOptions, *, width: int, layers: int, seed: int):
        super().__init__()
        self._options = options
        self._width = width
        if options.first_layer >= layers:
            raise ConfigError(
                f"visual_prompts.first_layer is {options.first_layer} and the image tower has "
                f"{layers} layers, numbered from 0; use at most {layers - 1}"
            )
        n_layers = layers - options.first_layer
        self._depth = min(options.depth or n_layers, n_layers)
        self._seed = seed
        self._pool: _Pool | None = None
        self.chunks = nn.ModuleList()

    @property
    def needs_query(self) -> bool:
        """Whether the tokens depend on the image."""
        return self._options.generator == "weighted"

    def begin_task(self) -> None:
        """Freeze the chunks of earlier tasks and add a chunk, unless one chunk serves all tasks."""
        if self.chunks and self._options.growth == "tuned":
            return
        self.chunks.requires_grad_(False)
        if self.chunks and self._options.growth == "first_task":
            return
        self.chunks.append(self._new_chunk(len(self.chunks)))

    def forward(self, query_BV: Tensor | None, n_images: int) -> Tensor:
        """Tokens ``prompt_DBLV`` of each image; only 'weighted' reads ``query_BV``."""
        chunks: list[Any] = list(self.chunks)  # a ModuleList hides the class of its members
        if query_BV is None:
            prompt_DMLV = torch.cat([chunk.prompt_DMLV for chunk in chunks], dim=1)
            return prompt_DMLV.sum(dim=1, keepdim=True).expand(-1, n_images, -1, -1)
        *earlier, newest = chunks
        if not earlier:
            weight_BM = component_weights(query_BV, newest.attention_MV, newest.key_MV)
            return torch.einsum("bm,dmlv->dblv", weight_BM, newest.prompt_DMLV)
        return self._mixed(query_BV, earlier, newest)

    def _mixed(self, query_BV: Tensor, earlier: Sequence[Any], newest: Any) -> Tensor:
        """The tokens from frozen chunks and the newest one, whose gradient alone is computed.

        The sum is over all components at once, so that its bits are those of one long chunk.
        """
        n_newest = newest.prompt_DMLV.shape[1]
        if self._pool is None or self._pool.versions != _versions(earlier):
            self._pool = _Pool.of(earlier, n_newest)
        pool = self._pool
        # Not seen by autograd: all parts of a step write the same values.
        pool.prompt_MDLV.data[-n_newest:] = newest.prompt_DMLV.detach().transpose(0, 1)
        key_MV = torch.cat([pool.key_MV, newest.key_MV])
        attention_MV = torch.cat([pool.attention_MV, newest.attention_MV])
        weight_BM = component_weights(query_BV, attention_MV, key_MV)
        mixed_DBLV = torch.einsum("bm,mdlv->dblv", weight_BM, pool.prompt_MDLV)
        if not (torch.is_grad_enabled() and newest.prompt_DMLV.requires_grad):
            return mixed_DBLV
        own_BM = weight_BM[:, -n_newest:].detach()
        own_DBLV = torch.einsum("bm,dmlv->dblv", own_BM, newest.prompt_DMLV)
        return mixed_DBLV + (own_DBLV - own_DBLV.detach())  # adds zeros, and a gradient

    def _new_chunk(self, index: int) -> PromptChunk:
        options = self._options
        n_components = options.components if self.needs_query else 1
        stream = torch_stream("visual prompts", self._seed, index)
        shape = (self._depth, n_components, options.length, self._width)
        prompt_DMLV = torch.randn(shape, generator=stream) * INITIAL_STD
        if index:
            prompt_DMLV.zero_()
        if not self.needs_query:
            return PromptChunk(prompt_DMLV, None, None)
        key_MV = torch.randn(n_components, self._width, generator=stream)
        return PromptChunk(prompt_DMLV, key_MV, torch.ones(n_components, self._width))


def _versions(chunks: Sequence[Any]) -> list[tuple[torch.device, int]]:
    """A value that changes whenever a tensor of ``chunks`` is written or moved."""
    return [(each.device, each._version) for chunk in chunks for each in chunk.parameters()]


def component_weights(query_BV: Tensor, attention_MV: Tensor, key_MV: Tensor) -> Tensor:
    """``a_Bm = cos(q_B ⊙ A_m, K_m)`` in [-1, 1], without the B×M×V product in memory.

    Source: CODA-Prompt, arXiv 2211.13218.
    """
    dot_BM = query_BV @ (attention_MV * key_MV).T
    attended_BM = (query_BV.square() @ attention_MV.square().T).clamp_min(1e-12).sqrt()
    return dot_BM / attended_BM / key_MV.norm(dim=1).clamp_min(1e-12)


class TextualPrompts(nn.Module):
    """Learned context tokens before every class name, optionally in deeper layers too."""

    def __init__(
        self, options: TextualPromptOptions, word_LW: Tensor, *, layers: int, seed: int
    ) -> None:
        super().__init__()
        self._options = options
        self._depth = min(options.depth, layers)
        self._seed = seed
        self._word_LW = word_LW.cpu()
        self.contexts = nn.ParameterList()

    def begin_task(self) -> None:
        """Freeze the contexts of earlier tasks and add a context; ``tuned`` only adds the first."""
        if len(self.contexts) and self._options.growth == "tuned":
            return
        self.contexts.requires_grad_(False)
        self.contexts.append(nn.Parameter(self._new_context(len(self.contexts))))

    def context(self, task_index: int) -> Tensor:
        """The tokens ``context_DLW`` before the class names of task ``task_index``."""
        return self.contexts[min(task_index, len(self.contexts) - 1)]

    def _new_context(self, index: int) -> Tensor:
        length, width = self._options.length, self._word_LW.shape[1]
        stream = torch_stream("textual prompts", self._seed, index)
        context_DLW = torch.randn(self._depth, length, width, generator=stream) * INITIAL_STD
        n_words = min(length, len(self._word_LW))
        context_DLW[0, :n_words] = self._word_LW[:n_words]
        return context_DLW


def unit(feature_BE: Tensor) -> Tensor:
    """Features scaled to length 1."""
    return F.normalize(feature_BE, dim=-1)
