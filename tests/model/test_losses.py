"""Each loss against its formula written as loops, in float64.

N = 11 images of the batch, C = 5 anchors of which one has no image, E = 7.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.losses import (
    FixedRelations,
    decorrelation,
    dispersion,
    image_to_text,
    relation_matching,
    text_to_image,
)

SCALE = 9.0
EMPTY = 2  # the anchor without an image


@pytest.fixture
def embeddings() -> tuple[Tensor, Tensor, Tensor]:
    """``embedding_NE``, ``anchor_CE`` and ``label_N`` in float64."""
    generator = torch.Generator().manual_seed(3)
    embedding_NE = F.normalize(torch.randn(11, 7, generator=generator, dtype=torch.float64), dim=1)
    anchor_CE = F.normalize(torch.randn(5, 7, generator=generator, dtype=torch.float64), dim=1)
    return embedding_NE, anchor_CE, torch.tensor([0, 4, 1, 1, 3, 0, 4, 4, 4, 3, 0])


def naive_text_to_image(
    embedding_NE: Tensor, anchor_CE: Tensor, label_N: Tensor, rule: str
) -> Tensor:
    """``-1/C Σ_c Σ_i 1[y_i = c] log softmax_i(s w_c·z_i)[i]``, term by term."""
    total = torch.zeros((), dtype=embedding_NE.dtype)
    for c in range(len(anchor_CE)):
        exponential = [torch.exp(SCALE * anchor_CE[c] @ z_E) for z_E in embedding_NE]
        own = [i for i in range(len(embedding_NE)) if label_N[i] == c]
        divisor = {"sum": 1, "mean": max(1, len(own)), "batch": len(embedding_NE)}[rule]
        for i in own:
            total = total - torch.log(exponential[i] / sum(exponential)) / divisor
    return total / len(anchor_CE)


def test_image_to_text_is_the_formula(embeddings):
    embedding_NE, anchor_CE, label_N = embeddings
    expected = 0.0
    for z_E, y in zip(embedding_NE, label_N, strict=True):
        share_C = [math.exp(SCALE * z_E @ w_E) for w_E in anchor_CE]
        expected -= math.log(share_C[y] / sum(share_C)) / len(embedding_NE)
    found = float(image_to_text(embedding_NE, anchor_CE, label_N, SCALE))
    assert found == pytest.approx(expected, 1e-12)


def test_text_to_image_is_soft_target_cross_entropy_on_the_mask(embeddings):
    embedding_NE, anchor_CE, label_N = embeddings
    mask_CN = (torch.arange(5)[:, None] == label_N).double()
    expected = F.cross_entropy(SCALE * anchor_CE @ embedding_NE.T, mask_CN)
    found = text_to_image(embedding_NE, anchor_CE, label_N, SCALE)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("rule", ["sum", "mean", "batch"])
def test_text_to_image_is_the_formula_with_its_gradients(embeddings, rule):
    embedding_NE, anchor_CE, label_N = embeddings
    pair = (embedding_NE.requires_grad_(), anchor_CE.requires_grad_())
    found = text_to_image(*pair, label_N, SCALE, normalisation=rule)
    expected = naive_text_to_image(*pair, label_N, rule)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradient_pairs = torch.autograd.grad(found, pair), torch.autograd.grad(expected, pair)
    torch.testing.assert_close(*gradient_pairs, rtol=1e-10, atol=1e-14)


def test_text_to_image_passes_gradcheck(embeddings):
    embedding_NE, anchor_CE, label_N = embeddings
    pair = (embedding_NE.requires_grad_(), anchor_CE.requires_grad_())
    assert torch.autograd.gradcheck(lambda z, w: text_to_image(z, w, label_N, SCALE), pair)


def test_float32_gradient_agrees_with_float64(embeddings):
    embedding_NE, anchor_CE, label_N = embeddings

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        pair = [embedding_NE.detach().to(dtype).requires_grad_(), anchor_CE.detach().to(dtype)]
        loss = text_to_image(*pair, label_N, SCALE) + image_to_text(*pair, label_N, SCALE)
        return [gradient.double() for gradient in torch.autograd.grad(loss, pair[:1])]

    torch.testing.assert_close(
        gradients(torch.float32), gradients(torch.float64), rtol=1e-5, atol=1e-6
    )


def test_anchor_without_an_image_has_no_loss_and_no_gradient(embeddings):
    """must only change the factor 1/C: removing the empty anchor has no other effect"""
    embedding_NE, anchor_CE, label_N = embeddings
    anchor_CE.requires_grad_()
    embedding_NE.requires_grad_()
    loss = text_to_image(embedding_NE, anchor_CE, label_N, SCALE)
    image_gradient, anchor_gradient = torch.autograd.grad(loss, (embedding_NE, anchor_CE))
    assert torch.equal(anchor_gradient[EMPTY], torch.zeros(7, dtype=torch.float64))

    kept = [c for c in range(5) if c != EMPTY]
    position_N = torch.tensor([kept.index(int(label)) for label in label_N])
    without = text_to_image(embedding_NE, anchor_CE[kept], position_N, SCALE) * 4 / 5
    gradient, *_ = torch.autograd.grad(without, embedding_NE)
    torch.testing.assert_close(without, loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, image_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", ["sum", "mean", "batch"])
def test_batch_of_one_class_gives_no_gradient_to_other_anchors(embeddings, rule):
    embedding_NE, anchor_CE, _ = embeddings
    anchor_CE.requires_grad_()
    label_N = torch.full((11,), 3)
    loss = text_to_image(embedding_NE, anchor_CE, label_N, SCALE, normalisation=rule)
    (gradient,) = torch.autograd.grad(loss, anchor_CE)
    assert gradient[3].abs().sum() > 0 and gradient[[0, 1, 2, 4]].abs().sum() == 0


def test_losses_stay_finite_at_clips_largest_scale():
    """must not overflow as a plain exponential would, for cosines of 1 at a scale of 100"""
    embedding_NE = F.normalize(torch.randn(4, 7), dim=1)
    for loss in (image_to_text, text_to_image):
        value = loss(embedding_NE, embedding_NE[:2].clone(), torch.tensor([0, 1, 1, 0]), 100.0)
        assert torch.isfinite(value)


def test_dispersion_is_the_formula(embeddings):
    _, anchor_CE, _ = embeddings
    expected = 0.0
    for i in range(5):
        others = [math.exp(anchor_CE[i] @ anchor_CE[j] / 0.3) for j in range(5) if j != i]
        expected += math.log(sum(others) / 4) / 5
    assert float(dispersion(anchor_CE, 0.3)) == pytest.approx(expected, 1e-12)


def test_relation_matching_is_the_formula(embeddings):
    _, anchor_CE, _ = embeddings
    generator = torch.Generator().manual_seed(4)
    other_CE = F.normalize(torch.randn(5, 7, generator=generator, dtype=torch.float64), dim=1)
    expected = sum(
        float(anchor_CE[i] @ anchor_CE[j] - other_CE[i] @ other_CE[j]) ** 2
        for i in range(5)
        for j in range(5)
    )
    found = float(relation_matching(anchor_CE, other_CE))
    assert found == pytest.approx(expected / (5 * 4), 1e-12)
    rotated_CE = anchor_CE.roll(1, dims=1)  # a common rotation keeps every cosine
    assert float(relation_matching(anchor_CE, rotated_CE)) == pytest.approx(0.0, abs=1e-28)


@pytest.mark.parametrize("n_fixed", [1, 3, 2000])
def test_relations_of_fixed_anchors_are_a_constant_of_relation_matching(n_fixed):
    """must have the same value, and the same gradient on the anchors that change"""
    generator = torch.Generator().manual_seed(4)
    shape = n_fixed + 2, 7
    anchor_CE, reference_CE = (
        F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    moving_CE = anchor_CE[n_fixed:].clone().requires_grad_()
    fixed = FixedRelations.of(anchor_CE[:n_fixed], reference_CE[:n_fixed], reference_CE[n_fixed:])
    found = fixed.matching(moving_CE)
    expected = relation_matching(torch.cat([anchor_CE[:n_fixed], moving_CE]), reference_CE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, moving_CE)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=0)


def test_decorrelation_is_the_formula(embeddings):
    _, anchor_CE, _ = embeddings
    cosines = [float(anchor_CE[i] @ anchor_CE[j]) for i in range(5) for j in range(5) if i != j]
    expected = sum(cosine**2 for cosine in cosines) / 20
    assert float(decorrelation(anchor_CE)) == pytest.approx(expected, 1e-12)
    assert float(decorrelation(torch.eye(3))) == 0.0
    assert float(decorrelation(torch.ones(3, 1))) == 1.0


def test_diversity_losses_are_larger_for_collapsed_anchors():
    """must push similar anchors apart"""
    generator = torch.Generator().manual_seed(5)
    spread_CE = F.normalize(torch.randn(6, 7, generator=generator), dim=1)
    near_CE = F.normalize(spread_CE + 2.0, dim=1)
    assert dispersion(near_CE, 0.1) > dispersion(spread_CE, 0.1)
    assert decorrelation(near_CE) > decorrelation(spread_CE)
    assert relation_matching(near_CE, spread_CE) > 0.1


@pytest.mark.parametrize(
    "loss",
    [lambda w: dispersion(w, 0.1), lambda w: relation_matching(w, w.detach()), decorrelation],
    ids=["dispersion", "relation_matching", "decorrelation"],
)
def test_diversity_of_a_single_anchor_is_zero(loss):
    anchor_CE = torch.ones(1, 3, requires_grad=True)
    value = loss(anchor_CE)
    (gradient,) = torch.autograd.grad(value, anchor_CE)
    assert value.item() == 0.0 and torch.equal(gradient, torch.zeros(1, 3))
