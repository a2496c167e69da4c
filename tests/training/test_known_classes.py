"""Arrivals with more images of known classes: tasks with an accuracy of their own."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from pipeline.compare import main as compare
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompts import unit
from pipeline.output.identity import config_hash
from pipeline.output.learned import load_method, run_tasks
from pipeline.output.results import RunResults, read_results
from pipeline.training.checked_run import check_run
from pipeline.training.dry_run import format_plan
from tests import stages
from tests.chaos.comparison import read_run
from tests.interruptions import StopAt, changed, dying_before_step, start
from tests.shards import draw_arrival, store
from tests.tiny import build_config
from tests.variants import VARIANTS

pytestmark = pytest.mark.usefixtures("one_clip")

# The classes of each arrival. The first one makes two tasks; each other one is a task.
ARRIVALS = (["ant", "bee", "cat", "dog"], ["cat", "ant"], ["elk", "bee", "fox"], ["gnu", "hen"])
TASKS = [["ant", "bee"], ["cat", "dog"], [], ["elk", "fox"], ["gnu", "hen"]]
KNOWN = [[], [], ["ant", "cat"], ["bee"], []]
SHOWN = [*TASKS[:2], *ARRIVALS[1:]]  # the classes that each task has images of
KEPT = VARIANTS["anchors kept as learned"].model_dump()


@dataclass(frozen=True)
class Stream:
    """Prepared arrivals, and the model that learns them."""

    arch: str
    urls: list[str]

    def config(self, output: Path | str, n_arrivals: int = 4, **sections: Any) -> Config:
        """A run over the first arrivals, in the order of their classes."""
        tasks = {"classes_per_task": 2, "appended": "one_task", "known_classes": "allow"}
        tasks |= {"class_order": "natural", **sections.pop("tasks", {})}
        data = {"index": self.urls[:n_arrivals], "global_batch": 4, "workers": 0}
        return build_config(
            self.arch, "unused", output=str(output), tasks=tasks, data=data,
            optim={"epochs": 1, "learning_rate": 1e-2}, **sections,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stream(tiny_arch: str, tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = tmp_path_factory.mktemp("arrivals")
    urls = [str(folder / str(number)) for number in range(len(ARRIVALS))]
    for number, (url, names) in enumerate(zip(urls, ARRIVALS, strict=True)):
        store(url, draw_arrival(names, number), classes=names)
    return Stream(tiny_arch, urls)


def task_files(config: Config) -> dict[str, bytes]:
    """The file of the learned tensors of each task."""
    return {
        file.name: file.read_bytes() for file in sorted((Path(config.output) / "tasks").iterdir())
    }


def images_of(task: int, split: str, name: str) -> Tensor:
    """``image_BCHW`` of one class in the index of a task."""
    number = max(0, task - 1)
    samples = draw_arrival(ARRIVALS[number], number)
    files = [s.data for s in samples if s.split == split and s.key.startswith(f"{name}/")]
    pixels = [np.array(Image.open(io.BytesIO(data))) for data in files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def test_each_arrival_is_a_task_with_its_own_images(stream):
    run = check_run(stream.config("memory://plan"), 1)
    assert [list(task.names) for task in run.tasks] == TASKS
    names = [name for task in TASKS for name in task]
    assert [[names[number] for number in task.known] for task in run.tasks] == KNOWN
    for task in run.tasks:
        arrival = max(0, task.index - 1)
        for selection, count in ((run.data.train(task), 5), (run.data.test(task), 3)):
            keys = {key.rpartition("-")[0] for key in selection.keys}
            assert keys == {f"{name}/{arrival}" for name in SHOWN[task.index]}
            assert len(selection) == count * len(SHOWN[task.index])
    rows = [line.split() for line in format_plan(run).splitlines()]
    assert [row[1] for row in rows if row and row[0] in "12345"] == ["2", "2", "0+2", "2+1", "2"]


def test_accuracy_is_that_of_each_arrival_by_an_independent_computation(stream, tiny_clip):
    """must test the images of an arrival alone, among all classes, with means over all arrivals"""
    config = stream.config("memory://simplecil", method=VARIANTS["simplecil"].model_dump())
    assert start(config)
    results = read_results(config.output)

    def encode(task: int, split: str, name: str) -> Tensor:
        pixels = tiny_clip.normalise(images_of(task, split, name))
        return tiny_clip.clip.encode_image(pixels).double()

    trained: dict[str, list[Tensor]] = {}
    for stage, names in enumerate(SHOWN):
        for name in names:
            trained.setdefault(name, []).append(encode(stage, "train", name))
        mean_CE = unit(torch.stack([torch.cat(rows).mean(dim=0) for rows in trained.values()]))
        expected = []
        for task in range(stage + 1):
            hits = [
                [*trained][choice] == name
                for name in SHOWN[task]
                for choice in (unit(encode(task, "test", name)) @ mean_CE.T).argmax(dim=1)
            ]
            expected.append(sum(hits) / len(hits))
        row = results.accuracy_matrix[stage]
        assert row == [*expected, *[None] * (len(SHOWN) - stage - 1)]
    assert results.counts.images[-1] == [3 * len(names) for names in SHOWN]
    assert (results.tasks, results.known_classes) == (TASKS, KNOWN)
    assert results.forgetting == pytest.approx(forgetting(results.accuracy_matrix))
    assert len({*results.accuracy_matrix[-1]}) > 2


def forgetting(matrix: list[list[float | None]]) -> float:
    """The mean drop of each task but the last from its best accuracy before the end."""
    last = len(matrix) - 1
    drops = [max(matrix[t][k] for t in range(k, last)) - matrix[last][k] for k in range(last)]
    return sum(drops) / last


LABELS = ["anchors kept as learned", "contexts per task", "moving residuals", "joint",
          "linear layer over all seen", "sum of two"]  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_arrivals_that_come_later_are_learned_as_if_known_from_the_start(stream, label, tmp_path):
    """must change no learned tensor of earlier tasks, and equal a run over all arrivals"""
    method = VARIANTS[label].model_dump()
    config = stream.config(tmp_path / "run", 1, method=method)
    for n_arrivals in (1, 3):
        before = task_files(config) if n_arrivals > 1 else {}
        config = stream.config(tmp_path / "run", n_arrivals, method=method)
        assert start(config)
        after = task_files(config)
        assert {name: after[name] for name in before} == before and len(after) > len(before)
    at_once = changed(config, output=str(tmp_path / "at-once"))
    assert start(at_once)
    read_run(config.output).assert_equals(read_run(at_once.output))


@pytest.mark.parametrize("step", [7, 9])
def test_arrival_can_be_interrupted(stream, tmp_path, step):
    """must resume within the task of known classes, or after it, to the same bits"""
    config = stream.config(
        tmp_path / "run", 3, method=KEPT, snapshot={"every_steps": 1}, tasks={"limit": 4}
    )
    with dying_before_step([3, 3, 3, 4], step):
        assert not start(config)
    assert not start(config, StopAt(3))
    assert start(config)
    undisturbed = changed(config, output=str(tmp_path / "undisturbed"))
    assert start(undisturbed)
    read_run(config.output).assert_equals(read_run(undisturbed.output))


def test_new_classes_alone_give_a_class_incremental_run(stream, tmp_path):
    """must have the same bits and the same identity, with the setting and without it"""
    runs = []
    for setting in ("allow", "refuse"):
        config = stream.config(tmp_path / setting, method=KEPT, tasks={"known_classes": setting})
        runs.append(changed(config, data={"index": [stream.urls[0], stream.urls[3]]}))
        assert start(runs[-1])
    one, other = (read_results(config.output) for config in runs)
    read_run(runs[0].output).assert_equals(read_run(runs[1].output))
    assert one.manifest.identity == other.manifest.identity and one.known_classes == []
    assert one.protocol == other.protocol
    assert "known_classes" not in one.protocol.settings


def test_known_classes_belong_to_the_protocol(stream, tmp_path, capsys):
    outputs = []
    for urls in (stream.urls[:1], stream.urls[:2]):
        config = changed(stream.config(tmp_path / str(len(urls))), data={"index": urls})
        assert start(config)
        outputs.append(config.output)
    assert compare(outputs) == 2
    assert "3 tasks of 2, 2, 0 classes" in capsys.readouterr().err


def test_learned_arrival_cannot_become_another_one(stream, tmp_path):
    """must compare the known classes, also where no task has another new class"""
    config = stream.config(tmp_path / "run", 2)
    assert start(config)
    swapped = str(tmp_path / "swapped")
    store(swapped, draw_arrival(["dog", "bee"], 1), classes=["dog", "bee"])
    with pytest.raises(ConfigError, match="the classes or their order differ in task 3"):
        start(changed(config, data={"index": [stream.urls[0], swapped]}))


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ([["red fox"], [], []], "names a class that no earlier task has"),
        ([[], []], "another number of tasks"),
    ],
)
def test_impossible_known_classes_in_results_are_refused(known, words):
    content = stages.build_results([stages.stage([1], [2])]).build().content()
    assert RunResults.model_validate({**content, "known_classes": []})
    with pytest.raises(ValidationError, match=words):
        RunResults.model_validate({**content, "known_classes": known})


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_loaded_method_predicts_as_the_run_did(stream, stage, tmp_path, tiny_clip):
    """must hold after tasks with known classes, from the output alone"""
    config = stream.config(tmp_path / "run", 3, method=VARIANTS["sum of two"].model_dump())
    assert start(config)
    results = read_results(config.output)
    tasks = run_tasks(results)[:stage]
    assert [task.known for task in run_tasks(results)] == [(), (), (0, 2), (1,)]
    method, names = load_method(config.output, stage), [n for task in tasks for n in task.names]
    for task in tasks:
        hits = []
        for name in SHOWN[task.index]:
            images = images_of(task.index, "test", name)
            with torch.no_grad():
                embedded = method.encode(images, FrozenClip.encode_image(tiny_clip, images))
                hits += (method.logits(embedded).argmax(dim=1) == names.index(name)).tolist()
        assert sum(hits) / len(hits) == results.accuracy_matrix[stage - 1][task.index]


def test_known_classes_are_refused_without_the_setting(stream):
    with pytest.raises(DataError, match="class 'cat' is in more than one index; set tasks.known"):
        start(stream.config("memory://x", tasks={"known_classes": "refuse"}))


def test_known_classes_need_one_task_per_index(stream):
    with pytest.raises(ConfigError, match=r"known_classes is 'allow' .*; set tasks.appended=one"):
        stream.config("memory://x", tasks={"appended": "split"})


@pytest.mark.parametrize(
    ("label", "name"),
    [("keys of a pool", "tests.probes:KeyPool"), ("ridge on tuned prompts", "tests.probes:Ridge")],
)
def test_part_that_takes_new_classes_only_is_refused(stream, label, name):
    """must be so before training, and only if an arrival has known classes"""
    config = stream.config("memory://x", method=VARIANTS[label].model_dump())
    with pytest.raises(ConfigError, match=f"task 3 has images of known classes, and '{name}' take"):
        check_run(config, 1)
    assert check_run(changed(config, data={"index": [stream.urls[0], stream.urls[3]]}), 1)


def test_task_with_one_class_has_nothing_to_compete_with(stream, tmp_path):
    lone = str(tmp_path / "lone")
    store(lone, draw_arrival(["cat"], 7), classes=["cat"])
    config = stream.config("memory://x", method={"name": "finetune"})
    with pytest.raises(ConfigError, match="2 of 4 tasks have one class, so their loss is always 0"):
        check_run(changed(config, data={"index": [stream.urls[0], lone, lone]}), 1)


def test_repeated_images_and_a_missing_split_are_refused(stream, tmp_path):
    twice = changed(stream.config("memory://x"), data={"index": [*stream.urls[:2], stream.urls[1]]})
    with pytest.raises(DataError, match="the train image cat/1-000 is in .* too, with the same"):
        check_run(twice, 1)
    untested = str(tmp_path / "untested")
    store(untested, draw_arrival(["cat", "ant"], 8, n_test=0), classes=["cat", "ant"])
    config = changed(stream.config("memory://x"), data={"index": [stream.urls[0], untested]})
    with pytest.raises(ConfigError, match="has no test image for task 3, which has known classes"):
        check_run(config, 1)


def test_setting_with_its_default_changes_no_hash():
    """must give the hash of the version before the setting"""
    refuse, allow = (
        build_config("local-dir:clip", "shards", tasks={"appended": "one_task", **given})
        for given in ({}, {"known_classes": "allow"})
    )
    assert config_hash(refuse)[:16] == "11b55256a81517a8" != config_hash(allow)[:16]
