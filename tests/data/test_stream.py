"""Batches have the same pixels on any number of ranks and loader workers."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.plan import Layout
from pipeline.data.stream import ShardSource, eval_stream, plan_stream, train_stream
from pipeline.data.transforms import build_transform
from pipeline.errors import DataError
from tests.shards import (
    CLASSES,
    CROP,
    TEST,
    TRAIN,
    draw_image_file,
    draw_samples,
    overwrite_byte,
    plan_epoch,
    store,
    stream_digests,
)

CLIP = build_transform("clip", 13)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ShardIndex:
    return store(str(tmp_path_factory.mktemp("shards")), draw_samples())


@pytest.fixture(scope="module")
def source(index):
    source = ShardSource(index)
    yield source
    source.close()


@pytest.fixture(scope="module")
def expected(source):
    return stream_digests(source)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_layout_gives_the_same_pixels(source, expected, world_size, workers):
    assert stream_digests(source, Layout(0, world_size, workers)) == expected


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (4, 2), (2, 3)])
def test_resumed_stream_gives_the_same_batches(source, expected, world_size, workers):
    for step in range(len(expected) + 1):
        rest = stream_digests(source, Layout(0, world_size, workers), start_step=step)
        assert rest == expected[step:]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_plan_stream_gives_the_samples_and_labels_of_train_stream(source, world_size):
    plan = plan_epoch(source.index)
    for rank in range(world_size):
        layout = Layout(rank, world_size)
        batches = list(train_stream(source, plan, CROP, layout=layout))
        for start_step in range(len(batches) + 1):
            planned = list(plan_stream(plan, start_step=start_step, layout=layout))
            for found, wanted in zip(planned, batches[start_step:], strict=True):
                assert found.image_BCHW is None
                assert torch.equal(found.sample_B, wanted.sample_B)
                assert torch.equal(found.label_B, wanted.label_B)
                assert found.label_B.dtype == wanted.label_B.dtype


def test_epochs_differ_in_order_and_pixels(source, expected):
    assert not set(expected) & set(stream_digests(source, epoch=3))


def test_epoch_has_every_sample_once_and_wraps(source):
    plan = plan_epoch(source.index)
    numbers = np.concatenate([b.sample_B for b in train_stream(source, plan, CROP)])
    assert len(numbers) == 48
    assert sorted(numbers[: sum(TRAIN)]) == plan.selection.sample_S.tolist()
    assert numbers[sum(TRAIN) :].tolist() == numbers[:3].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_evaluation_sees_each_sample_once_over_all_ranks(source, world_size):
    selection = source.index.select("test", range(5))
    batches = [
        batch
        for rank in range(world_size)
        for batch in eval_stream(
            source, selection, CLIP, batch_size=4, layout=Layout(rank, world_size)
        )
    ]
    assert torch.cat([b.sample_B for b in batches]).tolist() == selection.sample_S.tolist()
    assert torch.cat([b.label_B for b in batches]).tolist() == selection.label_S.tolist()
    assert len(selection) == sum(TEST)


def test_images_have_the_stored_pixels(source):
    samples = [sample for sample in draw_samples() if sample.split == "test"]
    from pipeline.data.decoding import open_image

    selection = source.index.select("test", range(5))
    batch = next(
        eval_stream(source, selection, batch_size=99, transform=CLIP, layout=Layout(workers=1))
    )
    for image_CHW, sample in zip(batch.image_BCHW, samples, strict=True):
        assert torch.equal(image_CHW, CLIP(open_image(sample.data)))
    assert batch.wait_s > 0


def test_abandoned_stream_does_not_change_the_next_one(source, expected):
    layout = Layout(workers=2)
    old = train_stream(source, plan_epoch(source.index, epoch=9), CROP, layout=layout)
    next(old)
    assert stream_digests(source, layout) == expected
    with pytest.raises(RuntimeError, match="newer stream"):
        next(old)


def test_stream_draws_nothing_from_the_global_generator(source):
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    stream_digests(source, Layout(workers=1))
    assert torch.equal(torch.rand(1), wanted)


def test_closed_split_cannot_be_read(index):
    source = ShardSource(index.with_closed("test"))
    assert list(train_stream(source, plan_epoch(index), CROP))
    with pytest.raises(DataError, match="the test split is closed"):
        list(eval_stream(source, index.select("test", [0]), batch_size=4, transform=CLIP))


def test_shard_damaged_on_the_disk_is_refused(tmp_path):
    index = store(str(tmp_path), draw_samples())
    overwrite_byte(str(tmp_path / index.shards[0].name), 5000)
    source = ShardSource(index)
    for workers in (0, 1):
        stream = train_stream(source, plan_epoch(index), CROP, layout=Layout(workers=workers))
        with pytest.raises(DataError, match=r"train-000000.tar: the bytes of .* do not match"):
            list(stream)
    source.close()


def test_shards_in_memory_are_refused_with_loader_workers():
    index = store(f"memory://{uuid.uuid4().hex}", draw_samples())
    with pytest.raises(DataError, match="exists in one process only; set data.workers to 0"):
        train_stream(ShardSource(index), plan_epoch(index), CROP, layout=Layout(workers=1))


# Bad samples

BAD = {"bee/002": draw_image_file(7)[:-150], "bee/003": b"", "elk/008": b"no image"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> ShardIndex:
    return store(str(tmp_path_factory.mktemp("damaged")), draw_samples(), damaged=BAD)


def test_bad_sample_ends_the_stream_by_default(damaged):
    source = ShardSource(damaged)
    with pytest.raises(DataError, match=r"sample (bee|elk)/00. cannot be decoded .*on_bad_sample"):
        list(train_stream(source, plan_epoch(damaged), CROP))


def test_replacements_are_the_same_on_every_layout(damaged):
    grids = []
    for world_size, workers in ((1, 0), (4, 0), (2, 2)):
        source = ShardSource(damaged, on_bad_sample="skip", bad_sample_budget=3)
        grids.append(stream_digests(source, Layout(0, world_size, workers)))
        assert {skipped.key for skipped in source.skipped.values()} == set(BAD)
        assert all("cannot be decoded" in s.reason for s in source.skipped.values())
        source.close()
    assert grids[0] == grids[1] == grids[2]


def test_replacement_is_the_next_usable_sample_of_the_class(damaged):
    source = ShardSource(damaged, on_bad_sample="skip", bad_sample_budget=3)
    plan = plan_epoch(damaged)
    selection, batches = plan.selection, list(train_stream(source, plan, CROP))
    numbers = torch.cat([batch.sample_B for batch in batches]).tolist()
    labels = torch.cat([batch.label_B for batch in batches]).tolist()
    key = dict(zip(selection.sample_S.tolist(), selection.keys, strict=True))
    names = [key[number] for number in numbers[: sum(TRAIN)]]
    assert not set(names) & set(BAD)
    assert names.count("bee/004") == 3  # for itself and for its two bad neighbours
    assert names.count("elk/000") == 2  # the first follows the last
    assert all(name.startswith(CLASSES[label]) for name, label in zip(names, labels, strict=False))


def test_evaluation_leaves_out_bad_samples(tmp_path):
    test_only = [s for s in draw_samples() if s.split == "test"]
    index = store(str(tmp_path), test_only, damaged={"cat/001": b""})
    source = ShardSource(index, on_bad_sample="skip", bad_sample_budget=1)
    batches = list(
        eval_stream(source, index.select("test", range(5)), batch_size=4, transform=CLIP)
    )
    assert sum(len(batch.label_B) for batch in batches) == sum(TEST) - 1
    assert all(len(b.label_B) == len(b.image_BCHW) == len(b.sample_B) for b in batches)


def test_bad_samples_beyond_the_budget_end_the_stream(damaged):
    source = ShardSource(damaged, on_bad_sample="skip", bad_sample_budget=2)
    with pytest.raises(DataError, match="3 bad samples exceed data.bad_sample_budget"):
        list(train_stream(source, plan_epoch(damaged), CROP))


def test_class_without_a_usable_sample_is_named(tmp_path):
    keys = [sample.key for sample in draw_samples() if sample.key.startswith("dog/")]
    index = store(str(tmp_path), draw_samples(), damaged=dict.fromkeys(keys, b""))
    source = ShardSource(index, on_bad_sample="skip", bad_sample_budget=99)
    with pytest.raises(DataError, match="no usable train sample is left of class dog"):
        list(train_stream(source, plan_epoch(index), CROP))


def test_prepared_folder_streams(tiny_shards):
    index = read_index(tiny_shards)
    source = ShardSource(index)
    selection = index.select("test", range(len(index.class_names)))
    batches = list(eval_stream(source, selection, batch_size=5, transform=CLIP))
    assert sum(len(batch.label_B) for batch in batches) == len(selection) == 23
    assert storage.is_local(index.url)
