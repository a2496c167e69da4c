"""A run that is evaluated on validation images can open no test image in any way."""

from __future__ import annotations

import pickle
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.config import Config, dump_config
from pipeline.data.cache import RemoteShard, SegmentCache
from pipeline.data.index import INDEX_NAME, ShardIndex, read_index
from pipeline.data.plan import EpochKey, EpochPlan
from pipeline.data.reader import ShardReader
from pipeline.data.stream import BatchPlan, ShardSource, eval_stream, train_stream
from pipeline.data.transforms import build_transform
from pipeline.distributed.world import read_world
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.output.results import read_results
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.plan import load_plan
from pipeline.train import main
from pipeline.training.checked_run import check_run
from pipeline.training.dry_run import format_plan
from pipeline.training.run import execute
from tests.shards import draw_samples, store
from tests.tiny import build_config
from tests.training.test_run import write_index
from tests.variants import VARIANTS

CLIP = build_transform("clip", 21)
CLOSED = "the test split is closed in a run with evaluation.split=validation"


def read_from(folder: Path | str) -> ShardIndex:
    return read_index(str(folder))


def delete(url: str) -> None:
    """Delete a file."""
    Path(url).unlink()


def poison(url: str) -> None:
    """Replace a file by content that no reader accepts."""
    Path(url).write_bytes(b"poison" * 50)


@pytest.fixture(params=[delete, poison], ids=["deleted", "poisoned"])
def without_test(request: pytest.FixtureRequest, tiny_shards: str, tmp_path: Path) -> str:
    """The tiny shards with an unreadable test split; the index still lists it."""
    folder = shutil.copytree(tiny_shards, tmp_path / "shards")
    damage: Callable[[str], None] = request.param
    for shard in read_from(folder).shards:
        if shard.split == "test":
            damage(shard.url)
            damage(shard.table_url)
    return str(folder)


def validation_config(arch: str, index: str, output: str, **sections: Any) -> Config:
    data = {"index": index, "global_batch": 4, "eval_batch": 5, "workers": 0}
    data |= {"validation_fraction": 0.3, **sections.pop("data", {})}
    evaluation = sections.pop("evaluation", {"split": "validation"})
    return build_config(arch, index, output=output, data=data, evaluation=evaluation, **sections)


def accuracy(config: Config) -> list[list[float | None]]:
    execute(check_run(config, 1), read_world({}))
    return read_results(config.output).content()["accuracy_matrix"]


@pytest.mark.parametrize(
    ("variant", "data"),
    [
        ("zeroshot", {"feature_cache": "features"}),
        ("tppt_v", {"workers": 1, "train_transform": "random_crop"}),
    ],
)
def test_validation_run_gives_the_same_figures_without_the_test_split(
    tiny_arch, tiny_shards, without_test, tmp_path, variant, data
):
    """must hold with a feature cache and with loader workers"""
    method = VARIANTS[variant].model_dump()
    data = {k: str(tmp_path / v) if k == "feature_cache" else v for k, v in data.items()}
    without, complete = (
        accuracy(
            validation_config(tiny_arch, index, str(tmp_path / name), method=method, data=data)
        )
        for name, index in (("without", without_test), ("complete", tiny_shards))
    )
    assert without == complete


def test_test_run_fails_without_the_test_split(tiny_arch, without_test, tmp_path):
    """must fail, as otherwise the test above would prove nothing"""
    output = str(tmp_path / "run")
    config = validation_config(tiny_arch, without_test, output, evaluation={"split": "test"})
    with pytest.raises((DataError, StorageError), match="test-"):
        accuracy(config)


def test_plan_of_a_validation_run_needs_no_test_split(tiny_arch, without_test, tmp_path, capsys):
    config = validation_config(tiny_arch, without_test, str(tmp_path / "run"))
    assert "steps" in format_plan(check_run(config, 1))
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: {{index: {without_test}, global_batch: 4, workers: 0, validation_fraction: 0.3}}\n"
        f"tasks: {{classes_per_task: 7}}\nmodel: {{arch: '{tiny_arch}'}}\n"
        f"method: {{name: finetune}}\nevaluation: {{split: validation}}\n"
    )
    assert main(["--config", str(file), "--dry-run"]) == 0, capsys.readouterr().err


def test_validation_run_needs_training_images_of_each_class_but_no_test_images(tiny_arch, tmp_path):
    tasks = {"class_order": "natural", "classes_per_task": 1}
    for name, train, test in (("a", [3, 0], [1, 1]), ("b", [3, 3], [1, 0])):
        (tmp_path / name).mkdir()
        write_index(tmp_path / name, train, test)
    with pytest.raises(ConfigError, match="has no train image of class 'class 1'"):
        check_run(validation_config(tiny_arch, str(tmp_path / "a"), "memory://x", tasks=tasks), 1)
    check_run(validation_config(tiny_arch, str(tmp_path / "b"), "memory://x", tasks=tasks), 1)


@pytest.fixture(scope="module")
def index() -> ShardIndex:
    return store(f"memory://{uuid.uuid4().hex}", draw_samples())


def test_closed_index_refuses_selections_and_tables_of_the_closed_split(index):
    closed = index.with_closed("test")
    with pytest.raises(DataError, match=f"{INDEX_NAME}: {CLOSED}"):
        closed.select("test", [0])
    for number, shard in enumerate(index.shards):
        index.table(number)  # the closed index must not reuse a table of the open one
        if shard.split == "test":
            with pytest.raises(DataError, match=f"{shard.table_name}: {CLOSED}"):
                closed.table(number)


def test_closed_index_equals_the_open_one_in_everything_else(index):
    closed = index.with_closed("test")
    assert closed.count("test") == index.count("test")
    assert closed.digest(range(5)) == index.digest(range(5)) and closed.sha256 == index.sha256
    for split in ("train", "fit", "validation"):
        mine, theirs = (
            each.select(split, range(5), validation_fraction=0.3) for each in (closed, index)
        )
        assert np.array_equal(mine.sample_S, theirs.sample_S) and mine.keys == theirs.keys
    assert closed.with_closed("train").closed_splits == {"train", "test"}


def test_reader_of_a_closed_index_refuses_samples_of_another_index(index):
    """must hold in a loader worker too, which gets the reader as a pickle"""
    reader = pickle.loads(pickle.dumps(ShardReader(index.with_closed("test"))))
    train, test = (index.select(split, [0]).take(np.arange(1)) for split in ("train", "test"))
    assert len(reader.read(train)) == len(train)
    with pytest.raises(DataError, match=rf"test-\S*tar: {CLOSED}"):
        reader.read(test)


def test_source_of_a_closed_index_prefetches_no_closed_sample(index, tmp_path):
    cache = SegmentCache(tmp_path / "cache", limit_bytes=1 << 30, deadline_s=5)
    source = ShardSource(index.with_closed("test"), cache=cache)
    train, test = index.select("train", [0]), index.select("test", [0])
    epoch = EpochPlan(train, EpochKey(1, 0, 0), 4, "wrap")
    for attempt in (
        lambda: eval_stream(source, test, batch_size=4, transform=CLIP),
        lambda: train_stream(source, epoch, CLIP, upcoming=[test]),
        lambda: source.batches(BatchPlan(test, [], CLIP), workers=0, replace_bad=True),
    ):
        with pytest.raises(DataError, match=CLOSED):
            attempt()
    source.close()
    assert cached(index, cache, "test") == cached(index, cache, "train") == set()


def cached(index: ShardIndex, cache: SegmentCache, split: str) -> set[str]:
    """The hashes of a split's segments that the cache holds."""
    return {
        segment.sha256
        for shard in index.shards
        for segment in shard.segments
        if shard.split == split and cache.holds(RemoteShard(shard.url, shard.segments), segment)
    }


@pytest.mark.parametrize("split", ["validation", "test"])
def test_cache_of_a_run_holds_test_images_only_if_it_is_evaluated_on_them(
    tiny_arch, tiny_shards, tmp_path, split
):
    url = f"memory://{uuid.uuid4().hex}"
    for file in Path(tiny_shards).iterdir():
        storage.write_atomically(storage.join(url, file.name), file.read_bytes())
    folder = tmp_path / "cache"
    config = validation_config(
        tiny_arch, url, str(tmp_path / "run"), evaluation={"split": split},
        method={"name": "finetune"}, data={"cache": {"folder": str(folder)}},
    )  # fmt: skip
    accuracy(config)
    index, cache = read_from(url), SegmentCache(folder, limit_bytes=1 << 30, deadline_s=5)
    assert cached(index, cache, "train")
    assert bool(cached(index, cache, "test")) == (split == "test")


SWEEP = {"space": {"optim.epochs": {"int": [1, 2]}}, "validation_fraction": 0.4, "k": 2}


@pytest.mark.parametrize("protocol", ["first_task", "first_k_tasks", "transfer"])
def test_trials_of_a_sweep_need_no_test_split(tiny_arch, without_test, tmp_path, protocol):
    """must hold for the command and for its trials, although the varied run uses test images"""
    plan = load_plan(write_sweep(tiny_arch, without_test, tmp_path, protocol))
    config = plan.run_config({"optim.epochs": 1}, 0, 0)
    rows = accuracy(config)
    assert len(rows) == {"first_task": 1, "first_k_tasks": 2, "transfer": 2}[protocol]
    with pytest.raises(DataError, match=CLOSED):
        check_run(config, 1).index.select("test", [0])


def test_sweep_on_the_evaluation_sequence_needs_the_test_split(tiny_arch, without_test, tmp_path):
    """must fail, as otherwise the test above would prove nothing"""
    with pytest.raises((DataError, StorageError), match="test-"):
        plan = load_plan(write_sweep(tiny_arch, without_test, tmp_path, "oracle_sequence"))
        accuracy(plan.run_config({"optim.epochs": 1}, 0, 0))


def test_sweep_that_leaves_no_task_to_report_is_refused(tiny_arch, tiny_shards, tmp_path):
    sweep = write_sweep(tiny_arch, tiny_shards, tmp_path, "first_k_tasks")
    words = "exclude_from_report: it is true, and of .*exclude_tasks is 2 and there are 2 tasks"
    with pytest.raises(ConfigError, match=words):
        load_plan(sweep.model_copy(update={"exclude_from_report": True}))
    assert load_plan(sweep).n_tasks == 2


def write_sweep(arch: str, index: str, folder: Path, protocol: str) -> SweepConfig:
    """A sweep over a run of two tasks whose own configuration evaluates on test images."""
    tasks = {"classes_per_task": 3, "limit": 2}
    config = build_config(arch, index, tasks=tasks, method={"name": "finetune"})
    file = folder / "varied.yaml"
    file.write_text(dump_config(config))
    report = str(file) if protocol == "transfer" else None
    settings = {"run": str(file), "report": report, "protocol": protocol, **SWEEP}
    settings["exclude_from_report"] = protocol == "first_task"  # the run has only two tasks
    return SweepConfig(output=str(folder / "sweep"), **settings)
