"""One task's optimisation on all ranks: the only door to deepspeed.

The engine is built anew for every task from the tensors that task learns. DeepSpeed steps every
parameter it was given, also one without a gradient, so a tensor that must not move must not be in.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.comm import World, clone_of_world, gather, gather_with_gradient
from pipeline.config import Config
from pipeline.methods.base import Losses, Method
from pipeline.model.backbone import ImageFeatures
from pipeline.schedule import learning_rate_factor

_MOMENTS = ("exp_avg", "exp_avg_sq")


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings for ``world_size`` ranks, a pure function of the configuration.

    There is no precision block: the frozen towers are cast by the backbone, the learned tensors
    stay float32. Clipping is always written, since DeepSpeed's own default is 1.
    """
    n_passes = passes_per_step(config, world_size)
    return {
        "train_batch_size": config.data.global_batch,
        "train_micro_batch_size_per_gpu": config.data.global_batch // world_size // n_passes,
        "gradient_accumulation_steps": n_passes,
        "gradient_clipping": config.optim.gradient_clipping,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def passes_per_step(config: Config, world_size: int) -> int:
    """Forward passes of one rank for one optimizer step."""
    per_rank = config.data.global_batch // world_size
    return per_rank // min(config.engine.micro_batch or per_rank, per_rank)


def layout_problem(config: Config, world_size: int) -> str | None:
    """Why this configuration cannot be spread over ``world_size`` ranks, or None."""
    batch, micro = config.data.global_batch, config.engine.micro_batch
    if batch % world_size:
        return (
            f"data.global_batch: {batch} images cannot be shared equally by {world_size} ranks; "
            f"use a multiple of {world_size} or another number of ranks"
        )
    if micro and (batch // world_size) % min(micro, batch // world_size):
        return (
            f"engine.micro_batch: {micro} does not divide the {batch // world_size} images "
            "of a rank"
        )
    return None


class Engine:
    """Steps what ``method`` learns in one task of ``n_steps`` optimizer steps."""

    def __init__(self, method: Method, config: Config, world: World, n_steps: int) -> None:
        self._method = method
        self._optim = config.optim
        self._n_steps = n_steps
        self._n_passes = passes_per_step(config, world.world_size)
        self._world = world
        self._is_partitioned = config.engine.zero_stage > 0
        self._active = {n: p for n, p in method.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._active.values(),
            lr=config.optim.learning_rate,
            betas=config.optim.betas,
            eps=config.optim.epsilon,
            weight_decay=config.optim.weight_decay,
        )
        deepspeed = _import_deepspeed()
        _lend_group(config.engine.timeout_s)
        self._engine, *_ = deepspeed.initialize(
            model=method,
            model_parameters=list(self._active.values()),
            optimizer=self._optimizer,
            config=deepspeed_config(config, world.world_size),
            dist_init_required=False,
        )

    def step(
        self, index: int, image_BCHW: Tensor, label_B: Tensor, frozen: ImageFeatures | None
    ) -> Losses:
        """One optimizer step, the ``index``-th of the task, on this rank's part of a batch.

        Nothing is changed if the loss is not finite. The ``total`` that is returned is a copy
        without a graph in the host's memory, so that reading it does not wait for the device.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.learning_rate(index)
        if self._n_passes == 1:
            losses = self._engine(image_BCHW, label_B, frozen)
            total = losses.total.detach().cpu()  # waits for the forward pass, for nothing after it
            if total.isfinite():
                self._engine.backward(losses.total)
                self._engine.step()
        else:
            losses, total = self._step_in_parts(image_BCHW, label_B, frozen)
        return losses._replace(total=total)

    def learning_rate(self, index: int) -> float:
        """The learning rate of the task's ``index``-th step."""
        factor = learning_rate_factor(
            index,
            self._n_steps,
            warmup_steps=self._optim.warmup_steps,
            kind=self._optim.schedule,
        )
        return self._optim.learning_rate * factor

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state: ``step``, and ``<parameter>.<moment>`` in the parameter's shape.

        Empty before the first step. Every rank asks and gets the whole, which fits any number of
        ranks and any ZeRO stage.
        """
        stored = self._optimizer.param_groups[0]["params"]
        if stored[0] not in self._optimizer.state:
            return {}
        state = [self._optimizer.state[parameter] for parameter in stored]
        sizes = [parameter.numel() for parameter in self._active.values()]
        moments = {"step": state[0]["step"].clone()}
        for moment in _MOMENTS:
            flat = torch.cat([each[moment].flatten() for each in state])
            if self._is_partitioned:
                flat = gather(flat)[: sum(sizes)]
            for (name, parameter), part in zip(
                self._active.items(), flat.split(sizes), strict=True
            ):
                moments[f"{name}.{moment}"] = part.view_as(parameter)
        return moments

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`moments` gave, on any layout."""
        if not moments:
            return
        stored = self._optimizer.param_groups[0]["params"]
        for parameter in stored:
            self._optimizer.state[parameter]["step"] = moments["step"].clone()
        for moment in _MOMENTS:
            whole = torch.cat([moments[f"{name}.{moment}"].flatten() for name in self._active])
            if self._is_partitioned:  # equal parts, the last one padded
                share = stored[0].numel()
                padding = share * self._world.world_size - len(whole)
                start = share * self._world.rank
                whole = F.pad(whole, (0, padding))[start : start + share]
            parts = whole.split([parameter.numel() for parameter in stored])
            for parameter, part in zip(stored, parts, strict=True):
                value = part.view_as(parameter).clone().to(parameter.device)
                self._optimizer.state[parameter][moment] = value

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and buffers; the method keeps its tensors."""
        self._engine.destroy()

    def _step_in_parts(
        self, image_BCHW: Tensor, label_B: Tensor, frozen: ImageFeatures | None
    ) -> tuple[Losses, Tensor]:
        """The step of the whole batch in several passes, with the loss of the whole batch.

        First all embeddings without a graph, then the loss and its gradient on them, then each
        part again with a graph, driven by its share of that gradient.

        Source: GradCache, arXiv 2101.06983.
        """
        parts = _cut(image_BCHW, frozen, self._n_passes)
        with torch.no_grad():
            embedding_BE = torch.cat([self._method.embed(*part) for part in parts])
        embedding_BE.requires_grad_()
        gathered_NE = gather_with_gradient(embedding_BE)
        losses = self._method.losses(gathered_NE, gather(label_B))
        total = losses.total.detach().cpu()
        if not total.isfinite():
            return losses, total
        (slope_BE,) = torch.autograd.grad(losses.total, embedding_BE, retain_graph=True)
        slopes = slope_BE.chunk(self._n_passes)
        for index, part in enumerate(parts):
            pull = (self._method.embed(*part) * slopes[index]).sum()
            if index == 0:  # what the loss owes to the anchors themselves enters once
                pull = pull + losses.total
            self._engine.backward(pull * self._n_passes)  # the engine divides by it
            self._engine.step()
        return losses, total


def _cut(
    image_BCHW: Tensor, frozen: ImageFeatures | None, n_parts: int
) -> list[tuple[Tensor, ImageFeatures | None]]:
    """The batch in equal parts."""
    images = image_BCHW.chunk(n_parts)
    if frozen is None:
        return [(image, None) for image in images]
    columns = (column.chunk(n_parts) for column in frozen)
    return list(zip(images, map(ImageFeatures, *columns), strict=True))


def _import_deepspeed() -> Any:
    """Import late and quietly: it is slow, and a dry run or a zero-shot run has no need of it."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it warns that it found nothing else
    import deepspeed

    # Only inference_all_reduce would use this extension. Building it takes a compiler and half a
    # minute at the first start, and leaves a lock behind if it is killed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _lend_group(timeout_s: float) -> None:
    """Have DeepSpeed sum gradients in a group with our timeout; in its own it waits half an hour.

    It clones the world, because it cannot ask the world itself for ranks, and gives the clone no
    timeout.
    """
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = clone_of_world(timeout_s)
