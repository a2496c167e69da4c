"""An interrupted and resumed run ends with the outcome of an undisturbed run.

Every figure of the results and of the metrics and every learned tensor must be equal to the bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from tests.chaos.comparison import read_run
from tests.interruptions import (
    Reference,
    StopAt,
    changed,
    dying_before_change,
    dying_before_step,
    newest_snapshot,
    start,
    start_on_ranks,
)
from tests.shards import draw_samples, store
from tests.tiny import build_config
from tests.variants import VARIANTS

VT = VARIANTS["anchors kept as learned"].model_dump()  # it has the most kinds of tensors
TASK_STEPS = [10, 10, 4]  # 18, 18 and 8 images in batches of 4, two epochs
N_STEPS = sum(TASK_STEPS)


pytestmark = pytest.mark.usefixtures("one_clip")


def build(arch: str, index: str, folder: Path, method: dict[str, Any], **sections: Any) -> Config:
    return build_config(arch, index, output=str(folder / "undisturbed"), method=method, **sections)


@pytest.fixture(scope="module")
def reference(tiny_arch, tiny_shards, tmp_path_factory) -> Reference:
    """A run with every kind of learned tensor, on augmented images, with few snapshots."""
    folder = tmp_path_factory.mktemp("reference")
    data = {"train_transform": "random_crop"}
    return Reference(build(tiny_arch, tiny_shards, folder, VT, data=data))


# The point of the interruption.


@pytest.mark.slow
def test_stopped_at_every_point_one_after_another(reference, tmp_path):
    """must hold for every step of every task, between training and test, and within each test

    Each start stops one check later than the start before, and at least one step later.
    """
    config = changed(reference.config, output=str(tmp_path / "run"))
    points, count, before = [], 1, None
    while not start(config, StopAt(count)):
        snapshot = newest_snapshot(config)
        points.append((snapshot, count))
        count = count + 1 if snapshot == before else 2
        before = snapshot
        assert len(points) < 150
    reference.assert_equals_run(config)
    names = {name for name, _ in points}
    for task, steps in enumerate(TASK_STEPS):  # the end of a task is the start of the next
        assert {f"task-{task:03d}-step-{step:06d}" for step in range(1, steps + 1)} <= names
    assert sum(name == "task-001-step-000010" for name, _ in points) > 3, "within the test"


@pytest.mark.slow
def test_dead_before_every_step_one_after_another(reference, tmp_path):
    """must resume from the last snapshot, although the process died without a signal"""
    snapshot = {"every_steps": 3}
    config = changed(reference.config, output=str(tmp_path / "run"), snapshot=snapshot)
    for step in range(N_STEPS):
        with dying_before_step(TASK_STEPS, step):
            assert not start(config)
    assert start(config)
    reference.assert_equals_run(config)


@pytest.mark.slow
def test_dead_before_every_change_of_a_file(reference, tmp_path):
    """must hold for every part of a snapshot, of tensors, metrics and results that is on disk

    Each start makes one change more than the start before, until it reaches another snapshot.
    """
    snapshot = {"every_steps": 4}
    config = changed(reference.config, output=str(tmp_path / "run"), snapshot=snapshot)
    count, starts, before = 0, 0, None
    finished = False
    while not finished:
        with dying_before_change(count):
            finished = start(config)
        newest = newest_snapshot(config)
        count = count + 1 if newest == before else 1
        before, starts = newest, starts + 1
        assert starts < 300
    assert starts > 30
    reference.assert_equals_run(config)


@pytest.mark.parametrize(("count", "steps"), [(1, 0), (2, 1), (3, 2), (13, 10), (14, 10)])
def test_first_snapshot_is_taken_where_the_run_stops(reference, tmp_path, count, steps):
    """must hold before the first step, in training, and in the test after it"""
    config = changed(reference.config, output=str(tmp_path / "run"))
    assert not start(config, StopAt(count))
    assert newest_snapshot(config) == f"task-000-step-{steps:06d}"
    assert start(config)
    reference.assert_equals_run(config)


def test_dead_before_the_first_snapshot(reference, tmp_path):
    config = changed(reference.config, output=str(tmp_path / "run"))
    with dying_before_step(TASK_STEPS, 7):
        assert not start(config)
    assert newest_snapshot(config) is None
    assert start(config)
    reference.assert_equals_run(config)


# The interrupted run.


@pytest.mark.parametrize("label", [*VARIANTS])
def test_every_method_resumes_as_if_undisturbed(tiny_arch, tiny_shards, tmp_path, label):
    """must hold within a task, while frozen features are computed, and in the last test"""
    reference = Reference(build(tiny_arch, tiny_shards, tmp_path, VARIANTS[label].model_dump()))
    config = changed(reference.config, output=str(tmp_path / "run"))
    starts, counts = 0, [3, 8, 3, 17, 5, 21]
    while not start(config, StopAt(counts[starts] if starts < len(counts) else -1)):
        starts += 1
    assert starts >= 1
    reference.assert_equals_run(config)


def test_tensors_that_change_without_a_gradient_are_resumed_too(tiny_arch, tiny_shards, tmp_path):
    """must hold for sums and matrices that every task changes, beside tensors that are trained"""
    method = VARIANTS["ridge on tuned prompts"].model_dump()
    reference = Reference(build(tiny_arch, tiny_shards, tmp_path, method))
    config = changed(reference.config, output=str(tmp_path / "run"))
    for count in (9, 8, 14):
        assert not start(config, StopAt(count))
    assert start(config)
    reference.assert_equals_run(config)


@pytest.mark.parametrize("workers", [(0, 2), (2, 1)], ids=["0 then 2", "2 then 1"])
def test_another_number_of_loader_workers(reference, tmp_path, workers):
    config = changed(reference.config, output=str(tmp_path / "run"))
    assert not start(changed(config, data={"workers": workers[0]}), StopAt(15))
    assert start(changed(config, data={"workers": workers[1]}))
    reference.assert_equals_run(config)


def test_zero_stage_one(reference, tmp_path):
    """must restore the optimizer state that the ranks hold in parts"""
    undisturbed = changed(
        reference.config, output=str(tmp_path / "undisturbed"), engine={"zero_stage": 1}
    )
    partitioned = Reference(undisturbed)
    config = changed(undisturbed, output=str(tmp_path / "run"))
    for count in (4, 9, 3):
        assert not start(config, StopAt(count))
    assert start(config)
    partitioned.assert_equals_run(config)


def test_recomputed_parts(reference, tmp_path):
    undisturbed = changed(
        reference.config,
        output=str(tmp_path / "undisturbed"),
        engine={"micro_batch": 2, "recompute": True},
    )
    recomputed = Reference(undisturbed)
    config = changed(undisturbed, output=str(tmp_path / "run"))
    assert not start(config, StopAt(5))
    assert start(config)
    recomputed.assert_equals_run(config)


def test_output_and_snapshots_on_object_storage(reference, tiny_shards, bucket):
    config = changed(
        reference.config,
        output=f"{bucket.url}/run",
        snapshot={"folder": f"{bucket.url}/elsewhere", "every_steps": 3},
    )
    assert not start(config, StopAt(15))
    with dying_before_step(TASK_STEPS, 18):
        assert not start(config)
    assert newest_snapshot(config) == "task-001-step-000006"
    assert start(config)
    reference.assert_equals_run(config)


def test_skipped_samples_are_remembered(tiny_arch, tmp_path):
    """must replace and report the same images as an undisturbed run, and count them once"""
    # ant/009 is a training image; cat/001 is one in each split
    store(str(tmp_path / "shards"), draw_samples(), damaged={"ant/009": b"", "cat/001": b"torn"})
    data = {"on_bad_sample": "skip", "bad_sample_budget": 3}
    tasks = {"class_order": "natural", "classes_per_task": 2}
    reference = Reference(
        build(tiny_arch, str(tmp_path / "shards"), tmp_path, VT, data=data, tasks=tasks)
    )
    assert len(reference.content.results["skipped_samples"]) == 3
    config = changed(reference.config, output=str(tmp_path / "run"))
    for count in (12, 15, 11):
        assert not start(config, StopAt(count))
    assert start(config)
    reference.assert_equals_run(config)


# The number of ranks.


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_two_ranks_resume_as_if_undisturbed(reference, tmp_path, zero_stage):
    """must hold although only one rank is asked to stop, and that rank does not write"""
    engine = {"zero_stage": zero_stage}
    undisturbed = changed(reference.config, output=str(tmp_path / "undisturbed"), engine=engine)
    assert start_on_ranks(2, undisturbed)
    config = changed(undisturbed, output=str(tmp_path / "run"))
    assert not start_on_ranks(2, config, 5)
    assert newest_snapshot(config) == "task-000-step-000004"
    assert not start_on_ranks(2, config, 18)
    assert start_on_ranks(2, config)
    read_run(config.output).assert_equals(read_run(undisturbed.output))


@pytest.fixture(scope="module")
def in_parts(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run on one rank that sums its steps in parts of two images."""
    config = changed(
        reference.config,
        output=str(tmp_path_factory.mktemp("in-parts") / "undisturbed"),
        engine={"micro_batch": 2},
        # ZeRO sums the gradient norm in an order that depends on the number of ranks.
        optim={"gradient_clipping": 0.0},
    )
    assert start_on_ranks(1, config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_another_number_of_ranks(in_parts, tmp_path, zero_stage):
    """must learn the same bits from the same parts, with Adam's usual epsilon"""
    engine = {"zero_stage": zero_stage}
    config = changed(in_parts, output=str(tmp_path / "run"), engine=engine)
    assert not start_on_ranks(2, config, 8)
    assert not start_on_ranks(1, config, 16)
    assert newest_snapshot(config) > "task-001-step-000000"
    assert start_on_ranks(2, config)
    read_run(config.output).assert_equals(read_run(in_parts.output))
