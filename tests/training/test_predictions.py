"""The predictions of a run are those that its accuracies count, on any number of ranks."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import pytest
import torch

from pipeline import storage
from pipeline.config import Config
from pipeline.data.index import read_index
from pipeline.output.predictions import NAME, read_predictions
from pipeline.output.results import read_results
from pipeline.training.predictions import TopClasses
from tests.interruptions import changed, start, start_on_ranks
from tests.shards import draw_samples, store
from tests.tiny import build_config, tiny_tasks

_, _, THIRD = tiny_tasks()
TASKS = {"class_order": "natural", "classes_per_task": 2}
METHODS = {
    "images": {"name": "finetune"},
    "features": {"name": "zeroshot", "options": {"zeroshot": {"classifier": {"name": "ridge"}}}},
}


@pytest.fixture(scope="module", params=METHODS)
def finished(request, tiny_arch, tmp_path_factory) -> Config:
    """A run that could not use one test image, on images or on frozen features."""
    torch.set_num_threads(1)  # as each rank below: bits depend on it, and another test may set it
    folder = tmp_path_factory.mktemp("run")
    # cat/001 is one image in each split
    store(str(folder / "shards"), draw_samples(), damaged={"cat/001": b"torn"})
    config = build_config(
        tiny_arch,
        str(folder / "shards"),
        output=str(folder / "run"),
        method=METHODS[request.param],
        data={"on_bad_sample": "skip", "bad_sample_budget": 2, "eval_batch": 3},
        tasks=TASKS,
        optim={"epochs": 1},
        engine={"micro_batch": 2},
    )
    assert start(config)
    return config


def test_predictions_are_those_that_the_results_count(finished):
    """must have each usable test image once, in the order of tasks, shards and samples"""
    results, predictions = read_results(finished.output), read_predictions(finished.output)
    index = read_index(str(finished.data.index))
    expected = []
    for task, labels in enumerate([[0, 1], [2, 3], [4]]):
        chosen = index.select("test", labels)
        samples = chosen.take(torch.arange(len(chosen)).numpy())
        expected += [
            (key, index.shards[shard].name, task, label)
            for key, shard, label in zip(
                samples.keys, samples.shard_S, samples.label_S, strict=True
            )
        ]
    expected.remove(next(entry for entry in expected if entry[0] == "cat/001"))
    assert [each[:4] for each in predictions] == expected

    right: defaultdict[int, list[bool]] = defaultdict(list)
    for each in predictions:
        right[each.label].append(each.top[0][0] == each.label)
    accuracy = [round(sum(right[c]) / len(right[c]), 4) for c in range(5)]
    assert results.class_accuracies[-1] == accuracy and 0 < sum(accuracy) < 5
    assert results.class_images == [len(right[c]) for c in range(5)]
    assert [len(row) for row in results.class_accuracies] == [2, 4, 5]
    for stage, row in enumerate(results.counts.correct):
        for task, correct in enumerate(row):
            counts = results.class_accuracies[stage][2 * task : 2 * task + 2]
            images = results.class_images[2 * task : 2 * task + 2]
            assert round(sum(a * n for a, n in zip(counts, images, strict=True))) == correct


def test_probabilities_descend_and_are_at_most_five(finished):
    for each in read_predictions(finished.output):
        classes, probabilities = zip(*each.top, strict=True)
        assert len(set(classes)) == 5 and list(probabilities) == sorted(probabilities)[::-1]
        assert 0 < sum(probabilities) <= 1.00001


def test_hash_is_in_the_results_and_the_file_can_be_left_out(finished, tmp_path):
    """must not leave the file of an earlier start that wrote it"""
    data = storage.read_bytes(storage.join(finished.output, NAME))
    results = read_results(finished.output)
    assert results.predictions_sha256 == hashlib.sha256(data).hexdigest()
    config = changed(finished, output=str(tmp_path), evaluation={"predictions": False})
    (tmp_path / NAME).write_text("of an earlier start")
    assert start(config)
    without = read_results(config.output)
    assert without.predictions_sha256 is None and not (tmp_path / NAME).exists()
    assert without.class_accuracies == results.class_accuracies
    assert without.manifest.config_sha256 == results.manifest.config_sha256
    assert without.manifest.protocol == results.manifest.protocol


def test_two_ranks_write_the_same_bytes(finished, tmp_path):
    config = changed(finished, output=str(tmp_path))
    assert start_on_ranks(2, config)
    one, two = read_results(finished.output), read_results(config.output)
    assert one.predictions_sha256 == two.predictions_sha256
    assert (one.class_accuracies, one.class_images) == (two.class_accuracies, two.class_images)


def test_classes_with_equal_scores_are_in_class_order(alone, tiny_shards):
    """must order them as ``argmax`` does, and leave out an image that was not tested"""
    selection = read_index(tiny_shards).select("test", list(THIRD.labels))
    top = TopClasses(selection, 7, torch.device("cpu"))
    for row in range(1, len(selection)):
        score_BC = torch.zeros(1, 7)
        score_BC[:, 4] = 1.0
        probability_BC = score_BC.softmax(dim=1)
        top.add(torch.from_numpy(selection.sample_S[row : row + 1]), score_BC, probability_BC)
    top.gather()
    predictions = list(top.predictions(THIRD, torch.arange(7)))
    assert [each.key for each in predictions] == list(selection.keys[1:]) != []
    for each in predictions:
        first, *others = (number for number, _ in each.top)
        assert first == 4 and others == sorted(others)
