"""Anchors: one textual prototype per class seen so far.

Axes: C classes · E joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.model.backbone import FrozenClip, PromptTokens
from pipeline.model.prompts import TextualPromptOptions, TextualPrompts, unit
from pipeline.tasks import Task

OldAnchors = Literal["reencoded", "frozen"]


class Anchors(Protocol):
    """One unit vector per class seen so far; ``FixedAnchors`` or ``LearnedAnchors``."""

    def begin_task(self, task: Task) -> None:
        """Add the classes of ``task``."""

    def end_task(self, task: Task) -> None:
        """Consolidate ``task``."""

    def current(self) -> Tensor:
        """``anchor_CE`` of the newest task's classes, as training sees them."""

    def old(self) -> Tensor:
        """``anchor_CE`` of the classes of earlier tasks, without gradient."""

    def unprompted(self) -> Tensor:
        """``anchor_CE`` of every class so far without anything learned."""

    def for_evaluation(self) -> Tensor:
        """``anchor_CE`` of every class so far, as predictions use them."""


class FixedAnchors(nn.Module):
    """Anchors straight from the frozen text tower, each encoded once.

    Training uses the first template; ``ensemble`` tests with the mean over all.
    """

    def __init__(
        self,
        clip: FrozenClip,
        prompts_of: Callable[[str], Sequence[str]],
        *,
        ensemble: bool = False,
    ) -> None:
        super().__init__()
        self._clip = clip
        self._prompts_of = prompts_of
        self._ensemble = ensemble
        self._first: list[Tensor] = []  # per task, C×E
        self._mean: list[Tensor] = []  # per task, C×E

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        """Encode the names of ``task``."""
        prompts = [self._prompts_of(name) for name in task.names]
        n_templates = len(prompts[0]) if self._ensemble else 1
        by_template = [
            unit(self._clip.encode_text(self._clip.tokenize([p[index] for p in prompts])))
            for index in range(n_templates)
        ]
        self._first.append(by_template[0])
        self._mean.append(unit(torch.stack(by_template).mean(dim=0)))

    def end_task(self, task: Task) -> None:
        """Fixed anchors have nothing to keep."""

    def of_task(self, index: int) -> Tensor:
        """``anchor_CE`` of the classes that task ``index`` brought, as training sees them."""
        return self._first[index]

    def current(self) -> Tensor:
        """``anchor_CE`` of the newest task's classes, as training sees them."""
        return self._first[-1]

    def old(self) -> Tensor:
        """``anchor_CE`` of the classes of earlier tasks, as training sees them."""
        return torch.cat([self._first[0][:0], *self._first[:-1]])

    def unprompted(self) -> Tensor:
        """``anchor_CE`` of every class so far without anything learned."""
        return torch.cat(self._first)

    def for_evaluation(self) -> Tensor:
        """``anchor_CE`` of every class so far, as prediction uses them."""
        return torch.cat(self._mean)


class LearnedAnchors(nn.Module):
    """Anchors that move: learned context tokens in the text tower, residuals, or both.

    ``w_c = unit(unit(g(T, name_c)) + δ_c)``. The residual δ_c of a class starts at zero, is
    trained in the task that brings the class, and frozen after it. The anchors of earlier tasks
    carry no gradient; ``old`` says whether they follow the context as it is tuned on
    (``reencoded``, at the start of each task and for testing) or stay as they were learned
    (``frozen``).
    """

    def __init__(
        self,
        clip: FrozenClip,
        fixed: FixedAnchors,
        *,
        textual_prompts: TextualPromptOptions | None = None,
        residuals: bool = False,
        old: OldAnchors = "reencoded",
        seed: int,
    ) -> None:
        super().__init__()
        self._clip = clip
        self._old_rule = old
        self._has_residuals = residuals
        self._names: list[PromptTokens] = []  # per task
        self._old_CE = torch.empty(0, clip.joint_width, device=clip.device)
        self.fixed = fixed
        self.residuals = nn.ParameterList()  # per task, C×E
        self.kept = nn.ParameterList()  # per finished task, C×E, 'frozen' only
        self.prompts: TextualPrompts | None = None
        if textual_prompts is not None:
            words = clip.embed_words(textual_prompts.initial_words)
            self.prompts = TextualPrompts(
                textual_prompts, words, layers=clip.text_layers, seed=seed
            )

    def begin_task(self, task: Task) -> None:
        """Fix the anchors of earlier tasks and add what the classes of ``task`` may learn."""
        self._old_CE = self._encode_first(len(self._names))
        self.fixed.begin_task(task)
        self._names.append(self._clip.tokenize([f"{name}." for name in task.names]))
        if self.prompts is not None:
            self.prompts.begin_task()
        self.residuals.requires_grad_(False)
        if self._has_residuals:
            zero_CE = torch.zeros(len(task.names), self._clip.joint_width)
            self.residuals.append(nn.Parameter(zero_CE.to(self._clip.device)))
        self.to(self._clip.device)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Keep this task's anchors as they are now, if they are to stay so."""
        if self._old_rule == "frozen":
            self.kept.append(nn.Parameter(self.current().clone(), requires_grad=False))

    def current(self) -> Tensor:
        """``anchor_CE`` of the newest task's classes, the only ones with a gradient.

        Each call runs them through the text tower.
        """
        return self._encode(len(self._names) - 1)

    def old(self) -> Tensor:
        """``anchor_CE`` of the classes of earlier tasks, as at the start of this one."""
        return self._old_CE

    def unprompted(self) -> Tensor:
        """``anchor_CE`` of every class so far without anything learned."""
        return self.fixed.unprompted()

    @torch.no_grad()
    def for_evaluation(self) -> Tensor:
        """``anchor_CE`` of every class so far, as prediction uses them."""
        return torch.cat([self._encode_first(len(self._names) - 1), self.current()])

    @torch.no_grad()
    def _encode_first(self, n_tasks: int) -> Tensor:
        """Anchors of the classes that the first ``n_tasks`` tasks brought."""
        if self._old_rule == "frozen":
            old = [anchor_CE.detach() for anchor_CE in self.kept[:n_tasks]]
        else:
            old = [self._encode(index) for index in range(n_tasks)]
        return torch.cat([torch.empty(0, self._clip.joint_width, device=self._clip.device), *old])

    def _encode(self, index: int) -> Tensor:
        """Anchors of the classes that task ``index`` brought, with the tensors as they are."""
        if self.prompts is None:
            anchor_CE = self.fixed.of_task(index)
        else:
            context_DLW = self.prompts.context(index)
            anchor_CE = unit(self._clip.encode_text(self._names[index], context_DLW))
        if not self._has_residuals:
            return anchor_CE
        return unit(anchor_CE + self.residuals[index])
