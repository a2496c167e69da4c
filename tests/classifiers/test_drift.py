"""Statistics of old tasks follow the drift of the embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.classifiers import ClassifierConfig, ClassifierContext, Embedded, build_classifier
from pipeline.classifiers.drift import fit_drift
from pipeline.errors import ConfigError
from tests.tiny import JOINT_WIDTH, tiny_tasks

TASKS = tiny_tasks()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(angle: float) -> Tensor:
    """A rotation of all pairs of axes, which keeps the length of every vector."""
    generator = draw(JOINT_WIDTH, JOINT_WIDTH, seed=5)
    return torch.linalg.matrix_exp(angle * (generator - generator.T) / 2)


ROTATIONS = [torch.eye(JOINT_WIDTH).double(), turn(0.2), turn(0.5)]  # of the embeddings, per task


def images(task: int, *, at: int, n_images: int = 400) -> list[tuple[Embedded, Tensor]]:
    """The images of a task as the method embeds them at the end of the task ``at``."""
    classes = torch.tensor(TASKS[task].classes)
    label_B = classes[torch.arange(n_images) % len(classes)]
    rows_BE = draw(n_images, JOINT_WIDTH, seed=task) + 2 * draw(20, JOINT_WIDTH, seed=9)[label_B]
    unit_BE = rows_BE / rows_BE.norm(dim=1, keepdim=True)
    return [(Embedded((unit_BE @ ROTATIONS[at]).float()), label_B)]


def learn(clip: Any, name: str, *, fresh: bool = False, **options: Any) -> Any:
    """A classifier that learns the tasks; ``fresh`` reads old images anew after every drift."""
    context = ClassifierContext(clip, None, JOINT_WIDTH, seed=3)
    classifier = build_classifier(ClassifierConfig(name=name, options=options), context)
    with torch.no_grad():
        for index, task in enumerate(TASKS):
            classifier.begin_task(task)
            if "start" in classifier.fits:
                classifier.fit("start", images(index, at=max(index - 1, 0)))
            classifier.fit("end", images(index, at=len(TASKS) - 1 if fresh else index))
            classifier.end_task(task)
    return classifier


def test_linear_change_is_found():
    before_SF, map_FF = draw(500, 6, seed=1), draw(6, 6, seed=2)
    torch.testing.assert_close(
        fit_drift(before_SF, before_SF @ map_FF), map_FF, rtol=5e-3, atol=5e-3
    )


def test_directions_without_images_do_not_change():
    before_SF = draw(500, 6, seed=1) * torch.tensor([1, 1, 1, 0, 0, 0])
    map_FF = fit_drift(before_SF, 2 * before_SF)
    assert torch.equal(map_FF[3:], torch.eye(6).double()[3:])


@pytest.mark.parametrize(("name", "options"), [("class_means", {}), ("ridge", {"strength": 1.0})])
def test_classifier_equals_one_that_reads_the_old_images_anew(tiny_clip, name, options):
    """must hold where the drift is linear; stale statistics are far off"""
    (test, _), *_ = images(0, at=len(TASKS) - 1, n_images=30)
    expected_BC = learn(tiny_clip, name, fresh=True, **options).logits(test)
    stale_BC = learn(tiny_clip, name, **options).logits(test)
    followed_BC = learn(tiny_clip, name, drift_map=True, **options).logits(test)
    error, stale_error = ((each - expected_BC).abs().max() for each in (followed_BC, stale_BC))
    assert error < 0.01 < 0.1 < stale_error


def test_stored_sums_of_earlier_tasks_stay_as_they_were(tiny_clip):
    followed = learn(tiny_clip, "class_means", drift_map=True)
    stale = learn(tiny_clip, "class_means")
    for ours, theirs in zip(followed.sums, stale.sums, strict=True):
        assert torch.equal(ours, theirs)


def test_random_features_have_no_map(tiny_clip):
    with pytest.raises(ConfigError, match="no linear map moves random features; set projection to"):
        learn(tiny_clip, "ridge", drift_map=True, projection=20)
