"""Each baseline equals a plain loop over images, written from the equations of its paper.

Axes: B images · M components · L tokens · V vision width · W text width · E joint width.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import MethodConfig
from pipeline.errors import ConfigError
from pipeline.methods import build_method
from pipeline.methods.acil import Acil
from pipeline.methods.base import Method
from pipeline.methods.coda_prompt import CodaPrompt
from pipeline.methods.coop import CoOp
from pipeline.methods.dualprompt import DualPrompt
from pipeline.methods.ivlp import Ivlp
from pipeline.methods.l2p import L2P
from pipeline.methods.maple import Maple
from pipeline.methods.vpt_deep import VptDeep
from pipeline.model.blocks import Prefix
from pipeline.model.prompts import unit
from pipeline.tasks import split_classes
from tests.naive_towers import prefixed_image, prompted_image, prompted_text
from tests.tiny import (
    CLASSES,
    VISION_LAYERS,
    VISION_WIDTH,
    build_context,
    draw_batch,
    draw_images,
    tiny_tasks,
)
from tests.variants import build_variant

TASKS = tiny_tasks()
N_IMAGES = 5
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def build(tiny_clip):
    """Builds a method in its second task, with tensors that are not those of the start."""

    def built(label: str) -> Method:
        method = build_variant(label, tiny_clip)
        stream = torch.Generator().manual_seed(3)
        for task in TASKS[:2]:
            if task.index:
                method.end_task(TASKS[task.index - 1])
            method.begin_task(task)
            with torch.no_grad():
                for parameter in method.parameters():
                    noise = torch.randn(parameter.shape, generator=stream)
                    parameter += 0.1 * noise * parameter.requires_grad
        return method

    return built


def names(method: Method) -> list[str]:
    """Names of the classes of the two tasks."""
    return [f"{name}." for task in TASKS[:2] for name in task.names]


def embed(method: Method, image_BCHW: Tensor) -> Tensor:
    """The unit embeddings that the method gives."""
    frozen = method.clip.encode_image(image_BCHW)
    return method.encode(image_BCHW, frozen).embedding_BE


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def cosine(one_V: Tensor, other_V: Tensor) -> Tensor:
    """The cosine of two vectors."""
    return one_V @ other_V / one_V.norm() / other_V.norm()


def no_prompts() -> Tensor:
    """No prompt token in any layer."""
    return torch.empty(0, N_IMAGES, 0, VISION_WIDTH)


def test_coop_reads_names_behind_its_context_and_images_as_they_are(build, tiny_clip, tiny_arch):
    """arXiv 2109.01134, equations 2 and 3"""
    method = build("coop")
    assert isinstance(method, CoOp)
    image_BCHW, label_B, frozen = draw_batch(tiny_clip, TASKS[1], N_IMAGES)
    [context_DLW] = method.anchors.prompts.contexts
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == context_DLW.numel()
    anchor_CE = unit(prompted_text(tiny_clip, names(method)[3:], context_DLW, tiny_arch))
    joint_BE = unit(tiny_clip.clip.encode_image(tiny_clip.normalise(image_BCHW)))
    logits_BC = tiny_clip.logit_scale * joint_BE @ anchor_CE.T
    expected = F.cross_entropy(logits_BC, label_B - TASKS[1].first)
    close(method(None, label_B, frozen).total, expected)


@pytest.mark.parametrize("label", ["vpt_deep", "ivlp"])
def test_shared_prompts_replace_each_other_from_block_to_block(label, build, tiny_clip):
    """arXiv 2203.12119, section 3.2, VPT-Deep: one set for all images, which all tasks train"""
    method = build(label)
    assert isinstance(method, (VptDeep, Ivlp))
    [chunk] = method.visual_prompts.chunks
    assert chunk.prompt_DMLV.requires_grad and chunk.prompt_DMLV.shape[:2] == (VISION_LAYERS, 1)
    image_BCHW = draw_images(N_IMAGES)
    prompt_DBLV = chunk.prompt_DMLV.expand(-1, N_IMAGES, -1, -1)
    close(embed(method, image_BCHW), unit(prompted_image(tiny_clip, image_BCHW, prompt_DBLV)))


def test_prompts_of_ivlp_are_deep_in_the_text_tower_too(build, tiny_clip, tiny_arch):
    """arXiv 2210.03117, section 3.2: the text tower of MaPLe, without the link"""
    method = build("ivlp")
    [context_DLW] = method.anchors.prompts.contexts
    assert len(context_DLW) == tiny_clip.text_layers
    expected_CE = prompted_text(tiny_clip, names(method)[3:], context_DLW, tiny_arch)
    close(method.anchors.current(), unit(expected_CE))


def test_visual_prompts_of_maple_are_a_linear_map_of_the_textual_ones(build, tiny_clip, tiny_arch):
    """arXiv 2210.03117, equations 4 to 8"""
    method = build("maple")
    assert isinstance(method, Maple)
    [context_DLW] = method.anchors.prompts.contexts
    mapped = [
        torch.stack([coupling.weight @ token_W + coupling.bias for token_W in context_LW])
        for coupling, context_LW in zip(method.couplings, context_DLW, strict=True)
    ]
    prompt_DBLV = torch.stack(mapped)[:, None].expand(-1, N_IMAGES, -1, -1)
    image_BCHW = draw_images(N_IMAGES)
    close(embed(method, image_BCHW), unit(prompted_image(tiny_clip, image_BCHW, prompt_DBLV)))
    anchor_CE = unit(prompted_text(tiny_clip, names(method)[3:], context_DLW, tiny_arch))
    close(method.anchors.current(), anchor_CE)
    embed(method, image_BCHW).sum().backward()
    assert all(parameter.grad is not None for parameter in method.couplings.parameters())


def test_an_image_takes_the_prompts_of_its_nearest_keys(build, tiny_clip):
    """arXiv 2112.08654, equations 2, 3 and 5"""
    method = build("l2p")
    assert isinstance(method, L2P)
    image_BCHW, label_B, frozen = draw_batch(tiny_clip, TASKS[1], N_IMAGES)
    rows, distances = [], []
    for query_V in frozen.pooled_BV:
        score_M = [cosine(query_V, key_V).item() for key_V in method.key_MV]
        best = sorted(range(len(score_M)), key=lambda m: -score_M[m])[: method.options.chosen]
        rows.append(torch.cat([method.prompt_MLV[m] for m in best]))
        distances.append(sum(1 - score_M[m] for m in best))
    expected_BE = unit(prompted_image(tiny_clip, image_BCHW, torch.stack(rows)[None]))
    close(embed(method, image_BCHW), expected_BE)
    losses = method(image_BCHW, label_B, frozen)
    pull = method.options.pull_weight * sum(distances) / N_IMAGES
    close(losses.terms["key"], torch.tensor(pull))


def test_prefixes_of_dualprompt_are_the_tasks_own_and_then_the_nearest_keys(build, tiny_clip):
    """arXiv 2204.04799, equations 5 to 8"""
    method = build("dualprompt")
    assert isinstance(method, DualPrompt)
    image_BCHW, label_B, frozen = draw_batch(tiny_clip, TASKS[1], N_IMAGES)

    def expected(task_of_image: list[int]) -> Tensor:
        prefixes = {}
        for block, prefix_2LV in enumerate(method.general_D2LV):
            key_LV, value_LV = prefix_2LV
            prefixes[block] = Prefix(
                key_LV.expand(N_IMAGES, -1, -1), value_LV.expand(N_IMAGES, -1, -1)
            )
        for number in range(method.options.expert_blocks):
            own = [method.experts[task][number] for task in task_of_image]
            prefixes[len(prefixes)] = Prefix(
                torch.stack([prefix_2LV[0] for prefix_2LV in own]),
                torch.stack([prefix_2LV[1] for prefix_2LV in own]),
            )
        return unit(prefixed_image(tiny_clip, image_BCHW, prefixes, no_prompts()))

    close(embed(method, image_BCHW), expected([1] * N_IMAGES))
    score_BT = [[cosine(q, k).item() for k in method.keys] for q in frozen.pooled_BV]
    pull = sum(1 - score_T[1] for score_T in score_BT) / N_IMAGES
    close(method(image_BCHW, label_B, frozen).terms["key"], torch.tensor(pull))

    with torch.no_grad():  # let each task be the nearest of some image
        method.keys[0].copy_(frozen.pooled_BV[0])
        method.keys[1].copy_(frozen.pooled_BV[1])
    method.end_task(TASKS[1])
    score_BT = [[cosine(q, k).item() for k in method.keys] for q in frozen.pooled_BV]
    nearest = [score_T.index(max(score_T)) for score_T in score_BT]
    assert set(nearest) == {0, 1}
    close(embed(method, image_BCHW), expected(nearest))


def test_prefix_of_coda_is_the_weighted_sum_of_its_components(build, tiny_clip):
    """arXiv 2211.13218, equations 3 to 7"""
    method = build("coda_prompt")
    assert isinstance(method, CodaPrompt)
    image_BCHW, label_B, frozen = draw_batch(tiny_clip, TASKS[1], N_IMAGES)
    prefixes, penalty = {}, 0.0
    half = method.options.length // 2
    for block in range(method.options.blocks):
        chunks: list[nn.Module] = [*method.chunks]
        prompts = [prompt for chunk in chunks for prompt in chunk.prompt_DMLV[block]]
        keys = [key for chunk in chunks for key in chunk.key_DMV[block]]
        attentions = [attention for chunk in chunks for attention in chunk.attention_DMV[block]]
        rows = []
        for query_V in frozen.pooled_BV:
            total_LV = torch.zeros_like(prompts[0])
            for prompt_LV, key_V, attention_V in zip(prompts, keys, attentions, strict=True):
                total_LV = total_LV + cosine(query_V * attention_V, key_V) * prompt_LV
            rows.append(total_LV)
        prefix_BLV = torch.stack(rows)
        prefixes[block] = Prefix(prefix_BLV[:, :half], prefix_BLV[:, half:])
        for vectors in (prompts, keys, attentions):
            row_MF = torch.stack([vector.flatten() for vector in vectors])
            penalty += (row_MF @ row_MF.T - torch.eye(len(row_MF))).square().mean()
    expected_BE = unit(prefixed_image(tiny_clip, image_BCHW, prefixes, no_prompts()))
    close(embed(method, image_BCHW), expected_BE)
    terms = method(image_BCHW, label_B, frozen).terms
    close(terms["orthogonality"], method.options.orthogonality_weight * penalty)


def test_new_components_of_coda_are_orthogonal_to_all_earlier_ones(build):
    """arXiv 2211.13218, section 4.2; must hold where the width has room"""
    first, second = build("coda_prompt").chunks
    drawn = build_variant("coda_prompt", build("coda_prompt").clip)
    drawn.begin_task(TASKS[0])
    drawn.begin_task(TASKS[1])
    for name in ("prompt_DMLV", "key_DMV", "attention_DMV"):
        rows = torch.cat([getattr(chunk, name).flatten(2) for chunk in drawn.chunks], dim=1)
        product_DMM = rows @ rows.transpose(1, 2)
        torch.testing.assert_close(
            product_DMM, torch.eye(6).expand_as(product_DMM), rtol=0, atol=1e-5
        )
    assert not first.key_DMV.requires_grad and second.key_DMV.requires_grad


@pytest.mark.parametrize("classes_per_task", [3, 1])
def test_acil_equals_its_recursion(tiny_clip, classes_per_task):
    """arXiv 2205.14922: R and W updated task by task by the Woodbury identity"""
    strength, width = 0.5, 31
    options = {"name": "ridge", "options": {"projection": width, "strength": strength}}
    config = MethodConfig(name="acil", options={"acil": {"classifier": options}})
    method = build_method(config, build_context(tiny_clip))
    assert isinstance(method, Acil)
    inverse_MM = torch.eye(width).double() / strength
    weight_MC = torch.zeros(width, 0).double()
    for task in split_classes(range(7), list(CLASSES), classes_per_task=classes_per_task):
        method.begin_task(task)
        image_BCHW, label_B, frozen = draw_batch(tiny_clip, task, 9, seed=task.index)
        embedded = method.encode(None, frozen)
        method.fit("end", [(embedded, label_B)])
        method.end_task(task)
        expanded_BM = method.classifier.read(embedded)
        target_BC = F.one_hot(label_B, task.last).double()
        inner_BB = torch.eye(len(label_B)) + expanded_BM @ inverse_MM @ expanded_BM.T
        gain_MB = inverse_MM @ expanded_BM.T @ torch.linalg.inv(inner_BB)
        inverse_MM = inverse_MM - gain_MB @ expanded_BM @ inverse_MM
        weight_MC = F.pad(weight_MC, (0, task.last - weight_MC.shape[1]))
        error_BC = target_BC - expanded_BM @ weight_MC
        weight_MC = weight_MC + inverse_MM @ expanded_BM.T @ error_BC
    image_BCHW = draw_images(4, seed=9)
    embedded = method.encode(None, tiny_clip.encode_image(image_BCHW))
    found_BC = method.logits(embedded)
    torch.testing.assert_close(found_BC, method.classifier.read(embedded) @ weight_MC)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("l2p", {"chosen": 11}, "raise pool_size"),
        ("coda_prompt", {"length": 7}, "choose an even number"),
        ("coda_prompt", {"blocks": 4}, "the image tower has 3"),
        ("dualprompt", {}, "the image tower has 3 blocks"),
        ("acil", {"first_session": True}, "first_session"),
    ],
)
def test_impossible_options_are_refused(name, options, words, tiny_clip):
    with pytest.raises(ConfigError, match=words):
        build_method(MethodConfig(name=name, options={name: options}), build_context(tiny_clip))
