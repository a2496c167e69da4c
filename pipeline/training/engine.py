"""The optimizer steps of one task on all ranks: the only door to deepspeed.

Every task has a new engine, built from the tensors that the task trains. DeepSpeed steps every
parameter that it is given, also one without a gradient, so it is given no other tensor.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.config import Config
from pipeline.distributed.collectives import gather, ordered_reduce_scatter, pairwise_sum
from pipeline.distributed.world import World, new_world_group
from pipeline.errors import DataError
from pipeline.imports import without_collection
from pipeline.methods.base import Losses, Method
from pipeline.model.backbone import ImageFeatures
from pipeline.rng import seed_torch
from pipeline.training.micro_batch import choose_micro_batch
from pipeline.training.schedule import learning_rate_factor
from pipeline.training.transfer import start_reading

_MOMENTS = ("exp_avg", "exp_avg_sq")

# Surrounds a part of a step, by its name: "forward", "communication", "backward" or "optimizer".
Span = Callable[[str], AbstractContextManager[None]]


def no_span(name: str) -> AbstractContextManager[None]:
    """Do nothing around a part of a step."""
    return nullcontext()


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings for ``world_size`` ranks, a pure function of the configuration.

    There is no precision block: the frozen towers are cast by the backbone, the learned tensors
    stay float32. Clipping is always written, since DeepSpeed's own default is 1.
    """
    return {
        "train_batch_size": config.data.global_batch,
        "train_micro_batch_size_per_gpu": config.data.global_batch // world_size,
        "gradient_accumulation_steps": 1,  # a step's parts are added up before it is asked
        "gradient_clipping": config.optim.gradient_clipping,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def layout_problem(config: Config, world_size: int) -> str | None:
    """Why this configuration cannot be spread over ``world_size`` ranks, or None."""
    batch = config.data.global_batch
    if batch % world_size:
        return (
            f"data.global_batch: {batch} images cannot be shared equally by {world_size} ranks; "
            f"use a multiple of {world_size} or another number of ranks"
        )
    return None


class Engine:
    """Trains ``method`` in one task of ``n_steps`` optimizer steps; benchmarks give a ``span``."""

    def __init__(
        self,
        method: Method,
        config: Config,
        world: World,
        n_steps: int,
        *,
        micro_batch: int | None = None,
        span: Span = no_span,
    ) -> None:
        self._method = method
        self._span = span
        self._run_seed = config.seed
        self._optim = config.optim
        self._n_steps = n_steps
        share = config.data.global_batch // world.world_size
        chosen = config.engine.micro_batch or micro_batch
        self.micro_batch = chosen or choose_micro_batch(method, share, world)
        self._recompute = config.engine.recompute
        self._world = world
        self._is_partitioned = config.engine.zero_stage > 0
        self._trainable = {n: p for n, p in method.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._trainable.values(),
            lr=config.optim.learning_rate,
            betas=config.optim.betas,
            eps=config.optim.epsilon,
            weight_decay=config.optim.weight_decay,
        )
        deepspeed = _import_deepspeed()
        _share_group(config.engine.timeout_s)
        self._engine, *_ = deepspeed.initialize(
            model=method,
            model_parameters=list(self._trainable.values()),
            optimizer=self._optimizer,
            config=deepspeed_config(config, world.world_size),
            dist_init_required=False,
        )

    def step(
        self,
        index: int,
        image_BCHW: Tensor | None,
        label_B: Tensor,
        features: ImageFeatures | None,
    ) -> Losses:
        """One optimizer step, the ``index``-th of the task, on this rank's share of a batch.

        The loss is that of the global batch. Images are embedded in parts of ``micro_batch``. Then
        come the loss and its gradient on all embeddings and per-image terms, then the gradient of
        each part, which is driven by the gradient of its own embeddings. No sum depends on which
        rank has a part, so any number of ranks with the same parts gives the same bits; see
        :func:`ordered_reduce_scatter`. Random draws of a method depend on the
        seed, the task, the step and the part.

        Nothing is changed if the loss is not finite. It is read after the work of the backward pass
        is asked for, so a GPU never waits for the host. The ``total`` that is returned is a copy
        without a graph in the host's memory.

        Source of the second pass with ``recompute``: GradCache, arXiv 2101.06983.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.learning_rate(index)
        parts = _split(image_BCHW, features, self.micro_batch)
        stream = (self._run_seed, self._method.task.index, index)

        def embed(part: int) -> Embedded:
            first = self._world.rank * len(label_B) + part * self.micro_batch
            seed_torch("step", *stream, first)
            return self._method.embed(*parts[part])

        with torch.set_grad_enabled(not self._recompute), self._span("forward"):
            embedded = [embed(part) for part in range(len(parts))]
        with self._span("communication"):
            gathered, label_N = _gather(embedded), gather(label_B)
        seed_torch("loss", *stream)
        with self._span("forward"):
            classifier_loss = self._method.classifier.loss(gathered, label_N)
            losses = self._method.losses(gathered, label_N).plus("classifier", classifier_loss)
        read_total = start_reading(losses.total)
        leaves = _tensors(gathered)
        with self._span("backward"):
            grads = self._gradients([losses.total], leaves)
        part_grads = [self._own_parts(grad_N) for grad_N in grads[: len(leaves)]]

        def gradient_of(part: int) -> Tensor:
            if self._recompute:
                embedded[part] = embed(part)
            outputs = _tensors(embedded[part])
            return _flat(self._gradients(outputs, [], [grads[part] for grads in part_grads]))

        with self._span("backward"):
            of_parts_X = pairwise_sum(range(len(parts)), gradient_of)
        with self._span("communication"):
            gradient_X = ordered_reduce_scatter(of_parts_X, _flat(grads[len(leaves) :]))
        total = read_total()  # waits for the forward pass, for nothing after it
        if total.isfinite():
            self._apply(gradient_X)
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

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state: ``step``, and ``<parameter>.<moment>`` in the parameter's shape.

        Empty before the first step. Every rank calls this and gets the complete state, for any
        number of ranks and any ZeRO stage.
        """
        stored = self._optimizer.param_groups[0]["params"]
        if stored[0] not in self._optimizer.state:
            return {}
        stored_state = [self._optimizer.state[parameter] for parameter in stored]
        sizes = [parameter.numel() for parameter in self._trainable.values()]
        state = {"step": stored_state[0]["step"].clone()}
        for moment in _MOMENTS:
            flat = torch.cat([each[moment].flatten() for each in stored_state])
            if self._is_partitioned:
                flat = gather(flat)[: sum(sizes)]
            for (name, parameter), part in zip(
                self._trainable.items(), flat.split(sizes), strict=True
            ):
                state[f"{name}.{moment}"] = part.view_as(parameter)
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the value of :meth:`optimizer_state`, on any layout.

        Raises:
            DataError: it is not that of these parameters.
        """
        if not state:
            return
        self._check_fits(state)
        stored = self._optimizer.param_groups[0]["params"]
        for parameter in stored:
            self._optimizer.state[parameter]["step"] = state["step"].clone()
        for moment in _MOMENTS:
            whole = torch.cat([state[f"{name}.{moment}"].flatten() for name in self._trainable])
            if self._is_partitioned:  # equal parts, the last one padded
                share = stored[0].numel()
                padding = share * self._world.world_size - len(whole)
                start = share * self._world.rank
                whole = F.pad(whole, (0, padding))[start : start + share]
            parts = whole.split([parameter.numel() for parameter in stored])
            for parameter, part in zip(stored, parts, strict=True):
                value = part.view_as(parameter).clone().to(parameter.device)
                self._optimizer.state[parameter][moment] = value

    def _check_fits(self, state: Mapping[str, Tensor]) -> None:
        wanted = {"step": torch.Size()}
        for name, parameter in self._trainable.items():
            wanted |= {f"{name}.{moment}": parameter.shape for moment in _MOMENTS}
        found = {name: tensor.shape for name, tensor in state.items()}
        for name in sorted(wanted | found):
            if wanted.get(name) != found.get(name):
                raise DataError(
                    f"the stored optimizer state {name} has shape {found.get(name)}, and this run "
                    f"needs {wanted.get(name)}; restore the snapshots from a copy, or remove the "
                    "output to start again"
                )

    def close(self) -> None:
        """Remove DeepSpeed's hooks and buffers; the method keeps its tensors."""
        self._engine.destroy()

    def _own_parts(self, grad_N: Tensor) -> tuple[Tensor, ...]:
        """The rows of this rank, cut into its parts."""
        return grad_N.chunk(self._world.world_size)[self._world.rank].split(self.micro_batch)

    def _gradients(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        grad_outputs: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Gradients on ``inputs``, then on the trained tensors; zero where nothing depends."""
        wanted = [*inputs, *self._trainable.values()]
        driven = [number for number, output in enumerate(outputs) if output.requires_grad]
        if not driven:
            return tuple(map(torch.zeros_like, wanted))
        return torch.autograd.grad(
            [outputs[number] for number in driven],
            wanted,
            grad_outputs and [grad_outputs[number] for number in driven],
            allow_unused=True,
            materialize_grads=True,
        )

    def _apply(self, gradient_X: Tensor) -> None:
        """Have DeepSpeed average this gradient over ranks, clip it and step."""
        parts = gradient_X.split([parameter.numel() for parameter in self._trainable.values()])
        products = zip(self._trainable.values(), parts, strict=True)
        with self._span("communication"):
            self._engine.backward(sum((p.flatten() * part_X).sum() for p, part_X in products))
        with self._span("optimizer"):
            self._engine.step()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _split(
    image_BCHW: Tensor | None, features: ImageFeatures | None, size: int
) -> list[tuple[Tensor | None, ImageFeatures | None]]:
    """The inputs of the method in parts of ``size`` images, of which the last may be smaller."""
    columns = [] if features is None else [column.split(size) for column in features]
    parts = [None] * len(columns[0]) if image_BCHW is None else image_BCHW.split(size)
    if not columns:
        return [(image, None) for image in parts]
    return list(zip(parts, map(ImageFeatures, *columns), strict=True))


def _tensors(embedded: Embedded) -> list[Tensor]:
    """The tensors that carry a gradient from the loss back to the parts of the batch."""
    return [embedded.embedding_BE, *embedded.terms.values()]


def _gather(embedded: Sequence[Embedded]) -> Embedded:
    """The global batch of this rank's parts and those of all others, as leaves of a new graph."""

    def leaf(values: Sequence[Tensor]) -> Tensor:
        return gather(torch.cat(list(values)).detach()).requires_grad_()

    return Embedded(
        leaf([each.embedding_BE for each in embedded]),
        {name: leaf([each.terms[name] for each in embedded]) for name in embedded[0].terms},
    )


@cache
def _import_deepspeed() -> Any:
    """Import late and quietly: it is slow, and a dry run or a zero-shot run has no need of it."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it warns that it found nothing else
    with without_collection():
        import deepspeed

    # Only inference_all_reduce would use this extension. Building it takes a compiler and half a
    # minute at the first start, and leaves a lock behind if it is killed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _share_group(timeout_s: float) -> None:
    """Have DeepSpeed sum gradients in a group with our timeout; in its own it waits half an hour.

    It clones the world, because it cannot ask the world itself for ranks, and gives the clone no
    timeout.
    """
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = new_world_group(timeout_s)
