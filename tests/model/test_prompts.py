"""Prompt tokens against naive loops, and the tensors that each task adds.

B = 3 images, D = 2 prompted layers, M = 5 components of a chunk, L = 4 tokens, V = 7.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.model.prompts import (
    TextualPromptOptions,
    TextualPrompts,
    VisualPromptOptions,
    VisualPrompts,
    component_weights,
    unit,
)

B, D, M, L, V = 3, 2, 5, 4, 7
WEIGHTED = VisualPromptOptions(components=M, length=L, depth=D)
SHARED = VisualPromptOptions(generator="shared", length=L, depth=D)


def build(options: VisualPromptOptions, n_tasks: int, seed: int = 1) -> VisualPrompts:
    """Prompts in task ``n_tasks - 1``, with random numbers in every chunk."""
    prompts = VisualPrompts(options, width=V, layers=3, seed=seed)
    for _ in range(n_tasks):
        prompts.begin_task()
    for number, parameter in enumerate(prompts.parameters()):
        with torch.no_grad():
            parameter.copy_(draw(*parameter.shape, seed=number))
    return prompts


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_component_weights_are_cosines_of_the_attended_query():
    query_BV, attention_MV, key_MV = draw(B, V, seed=1), draw(M, V, seed=2), draw(M, V, seed=3)
    found_BM = component_weights(query_BV, attention_MV, key_MV)
    for b in range(B):
        for m in range(M):
            attended_V = query_BV[b] * attention_MV[m]
            norms = attended_V.norm() * key_MV[m].norm()
            torch.testing.assert_close(found_BM[b, m], attended_V @ key_MV[m] / norms)


def test_component_weights_do_not_depend_on_the_norm_of_query_or_key():
    query_BV, attention_MV, key_MV = draw(B, V, seed=1), draw(M, V, seed=2), draw(M, V, seed=3)
    expected_BM = component_weights(query_BV, attention_MV, key_MV)
    torch.testing.assert_close(
        component_weights(9 * query_BV, attention_MV, 3 * key_MV), expected_BM
    )


@pytest.mark.parametrize("degenerate", ["query", "attention", "key"])
def test_component_weights_of_zero_vectors_are_finite_with_finite_gradients(degenerate):
    tensors = {"query": draw(B, V), "attention": draw(M, V), "key": draw(M, V)}
    tensors[degenerate] = torch.zeros_like(tensors[degenerate])
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    weight_BM = component_weights(*leaves)
    gradients = torch.autograd.grad(weight_BM.sum(), leaves)
    assert all(torch.isfinite(value).all() for value in (weight_BM, *gradients))


def test_weighted_prompts_are_the_formula_over_all_chunks():
    """must sum over old chunks too: P_l(x) = Σ_m a_m(x) P_l^m"""
    prompts, query_BV = build(WEIGHTED, 2), draw(B, V, seed=9)
    found_DBLV = prompts(query_BV, B)
    expected_DBLV = torch.zeros(D, B, L, V)
    for chunk in prompts.chunks:
        weight_BM = component_weights(query_BV, chunk.attention_MV, chunk.key_MV)
        for d in range(D):
            for b in range(B):
                for m in range(M):
                    expected_DBLV[d, b] += weight_BM[b, m] * chunk.prompt_DMLV[d, m]
    torch.testing.assert_close(found_DBLV, expected_DBLV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_tasks", [2, 7])
def test_frozen_chunks_give_the_bits_of_one_long_chunk(n_tasks):
    """must keep values and gradients of the newest chunk to the last bit, over several parts"""
    prompts = build(WEIGHTED, n_tasks)
    whole = {
        name: torch.cat([getattr(c, name) for c in prompts.chunks], dim=dim).detach()
        for name, dim in (("prompt_DMLV", 1), ("key_MV", 0), ("attention_MV", 0))
    }
    leaves = [tensor.requires_grad_() for tensor in whole.values()]
    queries, gradient_DBLV = [draw(B, V, seed=8), draw(B, V, seed=9)], draw(D, B, L, V, seed=10)
    found = [prompts(query_BV, B) for query_BV in queries]  # all parts before any gradient
    newest = list(prompts.chunks[-1].parameters())
    for query_BV, found_DBLV in zip(queries, found, strict=True):
        weight_BM = component_weights(query_BV, whole["attention_MV"], whole["key_MV"])
        expected_DBLV = torch.einsum("bm,dmlv->dblv", weight_BM, whole["prompt_DMLV"])
        assert torch.equal(found_DBLV, expected_DBLV)
        grads = torch.autograd.grad(expected_DBLV, leaves, gradient_DBLV)
        tails = [grads[0][:, -M:], grads[1][-M:], grads[2][-M:]]
        own = torch.autograd.grad(found_DBLV, newest, gradient_DBLV)
        assert all(map(torch.equal, own, tails))


@pytest.mark.parametrize("number", [0, 1], ids=["frozen", "newest"])
def test_a_chunk_that_is_written_again_is_read_again(number):
    prompts, query_BV = build(WEIGHTED, 2), draw(B, V)
    prompts(query_BV, B)
    with torch.no_grad():
        for parameter in prompts.chunks[number].parameters():
            parameter.copy_(draw(*parameter.shape, seed=20))
    again = build(WEIGHTED, 2)
    again.load_state_dict(prompts.state_dict())
    assert torch.equal(prompts(query_BV, B), again(query_BV, B))


def test_shared_prompts_are_the_same_for_every_image():
    prompts = build(SHARED, 2)
    found_DBLV = prompts(None, B)
    assert found_DBLV.shape == (D, B, L, V)
    expected_DLV = sum(chunk.prompt_DMLV[:, 0] for chunk in prompts.chunks)
    for b in range(B):
        torch.testing.assert_close(found_DBLV[:, b], expected_DLV)


@pytest.mark.parametrize("options", [WEIGHTED, SHARED], ids=["weighted", "shared"])
def test_new_chunk_changes_nothing_until_it_is_trained(options):
    prompts, query_BV = build(options, 1), draw(B, V, seed=9)
    query = query_BV if prompts.needs_query else None
    before_DBLV = prompts(query, B)
    prompts.begin_task()
    torch.testing.assert_close(prompts(query, B), before_DBLV, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [WEIGHTED, SHARED], ids=["weighted", "shared"])
def test_chunks_of_earlier_tasks_are_frozen(options):
    prompts = build(options, 3)
    assert len(prompts.chunks) == 3
    for chunk in prompts.chunks[:2]:
        assert not any(parameter.requires_grad for parameter in chunk.parameters())
    assert all(parameter.requires_grad for parameter in prompts.chunks[2].parameters())


@pytest.mark.parametrize("options", [WEIGHTED, SHARED], ids=["weighted", "shared"])
def test_tuned_prompts_are_one_chunk_for_all_tasks(options):
    prompts = build(options.model_copy(update={"growth": "tuned"}), 3)
    assert len(prompts.chunks) == 1
    assert all(parameter.requires_grad for parameter in prompts.parameters())


@pytest.mark.parametrize(("depth", "expected"), [(None, 3), (1, 1), (3, 3), (99, 3)])
def test_depth_is_limited_by_the_number_of_layers(depth, expected):
    prompts = VisualPrompts(VisualPromptOptions(depth=depth), width=V, layers=3, seed=1)
    prompts.begin_task()
    assert prompts(draw(B, V), B).shape == (expected, B, 8, V)


def test_initial_values_depend_on_the_seed_and_the_chunk_only():
    def state(seed: int) -> dict[str, Tensor]:
        prompts = VisualPrompts(WEIGHTED, width=V, layers=3, seed=seed)
        prompts.begin_task()
        prompts.begin_task()
        return prompts.state_dict()

    torch.manual_seed(5)
    first = state(1)
    torch.manual_seed(6)
    again, other = state(1), state(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    key = "chunks.0.key_MV"
    assert not torch.equal(first[key], other[key])
    assert not torch.equal(first[key], first["chunks.1.key_MV"])


def textual(options: TextualPromptOptions, n_words: int = 3) -> TextualPrompts:
    prompts = TextualPrompts(options, draw(n_words, V, seed=4), layers=3, seed=1)
    prompts.begin_task()
    return prompts


@pytest.mark.parametrize(("length", "n_words"), [(3, 3), (5, 3), (2, 3), (4, 0)])
def test_context_starts_at_the_initial_words(length, n_words):
    context_DLW = textual(TextualPromptOptions(length=length), n_words).context(0)
    assert context_DLW.shape == (1, length, V)
    kept = min(length, n_words)
    assert torch.equal(context_DLW[0, :kept], draw(n_words, V, seed=4)[:kept])
    assert torch.all(context_DLW[0, kept:].abs() < 0.2)


def test_each_layer_has_its_own_context():
    context_DLW = textual(TextualPromptOptions(length=2, depth=9)).context(0)
    assert context_DLW.shape == (3, 2, V)
    assert not torch.equal(context_DLW[1], context_DLW[2])


def test_context_is_shared_by_all_tasks_or_one_per_task():
    tuned = textual(TextualPromptOptions(growth="tuned"))
    each = textual(TextualPromptOptions(growth="per_task"))
    for prompts in (tuned, each):
        prompts.begin_task()
    assert tuned.context(0) is tuned.context(1) and tuned.context(1).requires_grad
    assert each.context(0) is not each.context(1)
    assert not each.context(0).requires_grad and each.context(1).requires_grad


def test_unit_vectors_have_length_one():
    torch.testing.assert_close(unit(draw(B, V)).norm(dim=-1), torch.ones(B))


@pytest.mark.parametrize(
    ("first_layer", "depth", "n_prompted"), [(0, None, 6), (4, None, 2), (4, 1, 1), (5, 9, 1)]
)
def test_prompts_start_at_the_first_layer(first_layer, depth, n_prompted):
    options = VisualPromptOptions(generator="shared", first_layer=first_layer, depth=depth)
    prompts = VisualPrompts(options, width=V, layers=6, seed=1)
    prompts.begin_task()
    assert prompts(None, B).shape == (n_prompted, B, options.length, V)


def test_first_layer_that_the_tower_lacks_is_refused():
    options = VisualPromptOptions(first_layer=6)
    with pytest.raises(ConfigError, match="first_layer is 6 and the image tower has 6 .* most 5"):
        VisualPrompts(options, width=V, layers=6, seed=1)
