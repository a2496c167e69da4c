"""The check that anyone can call on a method passes right ones and names the law that is broken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.classifiers import Embedded
from pipeline.errors import ConfigError, ContractError
from pipeline.methods.base import Inputs, Losses
from pipeline.methods.contract import check_method
from pipeline.methods.finetune import Finetune
from pipeline.model.backbone import ImageFeatures
from pipeline.model.prompts import unit
from tests.variants import VARIANTS

HERE = "tests.methods.test_contract"


@pytest.mark.parametrize("label", VARIANTS)
def test_right_methods_pass(label, tiny_clip):
    method = VARIANTS[label]
    check_method(method.name, method.options.get(method.name), clip=tiny_clip)


class Forgetful(Finetune):
    """Its loss reads the embeddings that embed has left behind."""

    def embed(self, *inputs: Any) -> Embedded:
        embedded = super().embed(*inputs)
        self.left_behind = embedded.embedding_BE
        return embedded

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        losses = super().losses(embedded, label_N)
        return Losses.of({**losses.terms, "memory": self.left_behind.mean()})


class Idle(Finetune):
    """Trains a tensor that it never uses."""

    def build_adaptation(self) -> None:
        super().build_adaptation()
        self.idle = nn.Parameter(torch.zeros(3))


class Crowd(Finetune):
    """Subtracts the mean of the batch."""

    def embed(self, *inputs: Any) -> Embedded:
        embedding_BE = super().embed(*inputs).embedding_BE
        return Embedded(embedding_BE - embedding_BE.mean(dim=0))


class Upper(Finetune):
    """Starts from a later block, and runs all blocks on what it gets."""

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        return super().inputs_of(options)._replace(first_layer=1)

    def embed(self, image_BCHW: Tensor, features: ImageFeatures) -> Embedded:
        prompt_DBLV = self.visual_prompts(features.pooled_BV, len(image_BCHW))
        return Embedded(unit(self.clip.encode_image(image_BCHW, prompt_DBLV).joint_BE))


class Meddler(Finetune):
    """Moves a tensor of the first task in the second."""

    @torch.no_grad()
    def end_task(self, task: Any) -> None:
        if task.index:
            self.visual_prompts.chunks[0].key_MV += 1
        super().end_task(task)


class Gambler(Finetune):
    """Draws from the global stream."""

    @torch.no_grad()
    def begin_task(self, task: Any) -> None:
        super().begin_task(task)
        self.visual_prompts.chunks[-1].key_MV.normal_()


class Hoarder(Finetune):
    """Keeps what it has learned where no file stores it."""

    shift = 0.0

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        self.shift += 1.0
        return super().losses(embedded, label_N)

    def logits(self, embedded: Embedded) -> Tensor:
        return super().logits(embedded) + self.shift


class Adder(Finetune):
    """Adds a term to the total alone."""

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        losses = super().losses(embedded, label_N)
        return losses._replace(total=losses.total + 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Forgetful", "losses depends on state that embed has left behind"),
        ("Idle", "idle is trained in task 1 and gets no gradient"),
        ("Crowd", "a prediction depends on the other images of its batch"),
        ("Upper", "embed gives other embeddings for the tokens in front of block 1 than"),
        ("Meddler", "the second task changed visual_prompts.chunks.0.key_MV"),
        ("Gambler", r"visual_prompts.chunks.0.\w+ differs between two runs with one seed"),
        ("Hoarder", "a method restored from its stored tensors predicts otherwise"),
        ("Adder", "the terms of a loss do not add up to its total"),
    ],
)
def test_broken_law_is_named_with_its_remedy(name, words, tiny_clip):
    with pytest.raises(ContractError, match=f"{HERE}:{name}: {words}"):
        check_method(f"{HERE}:{name}", clip=tiny_clip)


def test_example_of_the_page_obeys_the_laws(tiny_clip, tmp_path, monkeypatch):
    """must be found as a class outside the package, with its options"""
    page = (Path(__file__).parents[2] / "docs" / "METHODS.md").read_text()
    name, text = re.findall(r"^```py\n# my_package/(\w+).py\n(.*?)^```", page, re.M | re.S)[0]
    (tmp_path / f"page_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    check_method(f"page_{name}:Adapters", {"share": 0.3}, clip=tiny_clip)
    with pytest.raises(ConfigError, match="share: .*greater than or equal to 0, found -1"):
        check_method(f"page_{name}:Adapters", {"share": -1}, clip=tiny_clip)


def test_unknown_method_is_named():
    with pytest.raises(ConfigError, match="'tppt-v' is not a method; did you mean 'tppt_v'"):
        check_method("tppt-v")


def test_demo_clip_is_used_unless_another_is_given():
    check_method("zeroshot")
