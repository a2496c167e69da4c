"""Data sets that are never learned: their figures are those of CLIP with the adapted tower."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline import load_classifier
from pipeline.config import Config
from pipeline.data.index import read_index
from pipeline.errors import ConfigError, DataError
from pipeline.model.prompts import unit
from pipeline.output.learned import load_run
from pipeline.output.results import RunResults, read_results
from pipeline.training.checked_run import check_run
from pipeline.training.dry_run import format_plan
from tests.interruptions import StopAt, changed, start, start_on_ranks
from tests.shards import TEST, draw_samples, store
from tests.tiny import CLASSES, TEST_IMAGES, build_config

N_TASKS = 3
N_STOP = 32  # checks for a request to stop, until one within the second task


@pytest.fixture(scope="module")
def finished(tiny_arch, tiny_shards, tmp_path_factory) -> Config:
    """A run of a learned image tower over three tasks, with one held-out set."""
    folder = tmp_path_factory.mktemp("run")
    store(str(folder / "shards"), draw_samples())
    config = build_config(
        tiny_arch,
        str(folder / "shards"),
        output=str(folder / "run"),
        method={"name": "finetune"},
        tasks={"class_order": "natural", "classes_per_task": 2},
        optim={"epochs": 1, "learning_rate": 0.5},
        engine={"micro_batch": 2},
        evaluation={"held_out": [tiny_shards]},
    )
    assert start(config)
    return config


def results_of(config: Config) -> RunResults:
    results = read_results(config.output)
    assert results is not None
    return results


def test_first_stage_is_a_zero_shot_run_over_the_set(finished, tiny_shards, tmp_path):
    config = changed(
        finished,
        output=str(tmp_path),
        data={"index": tiny_shards},
        method={"name": "zeroshot"},
        tasks={"classes_per_task": len(CLASSES)},
    )
    assert start(config)
    (entry,) = results_of(finished).retention
    assert (entry.index, entry.sha256) == (tiny_shards, read_index(tiny_shards).sha256)
    assert (entry.classes, entry.images) == (len(CLASSES), sum(TEST_IMAGES))
    assert len(entry.accuracy) == 1 + N_TASKS
    assert entry.accuracy[0] == results_of(config).last_accuracy
    repeated = results_of(config).retention[0].accuracy
    assert set(repeated) == {entry.accuracy[0]}, "zeroshot never changes"


def test_last_stage_is_that_of_the_learned_method_by_hand(finished, tiny_images):
    """must embed as the method that was learned, and compare with all names of the set"""
    preprocess = load_classifier(finished.output).preprocess
    method = load_run(finished.output).method
    clip, n_correct = method.clip, 0
    prompts = [f"a photo of a {name}." for name in CLASSES]
    with torch.no_grad():
        anchor_CE = unit(clip.encode_text(clip.tokenize(prompts)))
        for label, folder in enumerate(CLASSES.values()):
            for file in sorted((tiny_images / "test" / folder).iterdir()):
                image_BCHW = preprocess(Image.open(file))[None]
                embedded = method.encode(image_BCHW, clip.encode_image(image_BCHW))
                n_correct += int((embedded.embedding_BE @ anchor_CE.T).argmax()) == label
    (entry,) = results_of(finished).retention
    assert entry.accuracy[-1] == n_correct / sum(TEST_IMAGES) != entry.accuracy[0]


def test_nothing_that_is_learned_depends_on_held_out_sets(finished, tmp_path):
    config = changed(finished, output=str(tmp_path), evaluation={"held_out": []})
    assert start(config)
    one, two = results_of(finished), results_of(config)
    assert two.retention == []
    assert (one.learned_sha256, one.counts) == (two.learned_sha256, two.counts)
    assert one.predictions_sha256 == two.predictions_sha256
    assert one.manifest.config_sha256 == two.manifest.config_sha256
    assert one.manifest.identity == two.manifest.identity
    assert one.protocol == two.protocol


def test_run_that_was_stopped_keeps_its_stages(finished, tmp_path):
    """must test each stage once, and name a stage that had no such set as untested"""
    for held_out, n_untested in ((finished.evaluation.held_out, 0), ([], 2)):
        output = str(tmp_path / str(n_untested))
        config = changed(finished, output=output, evaluation={"held_out": held_out})
        assert not start(config, StopAt(N_STOP - 8 * n_untested))
        assert results_of(config).n_learned == 1
        assert start(changed(config, evaluation=finished.evaluation.model_dump()))
        (entry,), (expected,) = results_of(config).retention, results_of(finished).retention
        assert entry.accuracy == [*[None] * n_untested, *expected.accuracy[n_untested:]]


def test_two_ranks_give_the_same_figures(finished, tmp_path):
    config = changed(finished, output=str(tmp_path))
    assert start_on_ranks(2, config)
    assert results_of(config).retention == results_of(finished).retention


def test_figures_are_in_the_log_of_metrics(finished):
    lines = (Path(finished.output) / "metrics.jsonl").read_text().splitlines()
    stages = [line for line in map(json.loads, lines) if line["kind"] == "stage"]
    (entry,) = results_of(finished).retention
    assert [line["retention"] for line in stages] == [[value] for value in entry.accuracy[1:]]


def test_images_of_a_set_that_cannot_be_used_are_listed(finished, tmp_path):
    """must list them with the set once, whatever the number of tests, and not with the run"""
    store(str(tmp_path / "set"), draw_samples(), damaged={"cat/002": b"no image"})
    config = changed(
        finished,
        output=str(tmp_path / "run"),
        data={"on_bad_sample": "skip", "bad_sample_budget": 1},
        evaluation={"held_out": [str(tmp_path / "set")]},
    )
    assert start(config)
    results = results_of(config)
    (entry,) = results.retention
    assert entry.images == sum(TEST) - 1 and results.skipped_samples == []
    assert [sample.key for sample in entry.skipped_samples] == ["cat/002"]
    assert "cannot be decoded" in entry.skipped_samples[0].reason


def test_plan_names_each_set(finished, tiny_shards):
    images = sum(TEST_IMAGES)
    line = f"held out   {tiny_shards}: {len(CLASSES)} classes, {images} test images"
    assert line in format_plan(check_run(finished, 1))


def test_no_set_is_opened_for_validation(finished):
    data, evaluation = {"validation_fraction": 0.3}, {"split": "validation"}
    config = changed(finished, data=data, evaluation=evaluation)
    assert check_run(config, 1).held_out == ()


def test_unusable_set_is_refused_before_the_start(finished, tmp_path):
    with pytest.raises(ConfigError, match=r"^evaluation\.held_out: .*nowhere"):
        check_run(changed(finished, evaluation={"held_out": [str(tmp_path / "nowhere")]}), 1)
    store(str(tmp_path), [each for each in draw_samples() if each.split == "train"])
    with pytest.raises(DataError, match=f"{tmp_path}.*test"):
        check_run(changed(finished, evaluation={"held_out": [str(tmp_path)]}), 1)
    with pytest.raises(ConfigError, match="held_out names one data set twice"):
        changed(finished, evaluation={"held_out": [str(tmp_path)] * 2})
