"""The laws that every method obeys, as a function that you can call on your own::

    from pipeline.methods.contract import check_method

    check_method("my_package.my_module:MyMethod")

It learns two small tasks of random images on the demo's CLIP, in seconds, without ranks or files,
and more images of known classes if the method and its classifier declare ``takes_known_classes``.

Axes: B images · C classes · E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config import MethodConfig
from pipeline.errors import ContractError
from pipeline.methods import build_method, takes_known_classes
from pipeline.methods.base import Losses, Method, MethodContext, task_prompts
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.model.weights import load_clip
from pipeline.tasks import Task, split_classes
from pipeline.templates import TextConfig

_DEMO_CLIP = Path(__file__).resolve().parents[1] / "demo" / "clip"
_TASKS = split_classes(range(6), ["ant", "bell", "cup", "drum", "egg", "fork"], classes_per_task=3)
_ARRIVAL = Task(index=2, first=6, labels=(), names=(), known=(1, 3, 4), group=1)
_N_IMAGES = 6  # of a batch
_TOLERANCE = 1e-4  # absolute and relative, of the same sums in another order
_STEP = 0.1  # of plain gradient descent, large enough to see

Law = Callable[["_Bench"], "str | None"]


def check_method(
    name: str, options: Mapping[str, Any] | None = None, *, clip: FrozenClip | None = None
) -> None:
    """Check the method ``name``, one of ``METHODS`` or ``package.module:Class``, with ``options``.

    Raises:
        ContractError: laws are broken; one line for each, with its remedy.
        ConfigError: there is no such method, or it does not know an option.
    """
    clip = clip or load_clip(f"local-dir:{_DEMO_CLIP}", None, device=torch.device("cpu"))
    bench = _Bench(MethodConfig(name=name, options={name: dict(options or {})}), clip)
    broken = [problem for law in _LAWS if (problem := law(bench))]
    if broken:
        raise ContractError("\n".join(f"{name}: {problem}" for problem in broken))


class _Bench:
    """Builds a new method for each law and learns the small tasks with it."""

    def __init__(self, config: MethodConfig, clip: FrozenClip) -> None:
        self.config = config
        self.clip = clip
        self.tasks = (*_TASKS, _ARRIVAL) if all(takes_known_classes(config).values()) else _TASKS

    def build(self) -> Method:
        """The method before its first task."""
        prompts_of = partial(task_prompts, TextConfig())
        context = MethodContext(self.clip, prompts_of, ensemble=False, seed=1)
        return build_method(self.config, context)

    def learned(self, n_tasks: int) -> Method:
        """The method after some tasks, two steps each."""
        method = self.build()
        for task in self.tasks[:n_tasks]:
            self.learn(method, task)
        return method

    def learn(self, method: Method, task: Task) -> None:
        """One task: fits and steps as in a run."""
        method.begin_task(task)
        self.fit(method, "start", task)
        for number in range(2):
            if trainable(method):
                self.step(method, task, number)
        self.fit(method, "end", task)
        method.end_task(task)

    @torch.no_grad()
    def fit(self, method: Method, moment: Any, task: Task) -> None:
        """Show the task's images, if the method reads them at this moment."""
        if moment in method.fits:
            batches = (self.batch(task, 40 + number) for number in range(2))
            images = [(method.encode(image, frozen), label) for image, label, frozen in batches]
            method.fit(moment, images)

    def step(self, method: Method, task: Task, seed: int) -> None:
        """One step of plain gradient descent."""
        self.losses(method, task, seed).total.backward()
        with torch.no_grad():
            for parameter in trainable(method).values():
                if parameter.grad is not None:
                    parameter -= _STEP * parameter.grad
                parameter.grad = None

    def losses(self, method: Method, task: Task, seed: int) -> Losses:
        """The losses of one batch in one graph."""
        (image_BCHW, features), label_B = self.inputs(method, task, seed)
        return method(image_BCHW, label_B, features)

    def inputs(
        self, method: Method, task: Task, seed: int
    ) -> tuple[tuple[Tensor | None, ImageFeatures | None], Tensor]:
        """The arguments of ``embed`` for one batch in a step, and the class numbers."""
        image_BCHW, label_B, frozen = self.batch(task, seed)
        wanted = method.inputs
        return (image_BCHW if wanted.images else None, frozen if wanted.features else None), label_B

    @torch.no_grad()
    def batch(self, task: Task, seed: int) -> tuple[Tensor, Tensor, ImageFeatures]:
        """Random images, their class numbers and their frozen features."""
        stream = torch.Generator().manual_seed(1000 * task.index + seed)
        size = self.clip.image_size
        shape = (_N_IMAGES, 3, size, size)
        image_BCHW = torch.randint(0, 256, shape, generator=stream, dtype=torch.uint8)
        label_B = torch.tensor(task.classes)[torch.arange(_N_IMAGES) % len(task.classes)]
        return image_BCHW, label_B, self.clip.encode_image(image_BCHW)

    @torch.no_grad()
    def logits(self, method: Method, rows: slice = slice(None)) -> Tensor:
        """Scores of some of the images of one batch."""
        image_BCHW, _, frozen = self.batch(_TASKS[0], 77)
        return method.logits(method.encode(image_BCHW[rows], frozen.rows(rows)))


def trainable(method: Method) -> dict[str, Tensor]:
    """The parameters that the present task trains."""
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


def _only_trained_tensors_get_a_gradient(bench: _Bench) -> str | None:
    for task in bench.tasks:
        method = bench.learned(task.index)
        method.begin_task(task)
        names = trainable(method)
        if names:
            losses = bench.losses(method, task, 0)
            if not torch.isfinite(losses.total):
                return f"the loss of task {task.index + 1} is {float(losses.total)}"
            losses.total.backward()
            lacking = [name for name, parameter in names.items() if parameter.grad is None]
            if lacking:
                return (
                    f"{lacking[0]} is trained in task {task.index + 1} and gets no gradient; use "
                    "it in embed or losses, or set requires_grad_(False)"
                )
    if any(parameter.grad is not None for parameter in bench.clip.clip.parameters()):
        return "the backbone got a gradient; it is frozen"
    return None


def _terms_add_up(bench: _Bench) -> str | None:
    method = bench.build()
    method.begin_task(_TASKS[0])
    if not trainable(method):
        return None
    losses = bench.losses(method, _TASKS[0], 0)
    if torch.allclose(losses.total, sum(losses.terms.values(), start=torch.zeros(()))):
        return None
    return "the terms of a loss do not add up to its total; return Losses.of(terms)"


def _losses_read_their_arguments_alone(bench: _Bench) -> str | None:
    method = bench.build()
    method.begin_task(_TASKS[0])
    if not trainable(method):
        return None
    inputs, label_B = bench.inputs(method, _TASKS[0], 0)
    others, _ = bench.inputs(method, _TASKS[0], 1)
    totals = []
    for is_followed in (False, True):
        embedded = method.embed(*inputs)
        if is_followed:  # by another rank's part, or the second pass of engine.recompute
            method.embed(*others)
        totals.append(method.losses(embedded, label_B).total.detach())
    if torch.equal(*totals):
        return None
    return (
        "losses depends on state that embed has left behind, which is another part's on several "
        "ranks; return it from embed as a term of Embedded.terms"
    )


def _one_logit_per_class(bench: _Bench) -> str | None:
    for task in bench.tasks:
        found, expected = bench.logits(bench.learned(task.index + 1)).shape, task.last
        if found != (_N_IMAGES, expected):
            return f"logits have the shape {tuple(found)} instead of ({_N_IMAGES}, {expected})"
    return None


def _predictions_are_of_one_image(bench: _Bench) -> str | None:
    method = bench.learned(2)
    together_BC = bench.logits(method)
    alone_BC = torch.cat([bench.logits(method, slice(row, row + 1)) for row in range(_N_IMAGES)])
    if torch.allclose(together_BC, alone_BC, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    return "a prediction depends on the other images of its batch; use no statistics of a batch"


def _other_tensors_stay(bench: _Bench) -> str | None:
    for task, words in zip(bench.tasks[1:], ("second", "third"), strict=False):
        method = bench.learned(task.index)
        before = {name: value.clone() for name, value in method.state_dict().items()}
        bench.learn(method, task)
        now, allowed = method.state_dict(), _changeable(bench, task)
        for name, value in before.items():
            if name not in now:
                return f"{name} is gone after the {words} task; keep the tensors of earlier tasks"
            if name not in allowed and not torch.equal(value, now[name]):
                return (
                    f"the {words} task changed {name}, which it does not train; freeze it, or make "
                    "it a buffer if every task may change it"
                )
    return None


def _changeable(bench: _Bench, task: Task) -> set[str]:
    """The names of the tensors that ``task`` may change."""
    method = bench.learned(task.index)
    method.begin_task(task)
    return method.changeable_names()


def _state_restores_the_method(bench: _Bench) -> str | None:
    learned, again = bench.build(), bench.build()
    for task in bench.tasks:
        before = set(learned.state_dict())
        bench.learn(learned, task)
        changed = _changeable(bench, task) | (learned.state_dict().keys() - before)
        state = {k: v.clone() for k, v in learned.state_dict().items() if k in changed}
        again.restore_task(task, state)
    if torch.equal(bench.logits(learned), bench.logits(again)):
        return None
    return (
        "a method restored from its stored tensors predicts otherwise; keep everything that is "
        "learned in parameters and buffers, made in begin_task"
    )


def _two_runs_are_equal(bench: _Bench) -> str | None:
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        states.append(bench.learned(2).state_dict())
    for name, value in states[0].items():
        if not torch.equal(value, states[1][name]):
            return f"{name} differs between two runs with one seed; draw from torch_stream(…, seed)"
    return None


def _tokens_stand_for_pixels(bench: _Bench) -> str | None:
    method = bench.learned(1)
    first_layer = method.inputs.first_layer
    if not first_layer:
        return None
    image_BCHW, _, frozen = bench.batch(_TASKS[0], 77)
    token_BSV = bench.clip.lower_blocks(image_BCHW, first_layer)
    with torch.no_grad():
        of_pixels, of_tokens = (method.encode(each, frozen) for each in (image_BCHW, token_BSV))
    if torch.equal(of_pixels.embedding_BE, of_tokens.embedding_BE):
        return None
    return (
        f"embed gives other embeddings for the tokens in front of block {first_layer} than for "
        "pixels; pass Inputs.first_layer to encode_image"
    )


_LAWS: tuple[Law, ...] = (
    _only_trained_tensors_get_a_gradient,
    _terms_add_up,
    _losses_read_their_arguments_alone,
    _one_logit_per_class,
    _predictions_are_of_one_image,
    _tokens_stand_for_pixels,
    _other_tensors_stay,
    _state_restores_the_method,
    _two_runs_are_equal,
)
