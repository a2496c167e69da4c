"""The anchors beside those of the frozen CLIP: every pair of classes is counted once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.methods import build_method
from pipeline.methods.base import MethodContext
from pipeline.model.backbone import FrozenClip
from pipeline.output.anchor_cosines import N_CLOSEST
from pipeline.training import anchor_change
from pipeline.training.anchor_change import compare_anchors, frozen_anchors
from tests.tiny import build_config, tiny_tasks


def draw(n_classes: int, seed: int) -> Tensor:
    """Unit vectors ``CE``."""
    drawn_CE = torch.randn(n_classes, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn_CE, dim=-1)


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_figures_are_those_of_all_pairs(rows, monkeypatch):
    """must not depend on how many rows are compared at once"""
    monkeypatch.setattr(anchor_change, "_ROWS", rows)
    frozen_CE, anchor_CE = draw(7, 1), draw(7, 2)
    found = compare_anchors(frozen_CE, anchor_CE)
    pairs = torch.combinations(torch.arange(7))
    before, now = (
        [float(of_CE[a] @ of_CE[b]) for a, b in pairs] for of_CE in (frozen_CE, anchor_CE)
    )
    assert found.frozen_cosine == pytest.approx(sum(before) / 21, abs=1e-6)
    assert found.cosine_to_frozen == pytest.approx(
        float(torch.cosine_similarity(frozen_CE, anchor_CE).mean()), abs=1e-6
    )
    for counts, values in ((found.cosines.before, before), (found.cosines.now, now)):
        expected = torch.histc(torch.tensor(values), bins=40, min=-1, max=1)
        assert counts == expected.int().tolist()
    of_pair = {tuple(map(int, pair)): n for n, pair in enumerate(pairs)}
    shown = [of_pair[pair.classes] for pair in found.cosines.closest]
    by_now, by_before = (sorted(range(21), key=lambda n: -values[n]) for values in (now, before))
    assert shown[:N_CLOSEST] == by_now[:N_CLOSEST]
    assert set(shown) == {*by_now[:N_CLOSEST], *by_before[:N_CLOSEST]}


@pytest.mark.parametrize("n_classes", [1, 2])
def test_few_classes_have_few_pairs(n_classes):
    anchor_CE = draw(n_classes, 1)
    found = compare_anchors(anchor_CE, anchor_CE)
    assert sum(found.cosines.now) == len(found.cosines.closest) == n_classes - 1
    assert found.cosines.before == found.cosines.now
    assert found.cosine_to_frozen == pytest.approx(1)


@pytest.mark.parametrize("method", ["zeroshot", "tppt_v", "tppt_vt"])
def test_learning_starts_from_the_anchors_of_zeroshot_tests(method, tiny_clip: FrozenClip):
    """must hold for several templates, which the frozen CLIP is tested with"""
    text = {"templates": ["a photo of a {}.", "a drawing of a {}."], "ensemble": True}
    found = []
    for name in (method, "zeroshot"):
        config = build_config("local-dir:clip", "shards", method={"name": name}, text=text)
        built = build_method(config.method, MethodContext.of(config, tiny_clip))
        for task in tiny_tasks():
            built.begin_task(task)
            built.end_task(task)
        found.append(frozen_anchors(built.anchors))
        tested_CE = built.classifier.anchor_CE
    assert torch.equal(*found) and torch.equal(found[0], tested_CE)
