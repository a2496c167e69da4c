"""Methods and classifiers that the package does not have: the contract can express each briefly.

Configurations name them as any class outside the package: ``tests.probes:KeyPool``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.classifiers import (
    Classifier,
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
)
from pipeline.distributed.collectives import sum_over_ranks
from pipeline.methods.base import Inputs, Losses, Method
from pipeline.methods.tppt_vt import TpptVT
from pipeline.model.anchors import FixedAnchors
from pipeline.model.backbone import ImageFeatures
from pipeline.model.losses import image_to_text
from pipeline.model.prompts import unit
from pipeline.rng import torch_stream
from pipeline.tasks import Task


class Ridge(Classifier):
    """Ridge regression of the one-hot labels, from class sums and a Gram matrix."""

    def __init__(self, context: ClassifierContext, options: Any) -> None:
        super().__init__(context, options)
        width = context.embedding_width
        self.sums = nn.ParameterList()
        self.register_buffer("gram_EE", torch.zeros(width, width, dtype=torch.float64))

    @property
    def fits(self) -> frozenset[Moment]:
        return frozenset({"end"})

    def begin_task(self, task: Task) -> None:
        self.first, shape = task.first, (len(task.labels), len(self.gram_EE))
        self.sums.append(nn.Parameter(torch.zeros(shape).double(), requires_grad=False))

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        for embedded, label_B in images:
            rows_BE = embedded.embedding_BE.double()
            one_hot_BC = nn.functional.one_hot(label_B - self.first, len(self.sums[-1]))
            self.sums[-1] += one_hot_BC.T.double() @ rows_BE
            self.gram_EE += rows_BE.T @ rows_BE

    def end_task(self, task: Task) -> None:
        penalty_EE = torch.eye(len(self.gram_EE)).to(self.gram_EE)
        targets_EC = torch.cat([*self.sums]).T
        self.weight_EC = torch.linalg.solve(self.gram_EE + penalty_EE, targets_EC)

    def logits(self, embedded: Embedded) -> Tensor:
        return embedded.embedding_BE.double() @ self.weight_EC


class KeyPool(Method):
    """A pool of prompts; each image takes the one with the nearest key, which it pulls (L2P)."""

    def build_adaptation(self) -> None:
        width, layers = self.clip.vision_width, self.clip.vision_layers
        stream = torch_stream("key pool", self.context.seed)
        self.key_MV = nn.Parameter(torch.randn(4, width, generator=stream))
        self.prompt_MDLV = nn.Parameter(torch.randn(4, layers, 2, width, generator=stream) * 0.02)

    def build_anchors(self) -> FixedAnchors:
        return FixedAnchors(self.clip, self.context.prompts_of)

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        return Inputs(images=True, features=True)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        cosine_B, chosen_B = (unit(features.pooled_BV) @ unit(self.key_MV).T).max(dim=1)
        prompt_DBLV = self.prompt_MDLV[chosen_B].transpose(0, 1)
        joint_BE = self.clip.encode_image(image_BCHW, prompt_DBLV).joint_BE
        return Embedded(unit(joint_BE), terms={"key": 1 - cosine_B})

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        position_N = label_N - self.task.first
        scale, anchor_CE = self.clip.logit_scale, self.anchors.current()
        terms = {
            "image_to_text": image_to_text(embedded.embedding_BE, anchor_CE, position_N, scale),
            "key": 0.5 * embedded.terms["key"].mean(),
        }
        return Losses(sum(terms.values()), terms)


class Held(TpptVT):
    """Waits at a step while a file exists, or until a rank is asked to stop.

    So a test disturbs a run at that step, on a machine of any speed. The file holds the task and
    the steps in it that a start does before it waits; an empty one means ``1 0``.
    """

    HOLD = "FILE_THAT_HOLDS_RUNS"  # in the environment, if any: held runs and others are equal

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self._steps_done = 0

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        file = os.environ.get(self.HOLD)
        while file and self._is_held(Path(file)):
            time.sleep(0.02)
        self._steps_done += 1
        return super().losses(embedded, label_N)

    def _is_held(self, file: Path) -> bool:
        """Whether the ranks wait; all of them leave together, so none waits for another one."""
        is_held = False
        with contextlib.suppress(FileNotFoundError):
            place = [int(word) for word in file.read_text().split()] or [1, 0]
            is_held = [self.task.index, self._steps_done] >= place
        is_asked = signal.getsignal(signal.SIGUSR2).__self__.is_made
        n_held, n_asked = sum_over_ranks(torch.tensor([is_held, is_asked]).int()).tolist()
        return n_held > 0 and n_asked == 0
