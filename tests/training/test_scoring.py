"""Accuracy is exact over any division of the images, and the diagnostics are what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.distributed.world import World
from pipeline.methods.base import Method
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompts import unit
from pipeline.model.weights import load_clip
from pipeline.training.encoder import EncodedBatch
from pipeline.training.scoring import (
    TaskScore,
    anchor_cosine,
    feature_drift,
    modality_gap,
    score_task,
)
from tests.ranks import run_ranks
from tests.tiny import JOINT_WIDTH, tiny_tasks
from tests.variants import build_variant

FIRST, SECOND, _ = tiny_tasks()


def after_two_tasks(clip: FrozenClip) -> Method:
    """Zero-shot over six classes."""
    method = build_variant("zeroshot", clip)
    for task in (FIRST, SECOND):
        method.begin_task(task)
        method.end_task(task)
    return method


def draw_embeddings() -> tuple[Tensor, Tensor]:
    """Unit ``image_SE`` and their ``label_S`` among the second task's classes, 3, 4 and 5."""
    generator = torch.Generator().manual_seed(2)
    image_SE = unit(torch.randn(13, JOINT_WIDTH, generator=generator))
    return image_SE, torch.tensor([3, 3, 5, 4, 3, 5, 5, 3, 4, 3, 3, 5, 3])


def score_rows(clip: FrozenClip, sizes: list[int], first_row: int) -> TaskScore:
    """The score from batches of ``sizes`` rows that start at ``first_row``."""
    image_SE, label_S = draw_embeddings()
    n_rows = sum(sizes)
    rows = slice(first_row, first_row + n_rows)
    columns = image_SE[rows], label_S[rows], torch.arange(13)[rows]
    batches = [
        EncodedBatch(Embedded(image_BE), label_B, sample_B)
        for image_BE, label_B, sample_B in zip(*(c.split(sizes) for c in columns), strict=True)
    ]
    return score_task(after_two_tasks(clip), batches, task=SECOND)


def test_score_is_the_count_by_hand(alone, tiny_clip):
    image_SE, label_S = draw_embeddings()
    score = score_rows(tiny_clip, [13], 0)
    anchor_CE = after_two_tasks(tiny_clip).classifier.anchor_CE
    correct = sum(
        int(max(range(6), key=lambda c: float(image_E @ anchor_CE[c])) == label)
        for image_E, label in zip(image_SE, label_S, strict=True)
    )
    assert 0 < correct < 13, "the numbers are drawn so that some are right and some wrong"
    assert (score.correct, score.images, score.correct / score.images) == (
        correct,
        13,
        correct / 13,
    )
    torch.testing.assert_close(score.embedding_sum_E, image_SE.sum(dim=0))
    for position, label in enumerate((3, 4, 5)):
        expected_E = image_SE[label_S == label].mean(dim=0)
        torch.testing.assert_close(score.class_mean_CE[position], expected_E)


@pytest.mark.parametrize("sizes", [[13], [1] * 13, [5, 7, 1], [12, 1]])
def test_score_does_not_depend_on_the_batches(alone, tiny_clip, sizes):
    found, expected = score_rows(tiny_clip, sizes, 0), score_rows(tiny_clip, [6, 7], 0)
    assert (found.correct, found.images) == (expected.correct, expected.images)
    torch.testing.assert_close(found.embedding_sum_E, expected.embedding_sum_E)
    torch.testing.assert_close(found.class_mean_CE, expected.class_mean_CE)


def score_share(world: World, arch: str, shares: list[list[int]]) -> tuple[int, int, Tensor]:
    clip = load_clip(arch, None, device=world.device)
    score = score_rows(clip, shares[world.rank], sum(map(sum, shares[: world.rank])))
    return score.correct, score.images, score.class_mean_CE


@pytest.mark.parametrize("shares", [[[4, 3], [6]], [[13], []], [[], [5, 5, 3]]])
def test_uneven_ranks_count_as_one_process(alone, tiny_arch, tiny_clip, shares):
    """must hold where a rank has fewer batches or none: no collective waits for a batch"""
    expected = score_rows(tiny_clip, [13], 0)
    for correct, images, class_mean_CE in run_ranks(score_share, 2, tiny_arch, shares):
        assert (correct, images) == (expected.correct, expected.images)
        torch.testing.assert_close(class_mean_CE, expected.class_mean_CE)


def test_anchor_cosine_is_the_mean_over_pairs():
    anchor_CE = unit(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    assert anchor_cosine(anchor_CE) == pytest.approx((0.5**0.5 + 0.0 + 0.5**0.5) / 3)
    assert anchor_cosine(torch.ones(4, 1)) == pytest.approx(1.0)  # collapsed
    assert anchor_cosine(torch.eye(3)) == pytest.approx(0.0)
    assert anchor_cosine(torch.ones(1, 3)) == 0.0


def score_of(embedding_sum_E: list[float], images: int) -> TaskScore:
    return TaskScore((0,), (images,), torch.tensor(embedding_sum_E), torch.empty(0, 2))


def test_modality_gap_is_between_the_mean_image_and_the_mean_anchor():
    """must weigh images, not tasks"""
    scores = [score_of([3.0, 0.0], 3), score_of([0.0, 1.0], 1)]
    anchor_CE = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert modality_gap(scores, anchor_CE) == pytest.approx((0.75**2 + 0.25**2) ** 0.5)
    assert modality_gap(iter(scores), anchor_CE) == modality_gap(scores, anchor_CE)


def test_feature_drift_is_the_mean_distance_of_class_means():
    now_CE = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert feature_drift(now_CE, now_CE) == 0.0
    assert feature_drift(now_CE, torch.tensor([[1.0, 0.0], [0.0, -1.0]])) == pytest.approx(1.0)
