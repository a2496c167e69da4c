"""Each classifier against a naive computation from its formula, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.classifiers import (
    Classifier,
    ClassifierConfig,
    ClassifierContext,
    Embedded,
    build_classifier,
    parse_classifier,
)
from pipeline.classifiers.base import split_off
from pipeline.errors import ConfigError
from pipeline.model.anchors import FixedAnchors
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.tasks import Task
from tests.tiny import JOINT_WIDTH, VISION_WIDTH, tiny_tasks

TASKS = tiny_tasks()
Images = list[tuple[Embedded, Tensor]]


def draw_images(first: int, last: int, seed: int, n_batches: int = 3) -> Images:
    """Batches of 11 images of the classes ``first`` to ``last - 1``, each class around a centre."""
    stream = torch.Generator().manual_seed(seed)
    centre_CE = torch.randn(7, JOINT_WIDTH, generator=torch.Generator().manual_seed(99))
    images = []
    for number in range(n_batches):
        label_B = first + (torch.arange(11) + number) % (last - first)
        joint_BE = centre_CE[label_B] + torch.randn(11, JOINT_WIDTH, generator=stream)
        pooled_BV = torch.randn(11, VISION_WIDTH, generator=stream)
        embedding_BE = torch.nn.functional.normalize(joint_BE, dim=1)
        frozen = ImageFeatures(pooled_BV, joint_BE, pooled_BV.flip(1))
        embedded = Embedded(embedding_BE, pooled_BV=2 * pooled_BV + 1, features=frozen)
        images.append((embedded, label_B))
    return images


def task_images(index: int) -> Images:
    return draw_images(TASKS[index].first, TASKS[index].last, seed=index)


def build(clip: FrozenClip, name: str, **options: Any) -> Classifier:
    anchors = FixedAnchors(clip, lambda task: [[f"a photo of a {name}."] for name in task.names])
    context = ClassifierContext(clip, anchors, JOINT_WIDTH, seed=3)
    return build_classifier(ClassifierConfig(name=name, options=options), context)


def learn(classifier: Classifier, n_tasks: int) -> Classifier:
    """The classifier after the fits of the first tasks."""
    for index, task in enumerate(TASKS[:n_tasks]):
        classifier.context.anchors.begin_task(task)
        classifier.begin_task(task)
        classifier.fit("end", task_images(index))
        classifier.end_task(task)
    return classifier


def unit_rows(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


TEST = draw_images(0, 6, seed=50, n_batches=1)[0][0]


@pytest.mark.parametrize("vectors", [["embedding"], ["frozen_joint"], ["frozen_pooled", "pooled"]])
def test_class_means_are_means(tiny_clip, vectors):
    classifier = learn(build(tiny_clip, "class_means", vectors=vectors), 2)

    def columns(embedded: Embedded) -> Tensor:
        named = {
            "embedding": embedded.embedding_BE,
            "pooled": embedded.pooled_BV,
            "frozen_joint": embedded.features.joint_BE,
            "frozen_pooled": embedded.features.pooled_BV,
        }
        return torch.cat([named[vector] for vector in vectors], dim=1).double()

    rows = torch.cat([columns(e) for index in range(2) for e, _ in task_images(index)])
    labels = torch.cat([label_B for index in range(2) for _, label_B in task_images(index)])
    means = torch.stack([rows[labels == label].mean(dim=0) for label in range(6)])
    expected_BC = unit_rows(columns(TEST)) @ unit_rows(means).T
    torch.testing.assert_close(classifier.logits(TEST), expected_BC)


@pytest.mark.parametrize(
    ("name", "options"),
    [("class_means", {}), ("ridge", {"strength": 0.7}), ("ridge", {"projection": 23})],
)
def test_two_arrivals_of_known_classes_equal_one_with_all_images(tiny_clip, name, options):
    arrival = Task(index=1, first=3, labels=(), names=(), known=(0, 1, 2))
    weeks = [draw_images(0, 3, seed=1), draw_images(0, 3, seed=2)]
    options = {"strength": 0.7, **options} if name == "ridge" else options
    apart, together = build(tiny_clip, name, **options), build(tiny_clip, name, **options)
    for task, images in zip((TASKS[0], arrival), weeks, strict=True):
        apart.begin_task(task)
        apart.fit("end", images)
        apart.end_task(task)
    together.begin_task(TASKS[0])
    together.fit("end", weeks[0] + weeks[1])
    together.end_task(TASKS[0])
    torch.testing.assert_close(apart.logits(TEST), together.logits(TEST))


@pytest.mark.parametrize("projection", [0, 23])
def test_ridge_is_the_solution_of_all_images_at_once(tiny_clip, projection):
    """must not depend on the tasks in which the images came"""
    options = {"vectors": ["embedding"], "projection": projection, "strength": 0.7}
    classifier = learn(build(tiny_clip, "ridge", **options), 2)

    def expand(embedding_BE: Tensor) -> Tensor:
        rows = unit_rows(embedding_BE.double())
        return (rows @ classifier._projection_FM).relu() if projection else rows

    images = [each for index in range(2) for each in task_images(index)]
    rows_SM = expand(torch.cat([embedded.embedding_BE for embedded, _ in images]))
    target_SC = torch.nn.functional.one_hot(torch.cat([label for _, label in images]), 6).double()
    # The normal equations of least squares with the penalty as further rows.
    size = rows_SM.shape[1]
    stacked = torch.cat([rows_SM, 0.7**0.5 * torch.eye(size, dtype=torch.float64)])
    targets = torch.cat([target_SC, torch.zeros(size, 6, dtype=torch.float64)])
    weight_MC = torch.linalg.lstsq(stacked, targets).solution
    torch.testing.assert_close(classifier.logits(TEST), expand(TEST.embedding_BE) @ weight_MC)


@pytest.mark.parametrize("projection", [0, 41])  # fewer columns than images, and more
def test_strength_is_chosen_on_held_out_images_of_the_first_task(tiny_clip, projection: int):
    """must be the candidate with the smallest squared error of every fifth image"""
    chosen = learn(build(tiny_clip, "ridge", projection=projection), 2)
    kept, held = split_off(task_images(0))
    errors = {}
    for strength in (10 ** (half / 2) for half in range(-8, 13)):
        trial = build(tiny_clip, "ridge", strength=strength, projection=projection)
        trial.begin_task(TASKS[0])
        trial.fit("end", kept)
        trial.end_task(TASKS[0])
        errors[strength] = sum(
            float((trial.logits(e) - torch.nn.functional.one_hot(y, 3)).square().sum())
            for e, y in held
        )
    assert float(chosen.strength) == pytest.approx(min(errors, key=errors.get))


def test_strength_is_not_chosen_on_no_image(tiny_clip):
    classifier = build(tiny_clip, "ridge")
    classifier.begin_task(TASKS[0])
    embedded, label_B = task_images(0)[0]
    with pytest.raises(ConfigError, match="too few training images: .*; give `strength` beside"):
        classifier.fit("end", [(embedded.rows(slice(0, 4)), label_B[:4])])
    classifier.fit("end", [(embedded.rows(slice(0, 5)), label_B[:5])])


def test_every_fifth_image_is_held_out():
    images = task_images(0)
    kept, held = split_off(images)
    rows = torch.cat([embedded.embedding_BE for embedded, _ in images])
    found = torch.cat([embedded.embedding_BE for embedded, _ in held])
    assert torch.equal(found, rows[4::5])
    assert sum(len(label_B) for _, label_B in kept) == len(rows) - len(found)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_sum_divides_each_score_by_its_spread(tiny_clip, weight):
    """must take the spreads from training images: a prediction depends on its own image alone"""
    classifier = learn(build(tiny_clip, "sum", weight=weight), 2)
    scores = []
    for part in classifier.parts:
        spread = torch.cat([part.logits(e).double() for e, _ in task_images(1)]).std()
        scores.append(part.logits(TEST).double() / spread)
    expected_BC = (1 - weight) * scores[0] + weight * scores[1]
    torch.testing.assert_close(classifier.logits(TEST), expected_BC)
    torch.testing.assert_close(classifier.logits(TEST.rows(slice(2, 3))), expected_BC[2:3])


def test_weight_of_a_sum_prefers_the_classifier_that_is_right(tiny_clip):
    """must be near one for a ridge on the classes' own features beside names of noise"""
    classifier = learn(build(tiny_clip, "sum"), 1)
    assert float(classifier.weight) >= 0.5


def test_fitted_anchors_are_those_of_a_plain_loop(tiny_clip):
    """must be Adam on the mean cross-entropy of the task's classes, from offsets of zero"""
    classifier = learn(build(tiny_clip, "fitted_anchors", steps=4, learning_rate=0.05), 2)
    embedded = [each for each, _ in task_images(1)]
    rows_SE = torch.cat([each.embedding_BE for each in embedded])
    target_SC = torch.nn.functional.one_hot(torch.cat([y for _, y in task_images(1)]) - 3, 3)
    text_CE = classifier.context.anchors.for_evaluation()[3:6]
    offset_CE, mean, square = (torch.zeros(3, JOINT_WIDTH) for _ in range(3))
    for step in range(4):
        offset_CE.requires_grad_()
        logits_SC = tiny_clip.logit_scale * rows_SE @ unit_rows(text_CE + offset_CE).T
        loss = -(logits_SC.log_softmax(dim=1) * target_SC).sum() / len(rows_SE)
        (slope,) = torch.autograd.grad(loss, offset_CE)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        rate = 0.05 * (1 + math.cos(math.pi * step / 4)) / 2
        offset_CE = (offset_CE - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)).detach()
    torch.testing.assert_close(classifier.offsets[1].data, offset_CE, rtol=1e-3, atol=1e-5)
    expected_BE = tiny_clip.logit_scale * TEST.embedding_BE
    torch.testing.assert_close(
        classifier.logits(TEST)[:, 3:], expected_BE @ unit_rows(text_CE + offset_CE).T
    )


def test_linear_layer_learns_its_own_rows_alone(tiny_clip):
    classifier = build(tiny_clip, "linear", scale=2.0)
    classifier.begin_task(TASKS[0])
    with torch.no_grad():
        classifier.weights[0].add_(torch.randn(3, JOINT_WIDTH))
    classifier.begin_task(TASKS[1])
    embedded, label_N = task_images(1)[0]
    loss = classifier.loss(embedded, label_N)
    zero = torch.zeros(len(label_N), 3)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(zero, label_N - 3))
    loss.backward()
    assert classifier.weights[0].grad is None and classifier.weights[1].grad is not None
    rows = torch.cat([*classifier.weights])
    expected_BC = 2.0 * TEST.embedding_BE @ rows.T
    torch.testing.assert_close(classifier.logits(TEST), expected_BC)


@pytest.mark.parametrize(
    ("classifier", "words"),
    [
        ({"name": "ridges"}, "x.name: 'ridges' is not a classifier; did you mean 'ridge'"),
        (
            {"name": "ridge", "options": {"projection": 10000}},
            "10000 random features make .* 10,000 × 10,000 doubles, 800 MB .* at most 5656",
        ),
        (
            {"name": "sum", "options": {"second": {"name": "ridge", "options": {"strenght": 1}}}},
            "x.options.second.options: strenght is not a known key; did you mean 'strength'",
        ),
    ],
)
def test_classifier_that_cannot_be_is_refused_with_the_reason(classifier, words):
    with pytest.raises(ConfigError, match=words):
        parse_classifier(ClassifierConfig(**classifier), place="x")


@pytest.mark.parametrize("name", ["text_anchors", "fitted_anchors"])
def test_text_anchors_need_a_method_that_has_some(tiny_clip, name):
    context = ClassifierContext(tiny_clip, None, JOINT_WIDTH, seed=1)
    with pytest.raises(ConfigError, match=f"'{name}' needs a method that has text anchors"):
        build_classifier(ClassifierConfig(name=name), context)
