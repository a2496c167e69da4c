"""The label space of all tasks, against the definition written as loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.methods.base import Method
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompts import unit
from pipeline.training.label_space import AllClasses, SeenClasses, TaskClasses
from tests.tiny import JOINT_WIDTH, build_context, draw_batch, tiny_tasks
from tests.variants import build_variant

TASKS = FIRST, SECOND, _ = tiny_tasks()
N_ALL, N_IMAGES = 7, 41


def learned(clip: FrozenClip, variant: str, n_tasks: int) -> Method:
    """A method after some tasks, whose trained tensors are random."""
    method = build_variant(variant, clip)
    torch.manual_seed(3)
    for task in TASKS[:n_tasks]:
        method.begin_task(task)
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
            image_BCHW, label_B, features = draw_batch(clip, task, 12, seed=task.index)
            images = [(method.encode(image_BCHW, features), label_B)]
            for moment in method.fits:
                method.fit(moment, images)
        method.end_task(task)
    return method.eval()


def name_anchors(clip: FrozenClip) -> Tensor:
    prompts_of = build_context(clip).prompts_of
    texts = [prompts[0] for task in TASKS for prompts in prompts_of(task)]
    with torch.no_grad():
        return unit(clip.encode_text(clip.tokenize(texts)))


@torch.no_grad()
def encode(method: Method) -> Embedded:
    """Images near the anchor of each class in turn, and less near to the others."""
    image_BCHW, _, features = draw_batch(method.clip, FIRST, N_IMAGES, seed=9)
    embedded = method.encode(image_BCHW, features)
    generator = torch.Generator().manual_seed(1)
    noise_BE = torch.randn(N_IMAGES, JOINT_WIDTH, generator=generator)
    dual_AE = unit(torch.linalg.pinv(name_anchors(method.clip)).T)  # at right angles to the others
    near_BE = dual_AE[torch.arange(N_IMAGES) % N_ALL] + 0.03 * noise_BE
    return embedded._replace(embedding_BE=unit(near_BE))


@torch.no_grad()
def nearest_then_classifier(method: Method, embedded: Embedded) -> list[int]:
    """RAIL's rule for each image: CLIP over all names decides whether the classifier is asked."""
    anchor_AE, n_learned = name_anchors(method.clip), method.task.last
    if method.classifier.anchor_CE is not None:
        anchor_AE[:n_learned] = method.classifier.anchor_CE
    chosen = []
    for row in range(N_IMAGES):
        cosines = [float(embedded.embedding_BE[row] @ anchor_E) for anchor_E in anchor_AE]
        nearest = max(range(N_ALL), key=cosines.__getitem__)
        if nearest < n_learned:
            scores = method.logits(embedded)[row].tolist()
            nearest = max(range(n_learned), key=scores.__getitem__)
        chosen.append(nearest)
    return chosen


@pytest.mark.parametrize("variant", ["zeroshot", "tppt_vt", "simplecil", "ranpac", "tppt_ridge"])
@pytest.mark.parametrize("n_tasks", [1, 2])
def test_prediction_is_that_of_the_definition(tiny_clip, variant, n_tasks):
    """must give learned and unlearned classes, each by the rule of its classifier"""
    method = learned(tiny_clip, variant, n_tasks)
    embedded = encode(method)
    scores = AllClasses(method, name_anchors(tiny_clip)).scores(embedded, FIRST)
    assert scores.logits_BX.shape == scores.probability_BX.shape == (N_IMAGES, N_ALL)
    chosen = scores.logits_BX.argmax(dim=1).tolist()
    assert chosen == nearest_then_classifier(method, embedded)
    n_learned = sum(number < method.task.last for number in chosen)
    assert 2 < n_learned < N_IMAGES - 2
    assert scores.probability_BX.argmax(dim=1).tolist() == chosen
    torch.testing.assert_close(scores.probability_BX.sum(dim=1), torch.ones(N_IMAGES))


def test_worked_example(tiny_clip):
    """must ask the class means alone for images near a learned name, and never for the others"""
    method = learned(tiny_clip, "simplecil", 1)
    axis_EE = torch.eye(JOINT_WIDTH)
    logits_BC = torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.2, 0.1], [0.9, 0.2, 0.1]]).double()
    method.logits = lambda embedded: logits_BC  # type: ignore[method-assign]
    embedded = Embedded(unit(torch.stack([axis_EE[0], axis_EE[1] + axis_EE[6] / 2, axis_EE[5]])))
    scores = AllClasses(method, axis_EE[:N_ALL]).scores(embedded, FIRST)
    assert scores.logits_BX.argmax(dim=1).tolist() == [2, 0, 5]
    expected_C = (method.classifier.probability_scale * logits_BC[0]).softmax(dim=0)
    torch.testing.assert_close(scores.probability_BX[0, :3].double(), expected_C)
    assert scores.probability_BX[:2, 3:].count_nonzero() == 0
    scale = tiny_clip.logit_scale
    expected_A = (scale * axis_EE[5, :N_ALL]).softmax(dim=0)
    torch.testing.assert_close(scores.probability_BX[2], expected_A)


@pytest.mark.parametrize("variant", ["tppt_vt", "ranpac", "tppt_ridge"])
def test_all_classes_are_the_seen_ones_after_the_last_task(tiny_clip, variant):
    method = learned(tiny_clip, variant, len(TASKS))
    embedded = encode(method)
    every = AllClasses(method, name_anchors(tiny_clip)).scores(embedded, FIRST)
    seen = SeenClasses(method).scores(embedded, FIRST)
    assert all(map(torch.equal, every, seen))


Space = Callable[[Method], SeenClasses]


@pytest.mark.parametrize(
    ("space", "possible"),
    [(SeenClasses, range(6)), (TaskClasses, SECOND.classes)],
    ids=["seen", "task"],
)
def test_other_spaces_have_their_classes_alone(tiny_clip, space: Space, possible):
    method = learned(tiny_clip, "zeroshot", 2)
    scores = space(method).scores(encode(method), SECOND)
    assert space(method).size(SECOND, 6) == len(possible)
    is_possible_C = torch.isin(torch.arange(6), torch.tensor([*possible]))
    assert torch.equal(scores.probability_BX > 0, is_possible_C.expand(N_IMAGES, 6))
    assert torch.equal(scores.logits_BX > -torch.inf, is_possible_C.expand(N_IMAGES, 6))
