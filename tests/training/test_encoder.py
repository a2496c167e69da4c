"""Test images are encoded again only if the method embeds them in another way."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.methods.finetune import Finetune
from pipeline.training.encoder import Encoder
from tests.chaos.comparison import RunContent, read_run
from tests.interruptions import start
from tests.tiny import build_config

FIRST_TASK = {"visual_prompts": {"growth": "first_task", "components": 3, "length": 2}}
RIDGE = {"classifier": {"name": "ridge", "options": {"vectors": ["pooled", "frozen_pooled"]}}}


@pytest.fixture
def n_embedded(monkeypatch) -> dict[str, int]:
    """The number of images that were embedded without a gradient."""
    count = {"images": 0}
    embed = Finetune.embed

    def counting(self: Finetune, image_BCHW: Any, features: Any) -> Any:
        embedded = embed(self, image_BCHW, features)
        if not embedded.embedding_BE.requires_grad:
            count["images"] += len(embedded.embedding_BE)
        return embedded

    monkeypatch.setattr(Finetune, "embed", counting)
    return count


@pytest.mark.parametrize(("growth", "is_kept"), [("first_task", True), ("chunk", False)])
def test_kept_embeddings_change_no_result(
    tiny_arch, tiny_shards, tmp_path, monkeypatch, n_embedded, growth, is_kept
):
    """must give the same bits with fewer images if the prompts are trained in one task alone"""
    options = FIRST_TASK | RIDGE | {"visual_prompts": {**FIRST_TASK["visual_prompts"]}}
    options["visual_prompts"]["growth"] = growth
    method = {"name": "finetune", "options": {"finetune": options}}

    def learn(name: str) -> RunContent:
        output = str(tmp_path / name)
        assert start(build_config(tiny_arch, tiny_shards, output=output, method=method))
        return read_run(output)

    kept = learn("kept")
    with_kept, n_embedded["images"] = n_embedded["images"], 0
    monkeypatch.setattr(Encoder, "begin_test", lambda self: None)
    kept.assert_equals(learn("anew"))
    assert (with_kept < n_embedded["images"]) == is_kept
