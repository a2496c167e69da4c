"""A configuration is held against its data before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.index import format_index
from pipeline.data.shard import Segment, Shard
from pipeline.distributed.world import read_world
from pipeline.errors import ConfigError
from pipeline.methods.base import task_prompts
from pipeline.output.results import read_results
from pipeline.tasks import Task
from pipeline.templates import TextConfig
from pipeline.training.checked_run import check_run
from pipeline.training.dry_run import format_plan
from pipeline.training.run import execute
from tests.tiny import CLASSES, build_config

ORDER = [4, 0, 6, 2, 5, 1, 3]


def names_of(arch: str, index: str, **sections: Any) -> list[str]:
    """The class names of a run, in the order in which they are learned."""
    run = check_run(build_config(arch, index, **sections), 1)
    return [name for task in run.tasks for name in task.names]


def test_classes_are_called_by_name_or_by_folder(tiny_arch, tiny_shards):
    names, folders = list(CLASSES), list(CLASSES.values())
    assert names_of(tiny_arch, tiny_shards) == [names[label] for label in ORDER]
    raw = names_of(tiny_arch, tiny_shards, text={"names": "raw"})
    assert raw == [folders[label] for label in ORDER]


def test_order_of_classes_is_that_of_the_index_by_default(tiny_arch, tiny_shards):
    natural = names_of(tiny_arch, tiny_shards, tasks={"class_order": "natural"})
    assert natural == list(CLASSES)
    seeded = names_of(tiny_arch, tiny_shards, tasks={"class_order": "lamda", "order_seed": 1993})
    assert sorted(seeded) == sorted(natural) and seeded != natural


def test_braces_of_a_name_are_taken_as_they_are():
    text = TextConfig(templates=["a photo of a {}.", "{}"])
    task = Task(0, first=0, labels=(0,), names=("set {0} of {x}",))
    assert task_prompts(text, task) == [["a photo of a set {0} of {x}.", "set {0} of {x}"]]


def write_index(folder: Path, train: list[int], test: list[int]) -> str:
    """An index with so many images per class and split, without the images."""
    shards = [
        Shard(f"{split}.tar", split, sum(counts), 1, "", "", tuple(
            Segment(label, count, 0, 1, "") for label, count in enumerate(counts) if count
        ))
        for split, counts in (("train", train), ("test", test))
    ]  # fmt: skip
    names = [f"class {label}" for label in range(len(train))]
    (folder / "index.json").write_bytes(format_index(names, names, shards))
    for shard in shards:
        (folder / shard.name).write_bytes(bytes(shard.bytes))
        (folder / shard.table_name).touch()
    return str(folder)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([3, 0, 2], [1, 1, 1], "has no train image of class 'class 1' .1 such classes.; prepare"),
        ([3, 1, 2], [1, 0, 0], "has no test image of class 'class 1' .2 such classes.; prepare"),
    ],
)
def test_class_without_images_is_named_before_training(tiny_arch, tmp_path, train, test, words):
    index = write_index(tmp_path, train, test)
    tasks = {"class_order": "natural", "classes_per_task": 1}
    with pytest.raises(ConfigError, match=words):
        check_run(build_config(tiny_arch, index, tasks=tasks), 1)
    seen = check_run(build_config(tiny_arch, index, tasks=tasks | {"limit": 1}), 1)
    assert len(seen.tasks) == 1  # a class that is not learned needs no image


def test_plan_of_a_validation_run_leaves_the_held_out_images_out(tiny_arch, tiny_shards):
    data = {"index": tiny_shards, "global_batch": 4, "validation_fraction": 0.5}
    config = build_config(
        tiny_arch, tiny_shards, data=data, evaluation={"split": "validation"},
        method={"name": "finetune"},
    )  # fmt: skip
    rows = [line.split() for line in format_plan(check_run(config, 1)).splitlines()]
    planned = [(int(r[2]), int(r[3])) for r in rows if r and r[0] in ("1", "2", "3")]
    assert [train + test for train, test in planned] == [18, 18, 8]
    assert all(train and test for train, test in planned)


NOTED = {
    "evaluation": {"exclude_tasks": 2},
    "tuning": {
        "protocol": "oracle_sequence", "sweep": "runs/s", "trials": 9,
        "note": "tuned on the evaluation sequence",
    },
}  # fmt: skip


def test_run_that_would_report_no_task_is_refused(tiny_arch, tiny_shards):
    config = build_config(tiny_arch, tiny_shards, evaluation={"exclude_tasks": 3})
    with pytest.raises(ConfigError, match="exclude_tasks is 3 and there are 3 tasks; leave out"):
        check_run(config, 1)
    check_run(build_config(tiny_arch, tiny_shards, evaluation={"exclude_tasks": 2}), 1)


def test_plan_says_what_the_summary_leaves_out_and_how_settings_were_found(tiny_arch, tiny_shards):
    plan = format_plan(check_run(build_config(tiny_arch, tiny_shards, **NOTED), 1))
    assert "summary    leaves out the first 2 task(s)" in plan
    assert "9 trials, sweep runs/s: tuned on the evaluation sequence" in plan
    assert "summary" not in format_plan(check_run(build_config(tiny_arch, tiny_shards), 1))


def test_finished_run_may_learn_later_what_its_summary_leaves_out(
    tiny_arch, tiny_shards, tmp_path, caplog
):
    """must equal a run that knew from the start, and measure nothing again"""
    found = []
    for name, beginning in (("first", NOTED), ("later", {})):
        output = str(tmp_path / name)
        run = check_run(build_config(tiny_arch, tiny_shards, output=output, **beginning), 1)
        assert execute(run, read_world({}))
        noted = check_run(build_config(tiny_arch, tiny_shards, output=output, **NOTED), 1)
        assert not execute(noted, read_world({}))
        found.append(read_results(output).content())
    first, later = found
    for key in first.keys() - {"manifest", "diagnostics"}:
        assert first[key] == later[key], key
    assert first["manifest"]["config_sha256"] == later["manifest"]["config_sha256"]
    assert first["average_incremental_accuracy"] == first["accuracy_matrix"][2][2]
    assert caplog.text.count("runs/s: tuned on the evaluation sequence") == 4
    lines = (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()
    notes = [line.get("note") for line in map(json.loads, lines) if line["kind"] == "stage"]
    assert notes == ["tuned on the evaluation sequence"] * 3
