"""DualPrompt: prefixes that all tasks share, and prefixes of each task that an image chooses.

Half of a prefix extends the keys of an attention and half its values (equation 5, prefix tuning).
The general prefixes G stand in the first blocks, the expert prefixes E_t of task t in the following
ones. A task trains G, its E_t and its key k_t: ``L = L_ce + λ (1 - cos(q(x), k_t))`` (equation 8).
In a test each image takes the prefixes of the task with the nearest key (equation 7).

Each image chooses alone; public codes let the test batch vote. Text anchors replace the paper's
linear head.

Axes: B images of this rank · D prefixed blocks · T tasks · L tokens · V vision width.

Source: arXiv 2204.04799.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.classifiers import Embedded
from pipeline.errors import ConfigError
from pipeline.methods.anchored import Anchored, AnchoredOptions
from pipeline.methods.base import Inputs, Losses, given
from pipeline.model.backbone import ImageFeatures
from pipeline.model.blocks import Prefix
from pipeline.model.prompt_groups import PromptGroup
from pipeline.model.prompts import INITIAL_STD, unit
from pipeline.rng import torch_stream
from pipeline.tasks import Task


class DualPromptOptions(AnchoredOptions):
    """Sizes and places of the prefixes; the defaults are those of the paper."""

    general_blocks: int = Field(2, ge=1)  # the first blocks have G
    expert_blocks: int = Field(3, ge=1)  # the blocks after those have E
    general_length: int = Field(5, gt=0)  # L of G, keys and as many values
    expert_length: int = Field(20, gt=0)  # L of E
    pull_weight: float = Field(1.0, ge=0)  # λ


class DualPrompt(Anchored):
    """General and expert prefixes."""

    Options = DualPromptOptions

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """Images, and the frozen features that choose their prefixes."""
        return Inputs(images=True, features=True)

    def build_adaptation(self) -> None:
        """The general prefixes; each task adds expert ones and a key."""
        options = self.options
        n_blocks = options.general_blocks + options.expert_blocks
        if n_blocks > self.clip.vision_layers:
            raise ConfigError(
                f"general_blocks and expert_blocks are {n_blocks} together and the image tower has "
                f"{self.clip.vision_layers} blocks; lower them"
            )
        self.general_D2LV = nn.Parameter(
            self._draw("general", 0, options.general_blocks, options.general_length)
        )
        self.experts = nn.ParameterList()  # per task, D×2×L×V
        self.keys = nn.ParameterList()  # per task, V

    def _draw(self, name: str, index: int, n_blocks: int, length: int) -> Tensor:
        stream = torch_stream(f"dualprompt {name}", self.context.seed, index)
        shape = (n_blocks, 2, length, self.clip.vision_width)
        return torch.randn(shape, generator=stream) * INITIAL_STD

    @property
    def n_prompt_tokens(self) -> int:
        """The longer of the two prefixes."""
        return max(self.options.general_length, self.options.expert_length)

    def begin_task(self, task: Task) -> None:
        """Freeze the prefixes of earlier tasks and add those of ``task``."""
        self.experts.requires_grad_(False)
        self.keys.requires_grad_(False)
        options, index = self.options, len(self.experts)
        expert_D2LV = self._draw("expert", index, options.expert_blocks, options.expert_length)
        self.experts.append(nn.Parameter(expert_D2LV))
        stream = torch_stream("dualprompt key", self.context.seed, index)
        self.keys.append(nn.Parameter(torch.randn(self.clip.vision_width, generator=stream)))
        self._is_learning = True
        super().begin_task(task)

    def end_task(self, task: Task) -> None:
        """From now on each image chooses its task."""
        self._is_learning = False
        super().end_task(task)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings behind the prefixes, and the distance to the task's key."""
        query_BV = unit(given(features).pooled_BV)
        cosine_BT = query_BV @ unit(torch.stack([*self.keys])).T
        if self._is_learning:
            chosen_B = torch.full((len(query_BV),), len(self.keys) - 1, device=query_BV.device)
        else:
            chosen_B = cosine_BT.argmax(dim=1)
        prefixes = self._prefixes(chosen_B)
        adapted = self.clip.encode_image(given(image_BCHW), prefixes=prefixes)
        distance_B = 1 - cosine_BT[:, -1]
        return Embedded.of(adapted, {"key": distance_B})

    def _prefixes(self, chosen_B: Tensor) -> dict[int, Prefix]:
        """The keys and values of each prefixed block, for the task that each image has chosen."""
        general_DB2LV = self.general_D2LV[:, None].expand(-1, len(chosen_B), -1, -1, -1)
        # The batch stays an axis of its own: a reshape of (2, B) to (B, 2) mixes images, a bug of
        # several public codes (aimagelab/mammoth#56).
        expert_DB2LV = torch.stack([*self.experts])[chosen_B].transpose(0, 1)
        return {
            block: Prefix(*prefix_B2LV.unbind(dim=1))
            for block, prefix_B2LV in enumerate([*general_DB2LV, *expert_DB2LV])
        }

    def exported_prompts(self) -> list[PromptGroup]:
        """The general prefixes, and those of the tasks."""
        general_D1LV = self.general_D2LV.detach().flatten(1, 2)[:, None]
        expert_DTLV = torch.stack([*self.experts]).detach().flatten(2, 3).transpose(0, 1)
        key_TV, first_expert = torch.stack([*self.keys]).detach(), len(general_D1LV)
        return [
            PromptGroup(0, "prefix", "all", general_D1LV),
            PromptGroup(first_expert, "prefix", "nearest", expert_DTLV, key_TV),
        ]

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        """``L_ce + λ · mean distance to the task's key``."""
        pull = self.options.pull_weight * embedded.terms["key"].mean()
        return super().losses(embedded, label_N).plus("key", pull)
