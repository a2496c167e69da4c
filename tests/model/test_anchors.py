"""Which anchors are encoded, which change in training, and which have a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.model.anchors import FixedAnchors, LearnedAnchors
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompts import TextualPromptOptions, unit
from pipeline.tasks import Task
from tests.tiny import JOINT_WIDTH, tiny_tasks

TEMPLATES = ("a photo of a {}.", "art of the {}.", "{}")


def seen(anchors: FixedAnchors | LearnedAnchors) -> Tensor:
    """Every anchor so far, as training sees it."""
    return torch.cat([anchors.old(), anchors.current()])


def prompts_of(task: Task) -> list[list[str]]:
    return [[template.format(name) for template in TEMPLATES] for name in task.names]


def fixed(clip: FrozenClip, *, ensemble: bool = False) -> FixedAnchors:
    return FixedAnchors(clip, prompts_of, ensemble=ensemble)


def learned(clip: FrozenClip, **options) -> LearnedAnchors:
    return LearnedAnchors(clip, fixed(clip), seed=1, **options)


def change(anchors: LearnedAnchors, seed: int = 0) -> None:
    """Change every trainable tensor, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in anchors.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def encode(clip: FrozenClip, texts: list[str]) -> Tensor:
    return unit(clip.encode_text(clip.tokenize(texts)))


@pytest.fixture
def tasks() -> tuple[Task, ...]:
    return tiny_tasks()


def test_fixed_anchors_are_the_first_template_in_training(tiny_clip, tasks):
    anchors = fixed(tiny_clip, ensemble=True)
    for task in tasks:
        anchors.begin_task(task)
        names = [name for seen in tasks[: task.index + 1] for name in seen.names]
        expected_CE = encode(tiny_clip, [f"a photo of a {name}." for name in names])
        torch.testing.assert_close(seen(anchors), expected_CE, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            anchors.current(), expected_CE[task.first :], rtol=1e-5, atol=1e-6
        )
        assert torch.equal(anchors.of_task(task.index), anchors.current())


def test_ensemble_normalises_averages_and_normalises_again(tiny_clip, tasks):
    anchors = fixed(tiny_clip, ensemble=True)
    anchors.begin_task(tasks[0])
    for prompts, anchor_E in zip(prompts_of(tasks[0]), anchors.for_evaluation(), strict=True):
        expected_E = unit(encode(tiny_clip, prompts).mean(dim=0))
        torch.testing.assert_close(anchor_E, expected_E, rtol=1e-5, atol=1e-6)


def test_without_ensemble_evaluation_and_training_use_the_same_anchors(tiny_clip, tasks):
    anchors = fixed(tiny_clip)
    anchors.begin_task(tasks[0])
    torch.testing.assert_close(anchors.for_evaluation(), seen(anchors), rtol=1e-6, atol=1e-7)


def test_residuals_start_at_zero_and_change_the_anchor(tiny_clip, tasks):
    anchors = learned(tiny_clip, residuals=True)
    anchors.begin_task(tasks[0])
    torch.testing.assert_close(anchors.current(), anchors.unprompted(), rtol=1e-6, atol=1e-7)
    change(anchors)
    expected_CE = unit(anchors.unprompted() + anchors.residuals[0])
    torch.testing.assert_close(anchors.current(), expected_CE)


def test_residuals_of_earlier_tasks_are_frozen_and_still_added(tiny_clip, tasks):
    anchors = learned(tiny_clip, residuals=True)
    for task in tasks[:2]:
        anchors.begin_task(task)
        change(anchors, seed=task.index)
        anchors.end_task(task)
    old, new = anchors.residuals
    assert not old.requires_grad and new.requires_grad
    assert old.shape == new.shape == (3, JOINT_WIDTH)
    expected_CE = unit(anchors.unprompted() + torch.cat([old, new]))
    torch.testing.assert_close(anchors.for_evaluation(), expected_CE)


def learn_two_tasks(clip: FrozenClip, tasks: tuple[Task, ...], **options) -> list[Tensor]:
    """The anchors for evaluation after each of two tasks, both of which change the context."""
    anchors = learned(clip, textual_prompts=TextualPromptOptions(length=2), **options)
    stages = []
    for task in tasks[:2]:
        anchors.begin_task(task)
        change(anchors, seed=task.index)
        anchors.end_task(task)
        stages.append(anchors.for_evaluation())
    return stages


def test_reencoded_anchors_follow_the_context(tiny_clip, tasks):
    first_CE, second_CE = learn_two_tasks(tiny_clip, tasks, old="reencoded")
    assert second_CE.shape == (6, JOINT_WIDTH)
    assert not torch.allclose(second_CE[:3], first_CE, atol=1e-3)


@pytest.mark.parametrize("residuals", [False, True])
def test_frozen_anchors_stay_as_they_were_learned(tiny_clip, tasks, residuals):
    first_CE, second_CE = learn_two_tasks(tiny_clip, tasks, old="frozen", residuals=residuals)
    assert torch.equal(second_CE[:3], first_CE)


def test_context_of_each_task_keeps_its_anchors(tiny_clip, tasks):
    options = TextualPromptOptions(length=2, growth="per_task")
    anchors = learned(tiny_clip, textual_prompts=options)
    stages = []
    for task in tasks[:2]:
        anchors.begin_task(task)
        change(anchors, seed=task.index)
        anchors.end_task(task)
        stages.append(anchors.for_evaluation())
    assert torch.equal(stages[1][:3], stages[0])


@pytest.mark.parametrize("old", ["reencoded", "frozen"])
def test_only_the_newest_anchors_have_a_gradient(tiny_clip, tasks, old):
    """must keep old classes out of the graph, so that the text tower does not run on them"""
    options = TextualPromptOptions(length=2)
    anchors = learned(tiny_clip, textual_prompts=options, residuals=True, old=old)
    for task in tasks[:2]:
        anchors.begin_task(task)
        change(anchors, seed=task.index)
        if task.index == 0:
            anchors.end_task(task)
    seen_CE = seen(anchors)
    trainable = [parameter for parameter in anchors.parameters() if parameter.requires_grad]
    old_gradients = torch.autograd.grad(seen_CE[:3].square().sum(), trainable, retain_graph=True)
    assert all(float(gradient.abs().max()) == 0.0 for gradient in old_gradients)
    new_gradients = torch.autograd.grad((seen_CE[3:] * torch.arange(JOINT_WIDTH)).sum(), trainable)
    assert all(float(gradient.abs().max()) > 0.0 for gradient in new_gradients)


@pytest.mark.parametrize("old", ["reencoded", "frozen"])
def test_old_anchors_in_training_are_those_at_the_start_of_the_task(tiny_clip, tasks, old):
    anchors = learned(tiny_clip, textual_prompts=TextualPromptOptions(length=2), old=old)
    anchors.begin_task(tasks[0])
    change(anchors)
    anchors.end_task(tasks[0])
    at_end_CE = anchors.for_evaluation()
    anchors.begin_task(tasks[1])
    change(anchors, seed=1)
    assert torch.equal(anchors.old(), at_end_CE)


def test_every_anchor_has_length_one(tiny_clip, tasks):
    for anchors in (
        fixed(tiny_clip, ensemble=True),
        learned(tiny_clip, residuals=True, textual_prompts=TextualPromptOptions()),
    ):
        for task in tasks[:2]:
            anchors.begin_task(task)
            if isinstance(anchors, LearnedAnchors):
                change(anchors)
            anchors.end_task(task)
        for anchor_CE in (seen(anchors), anchors.for_evaluation(), anchors.unprompted()):
            torch.testing.assert_close(anchor_CE.norm(dim=1), torch.ones(6))
