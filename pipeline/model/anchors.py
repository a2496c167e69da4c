"""Anchors: one text embedding per class seen so far.

Axes: C classes · E joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.model.backbone import FrozenClip, PromptTokens
from pipeline.model.class_rows import initial_rows, newest_rows
from pipeline.model.prompts import TextualPromptOptions, TextualPrompts, unit
from pipeline.tasks import Task

OldAnchors = Literal["reencoded", "frozen"]


class Anchors(Protocol):
    """One unit vector per class seen so far."""

    def begin_task(self, task: Task) -> None:
        """Add the classes of ``task``."""

    def end_task(self, task: Task) -> None:
        """Finish ``task``: its anchors become those of an earlier task."""

    def current(self) -> Tensor:
        """``anchor_CE`` of the classes that the newest task has images of, as training sees them.

        They are in the order of ``task.classes``: known classes first.
        """

    def old(self) -> Tensor:
        """``anchor_CE`` of the classes of earlier tasks, without gradient."""

    def unprompted(self) -> Tensor:
        """``anchor_CE`` of every class so far without learned tensors."""

    def for_evaluation(self) -> Tensor:
        """``anchor_CE`` of every class so far, as evaluation uses them."""


class FixedAnchors(nn.Module):
    """Anchors from the frozen text tower, each encoded once.

    Training uses the first template. Evaluation uses it too, or with ``ensemble`` the mean over all
    templates.
    """

    def __init__(
        self,
        clip: FrozenClip,
        prompts_of: Callable[[Task], Sequence[Sequence[str]]],
        *,
        ensemble: bool = False,
    ) -> None:
        super().__init__()
        self._clip = clip
        self._prompts_of = prompts_of
        self._ensemble = ensemble
        self._of_first_template: list[Tensor] = []  # per task with new classes, C×E
        self._over_templates: list[Tensor] = []  # per task with new classes, C×E
        self._of_task: list[Tensor] = []  # per task, C×E of all classes that it has images of
        self._n_old = 0  # classes of earlier tasks

    @torch.no_grad()
    def begin_task(self, task: Task) -> None:
        """Encode the names of the new classes of ``task``."""
        self._n_old = task.first
        if task.names:
            prompts = self._prompts_of(task)
            n_templates = len(prompts[0]) if self._ensemble else 1
            by_template = [
                unit(self._clip.encode_text(self._clip.tokenize([p[index] for p in prompts])))
                for index in range(n_templates)
            ]
            self._of_first_template.append(by_template[0])
            self._over_templates.append(unit(torch.stack(by_template).mean(dim=0)))
        self._of_task.append(self.unprompted()[list(task.classes)])

    def end_task(self, task: Task) -> None:
        """Do nothing: fixed anchors do not change."""

    def of_task(self, index: int) -> Tensor:
        """``anchor_CE`` of the classes that task ``index`` has images of, as training sees them."""
        return self._of_task[index]

    def current(self) -> Tensor:
        """``anchor_CE`` of the classes of the newest task, as training sees them."""
        return self._of_task[-1]

    def old(self) -> Tensor:
        """``anchor_CE`` of the classes of earlier tasks, as training sees them."""
        return self.unprompted()[: self._n_old]

    def unprompted(self) -> Tensor:
        """``anchor_CE`` of every class so far without learned tensors."""
        return torch.cat(self._of_first_template)

    def for_evaluation(self) -> Tensor:
        """``anchor_CE`` of every class so far, as evaluation uses them."""
        return torch.cat(self._over_templates)


class LearnedAnchors(nn.Module):
    """Trainable anchors: learned context tokens in the text tower, residuals, or both.

    ``w_c = unit(unit(g(T, name_c)) + δ_c)``. The residual δ_c of a class starts at zero, is
    trained in the task of the class, and is frozen after it. The anchors of earlier tasks have no
    gradient. ``old`` is their rule: ``reencoded`` with the current context, at the start of each
    task and for evaluation, or ``frozen`` as they were at the end of their task.

    A task with further images of a known class trains its anchor again: a new residual starts from
    the last one, and from then on the class belongs to that task.
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
        self._tasks: list[Task] = []
        self._names: list[str] = []  # of each class
        self._prompts: list[PromptTokens] = []  # per task
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
        """Freeze the anchors of earlier tasks and add trainable tensors for ``task``."""
        if self._tasks:
            self._old_CE = newest_rows(self._encode_tasks(len(self._tasks)), self._tasks)
        self.fixed.begin_task(task)
        self._tasks.append(task)
        self._names.extend(task.names)
        texts = [f"{self._names[number]}." for number in task.classes]
        self._prompts.append(self._clip.tokenize(texts))
        if self.prompts is not None:
            self.prompts.begin_task()
        self.residuals.requires_grad_(False)
        if self._has_residuals:
            initial_CE = initial_rows([*self.residuals], self._tasks, self._clip.joint_width)
            self.residuals.append(nn.Parameter(initial_CE.to(self._clip.device)))
        self.to(self._clip.device)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Store the anchors of this task if the rule is ``frozen``."""
        if self._old_rule == "frozen":
            self.kept.append(nn.Parameter(self.current().clone(), requires_grad=False))

    def current(self) -> Tensor:
        """``anchor_CE`` of the newest task's classes, the only anchors with a gradient.

        Each call runs the text tower on these classes.
        """
        return self._encode(len(self._tasks) - 1)

    def old(self) -> Tensor:
        """``anchor_CE`` of the classes of earlier tasks, as at the start of this one."""
        return self._old_CE

    def unprompted(self) -> Tensor:
        """``anchor_CE`` of every class so far without learned tensors."""
        return self.fixed.unprompted()

    @torch.no_grad()
    def for_evaluation(self) -> Tensor:
        """``anchor_CE`` of every class so far, as evaluation uses them."""
        earlier = self._encode_tasks(len(self._tasks) - 1)
        return newest_rows([*earlier, self.current()], self._tasks)

    @torch.no_grad()
    def _encode_tasks(self, n_tasks: int) -> list[Tensor]:
        """Anchors of the classes of each of the first ``n_tasks`` tasks."""
        if self._old_rule == "frozen":
            return [anchor_CE.detach() for anchor_CE in self.kept[:n_tasks]]
        return [self._encode(index) for index in range(n_tasks)]

    def _encode(self, index: int) -> Tensor:
        """Anchors of the classes of task ``index``, from the current tensors."""
        if self.prompts is None:
            anchor_CE = self.fixed.of_task(index)
        else:
            context_DLW = self.prompts.context(index)
            anchor_CE = unit(self._clip.encode_text(self._prompts[index], context_DLW))
        if not self._has_residuals:
            return anchor_CE
        return unit(anchor_CE + self.residuals[index])
