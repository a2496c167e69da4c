"""What each method computes, and its options; test_contract.py has the laws of all methods."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.classifiers import Moment
from pipeline.config import MethodConfig
from pipeline.errors import ConfigError
from pipeline.methods import METHODS, build_method, parse_options, resolve_options
from pipeline.methods.base import Losses, Method
from pipeline.model.backbone import FrozenClip
from pipeline.model.losses import (
    decorrelation,
    dispersion,
    image_to_text,
    relation_matching,
    text_to_image,
)
from pipeline.model.prompts import unit
from pipeline.tasks import Task
from tests.tiny import JOINT_WIDTH, build_context, draw_batch, draw_images, tiny_tasks
from tests.variants import LEARNING, VARIANTS, build_variant

TASKS = tiny_tasks()
pytestmark = pytest.mark.usefixtures("alone")


def active(method: Method) -> dict[str, Tensor]:
    """What the current task learns."""
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


def step(method: Method, task: Task, clip: FrozenClip, seed: int) -> Losses:
    """One plain SGD step that is large enough to see."""
    image_BCHW, label_B, frozen = draw_batch(clip, task, 7, seed)
    losses = method(image_BCHW, label_B, frozen if method.inputs.features else None)
    losses.total.backward()
    with torch.no_grad():
        for parameter in active(method).values():
            parameter -= 0.3 * parameter.grad
            parameter.grad = None
    return losses


def learn(method: Method, tasks: tuple[Task, ...], clip: FrozenClip) -> Method:
    """The method after ``tasks``, two steps each."""
    for task in tasks:
        method.begin_task(task)
        fit(method, "start", task, clip)
        for number in range(2 if active(method) else 0):
            step(method, task, clip, seed=10 * task.index + number)
        fit(method, "end", task, clip)
        method.end_task(task)
    return method


@torch.no_grad()
def fit(method: Method, moment: Moment, task: Task, clip: FrozenClip) -> None:
    """Show a method two batches of a task's images, if it asks for them at this moment."""
    if moment not in method.fits:
        return
    images = []
    for number in range(2):
        image_BCHW, label_B, features = draw_batch(clip, task, 7, 50 + 10 * task.index + number)
        images.append((method.encode(image_BCHW, features), label_B))
    method.fit(moment, images)


@torch.no_grad()
def predict(method: Method, clip: FrozenClip, image_BCHW: Tensor) -> Tensor:
    """``logits_BC`` of images."""
    frozen = clip.encode_image(image_BCHW) if method.needs_features else None
    return method.logits(method.encode(image_BCHW, frozen))


@pytest.mark.parametrize("label", VARIANTS)
def test_training_mode_makes_no_difference(label, tiny_clip):
    """must hold: there is no dropout, so a loss is the same whenever it is asked for"""
    method = learn(build_variant(label, tiny_clip), TASKS[:1], tiny_clip)
    image_BCHW = draw_images(3)
    found = [predict(method.train(mode), tiny_clip, image_BCHW) for mode in (True, False)]
    assert torch.equal(*found)
    assert not tiny_clip.clip.training


@pytest.mark.parametrize("name", METHODS)
def test_option_that_a_method_does_not_know_is_named(name):
    method = MethodConfig(name=name, options={name: {"unheard_of": 1}})
    with pytest.raises(ConfigError, match=f"method.options.{name}: unheard_of is not a known key"):
        parse_options(method)


def test_options_of_the_other_methods_are_checked_too():
    options = {"tppt_v": {"diversity": {"form": "disperson"}}}
    with pytest.raises(ConfigError, match="method.options.tppt_v: diversity.form: .*'disperson'"):
        parse_options(MethodConfig(name="zeroshot", options=options))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "tppt-v"}, "method.name: 'tppt-v' is not a method; did you mean 'tppt_v'"),
        ({"name": "ewc"}, "method.name: 'ewc' is not a method; there are zeroshot, finetune"),
        ({"name": "tppt_v", "options": {"tppt_w": {}}}, "method.options: 'tppt_w' is not a method"),
        (
            {"name": "tppt_v", "options": {"tppt_v": {"visual_prompts": {"length": 0}}}},
            "method.options.tppt_v: visual_prompts.length: .*greater than 0, found 0",
        ),
        (
            {"name": "tppt_vt", "options": {"tppt_vt": {"old_anchors": "lost"}}},
            "method.options.tppt_vt: old_anchors: .*'reencoded' or 'frozen', found 'lost'",
        ),
    ],
)
def test_method_or_option_that_is_none_is_named(method, words):
    with pytest.raises(ConfigError, match=words):
        parse_options(MethodConfig(**method))


def test_a_method_gets_its_own_options():
    options = {"tppt_v": {"anchor_residuals": True}, "tppt_vt": {"old_anchors": "frozen"}}
    assert parse_options(MethodConfig(name="tppt_v", options=options)).anchor_residuals
    assert parse_options(MethodConfig(name="tppt_vt", options=options)).old_anchors == "frozen"


@pytest.mark.parametrize(
    ("name", "classifier", "options"),
    [
        ("ranpac", {"name": "class_means"}, {"vectors": ["embedding"], "drift_map": False}),
        ("ranpac", {"name": "tests.probes:Ridge"}, {}),
        ("ranpac", {"options": {"strength": 300}}, {"projection": 2000, "strength": 300.0}),
        ("tppt_ridge", {"name": "text_anchors"}, {}),
        (
            "tppt_ridge",
            {"options": {"weight": 0.5}},
            {"weight": 0.5, "first": {"name": "fitted_anchors", "options": {}}},
        ),
        ("acil", {"name": "ridge"}, {"projection": 2000, "strength": 300.0}),
        ("acil", {"name": "ridge", "options": {"projection": 0}}, {"projection": 0}),
        ("simplecil", {"name": "ridge"}, {"vectors": ["frozen_joint"], "projection": 0}),
    ],
)
def test_a_classifier_keeps_the_options_of_the_method_that_it_has(name, classifier, options):
    """must need no more than the name or the options that differ"""
    given = {name: {"classifier": classifier}}
    resolved = resolve_options(MethodConfig(name=name, options=given)).options[name]["classifier"]
    assert resolved["name"] == classifier.get("name", resolved["name"])
    assert resolved["options"].items() >= options.items()


def test_zeroshot_is_open_clip_itself(tiny_clip):
    method = learn(build_variant("zeroshot", tiny_clip), TASKS, tiny_clip)
    image_BCHW = draw_images(5)
    names = [name for task in TASKS for name in task.names]
    token_CN = tiny_clip._tokenizer([f"a photo of a {name}." for name in names])
    embedding_BE = unit(tiny_clip.clip.encode_image(tiny_clip.normalise(image_BCHW)))
    text_CE = unit(tiny_clip.clip.encode_text(token_CN))
    expected_BC = tiny_clip.logit_scale * embedding_BE @ text_CE.T
    torch.testing.assert_close(predict(method, tiny_clip, image_BCHW), expected_BC)


def seen(method: Method) -> Tensor:
    """The anchors of every class seen, as training sees them."""
    return torch.cat([method.anchors.old(), method.anchors.current()])


def embedded(method: Method, clip: FrozenClip) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of one batch of the current task."""
    image_BCHW, label_B, frozen = draw_batch(clip, method.task, 7)
    return method.embed(image_BCHW, frozen if method.inputs.features else None), label_B


@pytest.mark.parametrize("classes", ["current", "seen"])
def test_finetune_is_cross_entropy_over_the_chosen_classes(classes, tiny_clip):
    label = "finetune" if classes == "current" else "all seen classes"
    method = learn(build_variant(label, tiny_clip), TASKS[:1], tiny_clip)
    method.begin_task(TASKS[1])
    embedded_N, label_N = embedded(method, tiny_clip)
    names = TASKS[1].names if classes == "current" else (*TASKS[0].names, *TASKS[1].names)
    first = TASKS[1].first if classes == "current" else 0
    text_CE = tiny_clip.encode_text(tiny_clip.tokenize([f"a photo of a {n}." for n in names]))
    expected = torch.nn.functional.cross_entropy(
        17.0 * embedded_N.embedding_BE @ unit(text_CE).T, label_N - first
    )
    torch.testing.assert_close(
        method.losses(embedded_N, label_N).total, expected, rtol=1e-5, atol=0
    )


def test_tppt_adds_its_weighted_terms(tiny_clip):
    """must be L_i2t + λ_t L_t2i + λ_d L_div, the last over the anchors of all classes seen"""
    method = learn(build_variant("moving residuals", tiny_clip), TASKS[:1], tiny_clip)
    method.begin_task(TASKS[1])
    embedded_N, label_N = embedded(method, tiny_clip)
    embedding_NE = embedded_N.embedding_BE
    terms, seen_CE = method.losses(embedded_N, label_N).terms, seen(method)
    expected = {
        "image_to_text": image_to_text(embedding_NE, seen_CE, label_N, tiny_clip.logit_scale),
        "text_to_image": 0.7
        * text_to_image(embedding_NE, seen_CE, label_N, 5.0, normalisation="sum"),
        "diversity": 0.1 * dispersion(seen_CE, method.options.diversity.temperature),
    }
    assert terms.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(terms[name], expected[name])


@pytest.mark.parametrize(
    ("label", "weight", "form"),
    [
        ("contexts per task", 1.0, lambda seen_CE, first_CE: decorrelation(seen_CE)),
        ("anchors kept as learned", 3.0, relation_matching),
    ],
)
def test_diversity_looks_at_every_class_seen(label, weight, form, tiny_clip):
    method = learn(build_variant(label, tiny_clip), TASKS[:1], tiny_clip)
    method.begin_task(TASKS[1])
    step(method, TASKS[1], tiny_clip, seed=1)
    terms = method.losses(*embedded(method, tiny_clip)).terms
    seen_CE, unprompted_CE = seen(method), method.anchors.unprompted()
    assert seen_CE.shape == unprompted_CE.shape == (6, JOINT_WIDTH)
    torch.testing.assert_close(terms["diversity"], weight * form(seen_CE, unprompted_CE))


@pytest.mark.parametrize("known", [(), (1, 3)], ids=["new classes", "some known"])
def test_relations_of_many_anchors_are_those_of_all_pairs(known, tiny_clip, monkeypatch):
    """must have the same gradient, whichever classes the task trains again"""
    method = learn(build_variant("anchors kept as learned", tiny_clip), TASKS, tiny_clip)
    first = TASKS[-1].last
    method.begin_task(Task(len(TASKS), first, (first, first + 1), ("fox", "hen"), known=known))
    learned = active(method)[f"anchors.residuals.{len(TASKS)}"]
    with torch.no_grad():
        learned += 0.1 * torch.randn(learned.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for few in (256, 0):
        monkeypatch.setattr("pipeline.methods.tppt_v._FEW_ANCHORS", few)
        loss = method._diversity(method.anchors.current())
        gradients.append(torch.autograd.grad(loss, learned)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_term_of_weight_zero_is_left_out(tiny_clip):
    options = {"tppt_v": {"text_to_image": {"weight": 0}}}
    method = build_method(MethodConfig(name="tppt_v", options=options), build_context(tiny_clip))
    method.begin_task(TASKS[0])
    assert method.losses(*embedded(method, tiny_clip)).terms.keys() == {"image_to_text"}


def learns_in_second_task(label: str, clip: FrozenClip) -> bool:
    method = learn(build_variant(label, clip), TASKS[:1], clip)
    method.begin_task(TASKS[1])
    return bool(active(method))


@pytest.mark.parametrize("label", LEARNING)
def test_fixed_anchors_are_encoded_once_per_task(label, tiny_clip):
    """must not run the text tower in a training step unless the anchors move"""
    method = build_variant(label, tiny_clip)
    if not learns_in_second_task(label, tiny_clip):
        return
    texts: list[int] = []
    hook = tiny_clip.clip.ln_final.register_forward_hook(
        lambda module, given, out: texts.append(out.shape[0])
    )
    try:
        learn(method, TASKS[:1], tiny_clip)
        method.begin_task(TASKS[1])
        texts.clear()
        step(method, TASKS[1], tiny_clip, seed=1)
    finally:
        hook.remove()
    if getattr(method.anchors, "prompts", None) is None:
        assert texts == []
    else:
        assert texts and set(texts) == {3}, "only the current task's classes are encoded"
        assert len(texts) == 1, "and once a step"
