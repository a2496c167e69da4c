"""The images and steps of each task, with images held out for validation."""

from __future__ import annotations

import pytest

from pipeline.bench.large_index import write_large
from pipeline.bench.settings import load_bench_config
from pipeline.data import index as index_module
from pipeline.training.checked_run import Run, check_run
from pipeline.training.task_data import TaskData


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Ten tasks of about 760 training images, without shards that have content."""
    folder = tmp_path_factory.mktemp("large")
    write_large(folder, shards=20, samples=400, classes=40)
    return str(folder)


def start(folder: str, arch: str, cache: object, *words: str) -> Run:
    given = [f"data.index={folder}", f"model.arch={arch}", "model.weights=null"]
    sizes = ["tasks.classes_per_task=4", "data.global_batch=8", f"data.cache.folder={cache}"]
    return check_run(load_bench_config("data", None, [*given, *sizes, *words]), 1)


def steps(data: TaskData) -> list[int]:
    return [data.expected_steps(task) for task in data.tasks]


def test_start_on_a_large_data_set_reads_no_key(folder, tiny_arch, tmp_path, monkeypatch):
    """must hold so that a start costs nothing per sample though images are held out"""
    monkeypatch.setattr(index_module, "_MANY_SAMPLES", 1)
    run = start(folder, tiny_arch, tmp_path, "data.validation_fraction=0.2")
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "read_table", None)
        expected = steps(run.data)
    exact = [run.data.n_steps(task) for task in run.tasks]
    assert expected == pytest.approx(exact, rel=0.1) and expected != exact
    assert steps(run.data) == exact == [run.data.task_steps(task.index) for task in run.tasks]


def test_only_the_tables_of_the_first_task_are_read_before_it(
    folder, tiny_arch, tmp_path, monkeypatch
):
    monkeypatch.setattr(index_module, "_MANY_SAMPLES", 1)
    run = start(folder, tiny_arch, tmp_path, "data.validation_fraction=0.2")
    read, read_table = [], index_module.read_table
    monkeypatch.setattr(
        index_module, "read_table", lambda shard: read.append(shard.table_url) or read_table(shard)
    )
    steps(run.data)
    run.data.n_steps(run.tasks[0])
    run.data.following(run.tasks[0])
    first = run.index.select("train", run.tasks[0].labels)
    assert sorted(read) == sorted(
        run.index.shards[number].table_url for number in first.shard_numbers
    )


def test_held_out_images_are_the_same_in_a_large_data_set(folder, tiny_arch, tmp_path, monkeypatch):
    words = "data.validation_fraction=0.3", "evaluation.split=validation"
    small = start(folder, tiny_arch, tmp_path, *words)
    assert steps(small.data) == [small.data.n_steps(task) for task in small.tasks]
    monkeypatch.setattr(index_module, "_MANY_SAMPLES", 1)
    large = start(folder, tiny_arch, tmp_path, *words)
    task = small.tasks[3]
    for name in ("train", "test"):
        found = getattr(large.data, name)(task).sample_S.tolist()
        assert found and found == getattr(small.data, name)(task).sample_S.tolist()


def test_small_task_of_a_large_data_set_is_counted_at_the_start(
    folder, tiny_arch, tmp_path, monkeypatch
):
    """must find a task without images before the run starts"""
    monkeypatch.setattr(index_module, "_MANY_SAMPLES", 1)
    run = start(folder, tiny_arch, tmp_path, "data.validation_fraction=0.01")
    assert steps(run.data) == [run.data.n_steps(task) for task in run.tasks]
