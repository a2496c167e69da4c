"""Templates of each index of a sequence: its classes have its prompts, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.export import main as export
from pipeline.inference import load_classifier
from pipeline.methods.base import MethodContext, task_prompts
from pipeline.model.anchors import FixedAnchors, LearnedAnchors
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompts import unit
from pipeline.output.learned import load_run
from pipeline.output.results import RunResults, read_results
from pipeline.reporting.protocols import differences
from pipeline.tasks import Task
from pipeline.templates import TextConfig
from pipeline.training.checked_run import check_run
from pipeline.training.label_space import open_label_space
from tests.interruptions import StopAt, changed, start
from tests.shards import draw_arrival, store
from tests.tiny import build_config, draw_images

pytestmark = pytest.mark.usefixtures("one_clip")

# The name "gnu" is in both sets.
ARRIVALS = (("ant", "bee", "gnu"), ("gnu", "hen"))
DRAWN, PHOTO = ["a drawing of a {}.", "{} in ink."], ["a photo of a {}."]
N_STOP = 16  # checks for a request to stop, until one within the second task


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The places of two prepared data sets."""
    urls = [str(tmp_path_factory.mktemp("sets") / str(n)) for n in range(len(ARRIVALS))]
    for number, (url, names) in enumerate(zip(urls, ARRIVALS, strict=True)):
        store(url, draw_arrival(names, number), classes=names)
    return urls


def sequence(arch: str, urls: Sequence[str], output: Path, templates: Any, **more: Any) -> Config:
    """A run over some data sets, each one task."""
    settings: dict[str, Any] = {
        "output": str(output),
        "data": {"index": list(urls), "workers": 0},
        "tasks": {"class_order": "natural", "classes_per_task": "all", "known_classes": "apart"},
        "text": {"templates": templates, "ensemble": True},
        "method": {"name": "finetune"},
        "optim": {"epochs": 1, "learning_rate": 0.5},
    }
    return build_config(arch, "unused", **(settings | more))


def results_of(config: Config) -> RunResults:
    results = read_results(config.output)
    assert results is not None
    return results


@pytest.fixture(scope="module")
def finished(tiny_arch, sets, tmp_path_factory) -> Config:
    """A run whose two data sets have two templates and one."""
    config = sequence(tiny_arch, sets, tmp_path_factory.mktemp("run"), [DRAWN, PHOTO])
    assert start(config)
    return config


def by_hand(clip: FrozenClip, n_sets: int = 2, *, first_only: bool = False) -> Tensor:
    """The anchor of each class from the templates of its data set."""
    rows = []
    for names, templates in zip(ARRIVALS[:n_sets], (DRAWN, PHOTO), strict=False):
        for name in names:
            texts = [template.replace("{}", name) for template in templates][: first_only or None]
            rows.append(unit(unit(clip.encode_text(clip.tokenize(texts))).mean(dim=0)))
    return torch.stack(rows)


TASKS = (
    Task(0, first=0, labels=(0, 1, 2), names=ARRIVALS[0]),
    Task(1, first=3, labels=(3, 4), names=ARRIVALS[1], group=1),
    Task(2, first=5, labels=(), names=(), known=(1, 4), group=1),
)


@torch.no_grad()
def test_anchors_depend_on_the_templates_of_their_own_index(tiny_clip):
    """must hold for new classes, and for known ones that a later index has more images of"""
    text = TextConfig(templates=[DRAWN, PHOTO])
    fixed = FixedAnchors(tiny_clip, lambda task: task_prompts(text, task), ensemble=True)
    anchors = LearnedAnchors(tiny_clip, fixed, residuals=True, seed=1)
    for task in TASKS:
        anchors.begin_task(task)
        anchors.end_task(task)
    expected_CE = by_hand(tiny_clip, first_only=True)
    torch.testing.assert_close(fixed.for_evaluation(), by_hand(tiny_clip), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(anchors.unprompted(), expected_CE, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(anchors.current(), expected_CE[[1, 4]], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_label_space_has_future_classes_with_their_own_templates(finished, tiny_clip):
    run = check_run(changed(finished, evaluation={"label_space": "all"}), 1)
    method = load_run(finished.output, 1).method
    space = open_label_space(run, method)
    anchors_CE = space._name_anchor_AE
    torch.testing.assert_close(anchors_CE, by_hand(tiny_clip), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("stage", [1, 2])
def test_loaded_run_has_the_anchors_that_it_was_tested_with(finished, tiny_clip, stage):
    loaded = load_run(finished.output, stage)
    assert [task.group for task in loaded.tasks] == [0, 1][:stage]
    anchor_CE = loaded.method.anchors.for_evaluation()
    torch.testing.assert_close(anchor_CE, by_hand(tiny_clip, stage), rtol=1e-5, atol=1e-6)


def test_export_scores_as_the_run_and_its_card_has_the_templates(finished, tmp_path):
    assert export(["--run", finished.output, "--out", str(tmp_path)]) == 0
    outputs = (finished.output, str(tmp_path))
    of_run, of_export = (load_classifier(output)(draw_images(4)) for output in outputs)
    torch.testing.assert_close(of_export.float(), of_run, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "README.md").read_text()
    assert "| templates of index 1 | `a drawing of a {}.`; `{} in ink.` |" in card
    assert "| templates of index 2 | `a photo of a {}.` |" in card


@pytest.mark.parametrize(
    ("groups", "words"), [([0, 2], "more than the 2 indexes"), ([0], "groups has another number")]
)
def test_record_of_other_indexes_is_refused(finished, tmp_path, groups, words):
    shutil.copytree(finished.output, tmp_path / "copy")
    file = tmp_path / "copy" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"groups": groups}))
    with pytest.raises(DataError, match=words):
        load_run(str(tmp_path / "copy"))


def test_equal_lists_are_one_list(tiny_arch, sets, tmp_path):
    """must be the same run to the last bit, with the same record and protocol"""
    one, other = (
        sequence(tiny_arch, sets, tmp_path / name, templates, method={"name": "tppt_vt"})
        for name, templates in (("one", DRAWN), ("other", [DRAWN, DRAWN]))
    )
    assert start(one) and start(other)
    first, second = results_of(one), results_of(other)
    assert (first.learned_sha256, first.counts) == (second.learned_sha256, second.counts)
    assert first.predictions_sha256 == second.predictions_sha256
    assert first.manifest.identity == second.manifest.identity
    assert first.manifest.config_sha256 == second.manifest.config_sha256
    assert first.protocol == second.protocol
    assert start(changed(other, output=one.output)), "the finished run is this one"


def test_other_templates_are_another_protocol(finished, tiny_arch, sets, tmp_path):
    """must depend on the templates of the learned tasks alone"""
    config = sequence(tiny_arch, sets, tmp_path / "other", [DRAWN, DRAWN])
    assert start(config)
    (difference,) = differences(results_of(finished), results_of(config))
    assert difference.setting == "text.templates"
    assert results_of(finished).protocol.settings["text.templates"] == [DRAWN, PHOTO]
    short = changed(finished, output=str(tmp_path / "short"), tasks={"limit": 1})
    assert start(short)
    assert results_of(short).protocol.settings["text.templates"] == DRAWN


def test_run_that_was_stopped_ends_with_the_same_bits(finished, tmp_path):
    config = changed(finished, output=str(tmp_path))
    assert not start(config, StopAt(N_STOP))
    assert results_of(config).n_learned == 1
    assert start(config)
    assert results_of(config).learned_sha256 == results_of(finished).learned_sha256
    assert results_of(config).predictions_sha256 == results_of(finished).predictions_sha256


def test_index_can_be_appended_with_its_own_templates(finished, tiny_arch, sets, tmp_path):
    """must continue a run that had one list, and refuse other templates of what is learned"""
    alone = sequence(tiny_arch, sets[:1], tmp_path / "run", DRAWN)
    assert start(alone)
    longer = sequence(tiny_arch, sets, tmp_path / "run", [PHOTO, PHOTO])
    with pytest.raises(ConfigError, match=r"text\.templates=\['a drawing .* instead of \['a photo"):
        start(longer)
    assert start(changed(longer, text={"templates": [DRAWN, PHOTO]}))
    assert results_of(longer).predictions_sha256 == results_of(finished).predictions_sha256
    assert results_of(longer).protocol == results_of(finished).protocol


@pytest.mark.parametrize("templates", [[DRAWN], [DRAWN, PHOTO, PHOTO], [PHOTO, PHOTO, PHOTO]])
def test_wrong_number_of_lists_is_refused(tiny_arch, sets, tmp_path, templates):
    config = sequence(tiny_arch, sets, tmp_path, templates)
    words = f"templates of {len(templates)} indexes and data.index has 2; give a list of templates"
    with pytest.raises(ConfigError, match=words):
        check_run(config, 1)


def test_prompts_of_each_index_are_checked(tiny_arch, sets, tmp_path):
    """must name a class whose prompt is too long in the ensemble of its own index"""
    long = "a {}" + " and a thing" * 20
    config = sequence(tiny_arch, sets, tmp_path, [PHOTO, [*PHOTO, long]])
    with pytest.raises(ConfigError, match="class '(gnu|hen)': its prompt has"):
        check_run(config, 1)
    check_run(changed(config, text={"ensemble": False}), 1)


def test_held_out_set_may_have_its_own_templates(finished, sets, tmp_path):
    """must need them where templates depend on the index, and be the zero-shot accuracy of them"""
    own = {"index": sets[1], "templates": PHOTO}
    with pytest.raises(ConfigError, match=r"^evaluation\.held_out: .*has no templates, and text"):
        check_run(changed(finished, evaluation={"held_out": [sets[1]]}), 1)
    config = changed(finished, output=str(tmp_path / "run"), evaluation={"held_out": [own]})
    alone = changed(
        finished,
        output=str(tmp_path / "alone"),
        data={"index": sets[1]},
        text={"templates": PHOTO},
        method={"name": "zeroshot"},
    )
    assert start(config) and start(alone)
    (entry,) = results_of(config).retention
    assert entry.accuracy[0] == results_of(alone).last_accuracy
    assert entry.templates == PHOTO
    assert entry.key != entry.model_copy(update={"templates": DRAWN}).key != entry.sha256[:8]
    assert results_of(config).protocol == results_of(finished).protocol


def test_context_gives_each_task_the_prompts_of_its_index(finished, tiny_clip):
    context = MethodContext.of(finished, tiny_clip)
    assert context.prompts_of(TASKS[0])[0] == ["a drawing of a ant.", "ant in ink."]
    assert context.prompts_of(TASKS[1]) == [["a photo of a gnu."], ["a photo of a hen."]]
