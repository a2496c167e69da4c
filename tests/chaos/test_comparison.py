"""Every difference between two runs is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import DataError
from tests.chaos.comparison import find_differences, read_run

SKIPPED = {"shard": "train-00000.tar", "key": "n1/3", "reason": "truncated"}


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that output that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def edit_results(output: Path, edit: Callable[[dict], None]) -> None:
    file = output / "results.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def compare(output: Path, wanted: Path) -> list[str]:
    return find_differences(read_run(str(output)), read_run(str(wanted)))


def test_run_that_only_took_longer_is_equal(copied, finished):
    def slow_down(content):
        content["images_per_second"] = 0.001
        content["diagnostics"][1] |= {"train_seconds": 1e6, "test_seconds": 1e6}
        content["manifest"]["world_size"] = 64

    edit_results(copied, slow_down)
    file = copied / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    slow = [line | {"images_per_second": 0.1} if "loss" in line else line for line in lines]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in slow))
    assert any("loss" in line for line in lines)
    assert compare(copied, finished) == []


def test_every_single_bit_of_a_learned_tensor_counts(copied, finished):
    """must hold even for two values that compare as equal: 0.0 and -0.0"""
    file = copied / "tasks" / "task-001.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == torch.float32)
    tensors[name].view(-1)[3] = 0.0
    save_file(tensors, file)
    positive = read_run(str(copied))
    tensors[name].view(-1)[3] = -0.0
    save_file(tensors, file)
    complaint = f"task-001.safetensors: {name} has other values"
    assert find_differences(read_run(str(copied)), positive) == [complaint]
    assert compare(copied, finished) == [complaint]


def test_missing_and_surplus_tasks_and_tensors_are_named(copied, finished):
    tensors = load_file(copied / "tasks" / "task-000.safetensors")
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors | {"surplus": torch.zeros(2)}, copied / "tasks" / "task-000.safetensors")
    (copied / "tasks" / "task-002.safetensors").rename(copied / "tasks" / "task-003.safetensors")
    assert sorted(compare(copied, finished)) == sorted(
        [
            f"task-000.safetensors: {lost} is missing",
            "task-000.safetensors: surplus is not wanted",
            "task-002.safetensors: missing",
            "task-003.safetensors: not wanted",
        ]
    )


@pytest.mark.parametrize(
    "key, edit",
    [
        ("accuracy_matrix", lambda content: content["accuracy_matrix"][2].__setitem__(0, 0.123)),
        ("diagnostics", lambda content: content["diagnostics"][1].update(modality_gap=0.5)),
        ("skipped_samples", lambda content: content["skipped_samples"].append(SKIPPED)),
    ],
)
def test_another_result_is_named(copied, finished, key, edit):
    edit_results(copied, edit)
    (complaint,) = compare(copied, finished)
    assert complaint.startswith(f"results.json: {key} is ")


def test_lost_and_repeated_steps_are_named(copied, finished):
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join([*lines[:2], lines[1], *lines[2:]]))
    length, line = compare(copied, finished)
    assert length == f"metrics.jsonl: {len(lines) + 1} lines, wanted {len(lines)}"
    assert line.startswith("metrics.jsonl: line 3 is ")


def test_run_that_has_not_finished_is_refused(copied):
    edit_results(copied, lambda content: content.update(status="running"))
    with pytest.raises(DataError, match="holds a run that is running; a finished run is wanted"):
        read_run(str(copied))
    (copied / "results.json").unlink()
    with pytest.raises(DataError, match=r"holds no results\.json; a finished run is wanted"):
        read_run(str(copied))


def test_truncated_tensor_file_is_refused(copied):
    file = copied / "tasks" / "task-000.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match="a file is damaged"):
        read_run(str(copied))
