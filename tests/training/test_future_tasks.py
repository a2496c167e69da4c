"""Tasks in their own label space, and tasks that are not learned yet."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline import load_classifier
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.model.prompts import unit
from pipeline.output.learned import load_run
from pipeline.output.predictions import read_predictions
from pipeline.output.results import RunResults, read_results
from pipeline.output.transfer_metrics import transfer_figures
from pipeline.reporting.protocols import differences
from tests.interruptions import StopAt, changed, start
from tests.shards import draw_arrival, draw_samples, store
from tests.tiny import build_config

N_STOP = 34  # checks for a request to stop, until one within the second task
ARRIVALS = (("fir", "gnu"), ("hen", "ibis", "jay"))
CLASSES_OF_TASK = [(0, 1, 2, 3, 4), (5, 6), (7, 8, 9)]


def results_of(config: Config) -> RunResults:
    results = read_results(config.output)
    assert results is not None
    return results


@pytest.fixture(scope="module")
def finished(tiny_arch, tmp_path_factory) -> Config:
    """A sequence of three complete data sets, each one task, in the label space of the task."""
    folder = tmp_path_factory.mktemp("run")
    store(str(folder / "first"), draw_samples())
    for number, names in enumerate(ARRIVALS):
        store(str(folder / f"{number}"), draw_arrival(names, 3 + number), classes=names)
    config = build_config(
        tiny_arch,
        "unused",
        output=str(folder / "run"),
        data={"index": [str(folder / name) for name in ("first", "0", "1")]},
        method={"name": "finetune"},
        tasks={"class_order": "natural", "classes_per_task": 5, "appended": "one_task"},
        optim={"epochs": 1, "learning_rate": 0.5},
        engine={"micro_batch": 2},
        evaluation={"label_space": "task", "future_tasks": True},
    )
    assert start(config)
    return config


@pytest.fixture(scope="module")
def frozen(finished, tmp_path_factory) -> RunResults:
    """The same sequence with CLIP itself."""
    output = str(tmp_path_factory.mktemp("frozen"))
    config = changed(finished, output=output, method={"name": "zeroshot"})
    assert start(config)
    return results_of(config)


def test_images_get_classes_of_their_own_task(finished):
    """must count as correct those of which the best class of the task is the right one"""
    correct = [0] * 3
    for each in read_predictions(finished.output):
        classes = CLASSES_OF_TASK[each.task]
        assert {number for number, _ in each.top} == set(classes)
        assert sum(probability for _, probability in each.top) == pytest.approx(1, abs=1e-4)
        correct[each.task] += each.top[0][0] == each.label
    assert results_of(finished).counts.correct[-1] == correct


def test_frozen_clip_is_the_same_before_and_after_it_has_learned(frozen):
    assert len(frozen.full_matrix) == 4
    assert {tuple(row) for row in frozen.full_matrix} == {tuple(frozen.accuracy_matrix[-1])}
    assert frozen.transfer is not None and frozen.transfer.forward_transfer == 0
    assert None not in frozen.full_matrix[0] and len(set(frozen.full_matrix[0])) > 1


def test_matrix_starts_with_clip_and_has_what_was_learned(finished, frozen):
    """must have the accuracies of learned tasks below the diagonal, and figures of all"""
    results = results_of(finished)
    assert results.full_matrix[0] == frozen.full_matrix[0]
    for n_learned, row in enumerate(results.accuracy_matrix, start=1):
        assert results.full_matrix[n_learned][:n_learned] == row[:n_learned]
        assert None not in results.full_matrix[n_learned]
    assert results.full_matrix != frozen.full_matrix
    assert results.transfer is not None
    assert results.transfer.model_dump() == transfer_figures(results.full_matrix)


def test_run_that_was_stopped_has_the_same_matrix(finished, tmp_path):
    """must have no figure of transfer where an earlier start tested no future task"""
    config = changed(finished, output=str(tmp_path))
    assert not start(config, StopAt(N_STOP)) and results_of(config).n_learned == 1
    assert results_of(config).transfer is None
    assert start(config)
    assert results_of(config).full_matrix == results_of(finished).full_matrix

    late = changed(config, output=str(tmp_path / "late"), evaluation={"future_tasks": False})
    assert not start(late, StopAt(N_STOP - 10)) and results_of(late).full_matrix == []
    assert start(changed(late, evaluation={"future_tasks": True}))
    found, expected = results_of(late), results_of(finished)
    assert found.full_matrix[2:] == expected.full_matrix[2:]
    assert found.full_matrix[:2] == [[None] * 3, [expected.full_matrix[1][0], None, None]]
    assert found.transfer is None and found.learned_sha256 == expected.learned_sha256


@pytest.fixture(scope="module")
def seen(finished, tmp_path_factory) -> Config:
    """The same sequence in the label space of all classes seen so far."""
    output, evaluation = str(tmp_path_factory.mktemp("seen")), {"label_space": "seen"}
    config = changed(finished, output=output, evaluation=evaluation | {"future_tasks": False})
    assert start(config)
    return config


@pytest.fixture(scope="module")
def united(finished, tmp_path_factory) -> Config:
    """The same sequence, each index one task, in the label space of all tasks."""
    output, tasks = str(tmp_path_factory.mktemp("united")), {"classes_per_task": "all"}
    tasks |= {"appended": "split"}
    config = changed(finished, output=output, tasks=tasks, evaluation={"label_space": "all"})
    assert start(config)
    return config


def images_of_each_task(config: Config) -> list[tuple[Tensor, list[int]]]:
    """The test images of each task, ``image_BCHW``, and their class numbers."""
    preprocess, found, first = load_classifier(config.output).preprocess, [], 0
    samples = [draw_samples(), *(draw_arrival(names, 3 + k) for k, names in enumerate(ARRIVALS))]
    for task, names in zip(samples, results_of(config).tasks, strict=True):
        tested = [each for each in task if each.split == "test"]
        images = [preprocess(Image.open(io.BytesIO(each.data)).convert("RGB")) for each in tested]
        found.append((torch.stack(images), [first + each.label for each in tested]))
        first += len(names)
    return found


@torch.no_grad()
def test_every_image_is_classified_among_the_classes_of_all_tasks(united):
    """must equal a computation by hand: the method as it was, and the anchors of all names"""
    results, images = results_of(united), images_of_each_task(united)
    names, expected = [name for task in results.tasks for name in task], []
    for n_learned in range(4):
        method = load_run(united.output, n_learned or None).method
        clip, row = method.clip, []
        anchor_AE = unit(clip.encode_text(clip.tokenize([f"a photo of a {n}." for n in names])))
        for image_BCHW, labels in images:
            features = clip.encode_image(image_BCHW)
            embedded = method.encode(image_BCHW, features)
            embedding_BE = embedded.embedding_BE if n_learned else unit(features.joint_BE)
            chosen = (embedding_BE @ anchor_AE.T).argmax(dim=1).tolist()
            hits = [one == other for one, other in zip(chosen, labels, strict=True)]
            row.append(sum(hits) / len(hits))
        expected.append(row)
    assert results.full_matrix == expected
    assert results.transfer is not None and 0 < results.transfer.transfer < 1


def test_label_space_of_all_changes_the_answers_alone(finished, seen, united):
    """must learn the same, and end as the label space of what is seen, which is then everything"""
    task_wise, so_far, of_all = map(results_of, (finished, seen, united))
    assert of_all.tasks == task_wise.tasks
    assert task_wise.learned_sha256 == so_far.learned_sha256 == of_all.learned_sha256
    assert of_all.counts.correct[-1] == so_far.counts.correct[-1]
    assert of_all.predictions_sha256 == so_far.predictions_sha256
    for row, easier in zip(of_all.full_matrix, task_wise.full_matrix, strict=True):
        assert all(one <= other for one, other in zip(row, easier, strict=True))
    assert of_all.counts.correct[0] < so_far.counts.correct[0] <= task_wise.counts.correct[0]


def test_equal_names_of_two_data_sets_are_two_classes(tiny_arch, tmp_path):
    """must not count an image of one as an image of the other"""
    for number in (0, 1):
        classes = ("gnu", f"hen {number}")
        samples = draw_arrival(classes, 3 + number)
        store(str(tmp_path / f"{number}"), samples, classes=classes)
    config = build_config(
        tiny_arch,
        "unused",
        output=str(tmp_path / "run"),
        data={"index": [str(tmp_path / "0"), str(tmp_path / "1")]},
        method={"name": "simplecil"},
        tasks={"class_order": "natural", "classes_per_task": "all", "known_classes": "apart"},
        evaluation={"label_space": "all"},
    )
    assert start(config)
    results = results_of(config)
    assert results.tasks == [["gnu", "hen 0"], ["gnu", "hen 1"]] and not results.known_classes
    assert {each.label for each in read_predictions(config.output)} == {0, 1, 2, 3}
    assert results.counts.images[-1] == [6, 6] and results.class_images == [3] * 4
    assert load_classifier(config.output).classes == ("gnu", "hen 0", "gnu", "hen 1")


def test_label_space_belongs_to_the_protocol(finished, seen):
    one, two = results_of(finished), results_of(seen)
    assert one.learned_sha256 == two.learned_sha256 and one.counts != two.counts
    assert [each[:3] for each in differences(one, two)] == [
        ("evaluation.label_space", "task", "seen")
    ]
    assert "evaluation.label_space" not in two.protocol.settings, "older runs have no such key"
    with pytest.raises(ConfigError, match="label_space"):
        start(changed(finished, output=seen.output))


def test_future_tasks_need_their_own_label_space(finished):
    with pytest.raises(ConfigError, match=r"set evaluation\.label_space=task"):
        changed(finished, evaluation={"label_space": "seen"})
